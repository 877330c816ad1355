"""The grey-box check, pointed at what is shipped and at what is not right."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp
from jaxdp import NeighboringRelation, audit, clipping, sampling
from tests.rules import PARAMS, every_bounded_rule
from tests.test_rule_contract import stacked_gradients
from tests.test_sensitivity import ENGINES, KINDS, every_path, linear

pytestmark = pytest.mark.rounding

FULL = sampling.FullBatch(4)
ROWS = jax.tree.map(
  lambda x: np.asarray(x, np.float32),
  stacked_gradients(
    0, [[0.5, 2.0, 3.0], [1e-9, 5.0, 0.1], [9.0] * 3, [1.0] * 3]
  ),
)
QUANTILE = functools.partial(clipping.adaptive_quantile, by="layer")
REPLACE = NeighboringRelation.REPLACE_ONE
ADD = NeighboringRelation.ADD_OR_REMOVE_ONE


@every_bounded_rule
def test_no_rule_moves_farther_than_it_declares(rule):
  fn = jaxdp.clipped_sum(linear, rule)
  for relation, least in ((ADD, 0.3), (REPLACE, 0.4)):
    mechanism = jaxdp.Mechanism(rule, FULL, neighboring_relation=relation)
    found = audit.sensitivity(mechanism, fn, PARAMS, ROWS).check()
    assert found.ratio > least


@functools.cache
def flat_sum(kind, engine):
  loss_fn, has_key, _ = KINDS[kind]
  return jaxdp.clipped_sum(
    loss_fn, clipping.flat(0.7), has_key=has_key, **ENGINES[engine]
  )


SAMPLERS = {
  "example": [
    sampling.FullBatch(4),
    sampling.Poisson(num_examples=40, expected_batch_size=2),
    sampling.Poisson(num_examples=40, expected_batch_size=2, max_batch_size=4),
    sampling.FixedSize(num_examples=40, batch_size=4),
    sampling.Shuffled(num_examples=40, batch_size=4),
  ],
  "views": [sampling.FullBatch(4)],
  "iterates": [sampling.FullBatch(4)],
  "bucket": [
    sampling.Buckets(
      num_examples=40, expected_batch_size=4, num_buckets=4, bucket_size=2
    )
  ],
}


@every_path
@pytest.mark.parametrize("kind", SAMPLERS)
def test_units_engines_and_samplers_hold_what_they_declare(kind, engine):
  fn = flat_sum(kind, engine)
  for sampler in SAMPLERS[kind]:
    rows, mask = ROWS, None
    if sampler.unit_shape:
      rows = jax.tree.map(lambda x: np.stack([x, -x[::-1]], 1), ROWS)
    if sampler.may_pad:
      mask = np.zeros((4, *sampler.unit_shape), bool)
      mask.flat[-1] = True
    for relation in type(sampler).relations:
      mechanism = jaxdp.Mechanism(
        clipping.flat(0.7), sampler, neighboring_relation=relation
      )
      found = audit.sensitivity(mechanism, fn, PARAMS, rows, mask).check()
      assert found.ratio > 0.5


# What is not right, and what cannot be compared.

FLAT = jaxdp.Mechanism(clipping.flat(1.0), FULL)
XS = np.eye(4, dtype=np.float32) * 9


def flat(loss_fn=lambda w, x: w @ x, **options):
  return jaxdp.clipped_sum(loss_fn, FLAT.rule, **options)


def of_batch(change):
  """A sum of rows that were changed together beforehand."""
  fn = flat()
  return lambda w, xs, *rest: fn(w, change(xs), *rest)


@pytest.mark.parametrize(
  "change, says",
  [
    (lambda xs: xs - xs.mean(0, keepdims=True), "declared sensitivity"),
    (lambda xs: xs / jnp.linalg.norm(xs) * 9, "declared sensitivity"),
  ],
  ids=["centred", "scaled"],
)
def test_a_unit_that_moves_others_is_found(change, says):
  with pytest.raises(ValueError, match=says):
    audit.sensitivity(FLAT, of_batch(change), jnp.ones(4), XS).check()
  assert not audit.sensitivity(FLAT, flat(), jnp.ones(4), XS).exceeds


def test_a_mask_that_is_forgotten_is_found():
  fn = flat()
  found = audit.sensitivity(
    FLAT, lambda w, xs, mask, *rest: fn(w, xs, None, *rest), jnp.ones(4), XS
  )
  assert found.ratio == pytest.approx(2, rel=1e-3)
  assert "is left" in found.change


def test_all_neighbours_see_the_same_randomness():
  def noisy(w, x, key):
    return w @ (x + 100 * jax.random.normal(key, x.shape))

  fn = flat(noisy, has_key=True)
  assert not audit.sensitivity(FLAT, fn, jnp.ones(4), XS).exceeds


def test_a_replacement_is_met():
  replace = FLAT.replace(neighboring_relation=REPLACE)
  fn = flat(lambda w, x: w @ jnp.where(x[0] == 3.5, 5 * x, x / 100))
  near, far = (
    audit.sensitivity(replace, fn, jnp.ones(4), XS / 9, replacement=row)
    for row in (None, np.float32([3.5, 0, 0, 0]))
  )
  assert near.ratio < far.ratio <= 1
  assert far.change == "replaced by the replacement"


@pytest.mark.parametrize(
  "rows",
  [
    lambda xs, mask: xs[~mask],
    lambda xs, mask: xs[: jnp.sum(~mask)],
    lambda xs, mask: jnp.stack([xs[i] for i in range(jnp.sum(~mask))]),
  ],
  ids=["mask", "slice", "range"],
)
def test_steps_that_depend_on_values_are_refused(rows):
  fn = flat()
  with pytest.raises(ValueError, match="tell about them"):
    audit.sensitivity(
      FLAT,
      lambda w, xs, mask, *rest: fn(w, rows(xs, mask), None, *rest),
      jnp.ones(4),
      XS,
    )


@pytest.mark.parametrize("rule", [clipping.per_layer, QUANTILE])
def test_layers_that_do_not_train_share_in_no_bound(rule):
  """As in training, where the rule sees the trained leaves alone."""
  mechanism = FLAT.replace(rule=rule(1.0))
  options = {"trainable": lambda path, _: path.startswith("body")}
  fn = jaxdp.clipped_sum(linear, mechanism.rule, **options)
  rows = jax.tree.map(lambda x: 1e3 * x, ROWS)
  found = audit.sensitivity(mechanism, fn, PARAMS, rows, **options).check()
  assert found.ratio > 0.99


def test_what_cannot_be_compared_is_refused():
  with pytest.raises(ValueError, match="at least two units"):
    audit.sensitivity(FLAT, flat(), jnp.ones(4), XS[:1])
  with pytest.raises(ValueError, match="Pass what the sampler gave"):
    audit.sensitivity(FLAT, flat(), jnp.ones(4), XS, np.zeros(3, bool))
  none = FLAT.replace(rule=clipping.no_clipping())
  fn = jaxdp.clipped_sum(lambda w, x: w @ x, none.rule)
  with pytest.raises(ValueError, match="bounds nothing"):
    audit.sensitivity(none, fn, jnp.ones(4), XS)
