"""Rules that follow a public batch, from its norms to the noise of a step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdp
from jaxdp import clipping
from tests.units import BATCH, PARAMS, UNITS, loop, loss_fn, normal

PUBLIC = {"x": 3 * normal(10, 4, 3), "y": normal(11, 4, 2)}
KEY = jax.random.key(3)


def mechanism_of(rule):
  return jaxdp.Mechanism(rule, jaxdp.sampling.FullBatch(UNITS), 1.3)


def layer_norms(params, batch):
  """[layer, unit], by hand."""
  grads = loop(loss_fn, params, batch)
  return np.array(
    [
      np.sqrt(
        sum(
          np.sum(np.square(g.reshape(len(g), -1)), axis=1)
          for g in jax.tree.leaves(layer)
        )
      )
      for layer in (grads["body"], grads["head"])
    ]
  )


def train_step(rule, every=1, **kwargs):
  return jaxdp.make_train_step(
    loss_fn,
    mechanism_of(rule),
    optax.sgd(0.1),
    public_batch=jaxdp.PublicBatch(PUBLIC, every),
    **kwargs,
  )


def scales(state):
  return np.asarray(state.mechanism_state.rule_state.scales)


def test_public_norms_are_means_over_the_batch():
  fn = jaxdp.public_norms(loss_fn, clipping.adaptive_layerwise(1.0))
  np.testing.assert_allclose(
    fn(PARAMS, PUBLIC), layer_norms(PARAMS, PUBLIC).mean(axis=1), 1e-5
  )


def test_public_norms_leave_out_what_is_not_finite():
  bad = {**PUBLIC, "x": PUBLIC["x"].copy()}
  bad["x"][1] = np.nan
  fn = jaxdp.public_norms(loss_fn, clipping.adaptive_layerwise(1.0))
  expected = layer_norms(PARAMS, PUBLIC)[:, [0, 2, 3]].mean(axis=1)
  np.testing.assert_allclose(fn(PARAMS, bad), expected, 1e-5)


@pytest.mark.parametrize(
  "make", [clipping.adaptive_layerwise, clipping.preconditioned]
)
def test_a_step_looks_at_the_public_batch_when_it_is_due(make):
  rule = make(0.4)
  step = train_step(rule, every=2)
  state = step.init(PARAMS, KEY)
  for t in range(3):
    params = jax.tree.map(np.asarray, state.params)
    before = scales(state)
    state, _ = step(state, BATCH)
    if t % 2 == 0:
      norms = layer_norms(params, PUBLIC).mean(axis=1)
      np.testing.assert_allclose(scales(state), norms / norms.max(), 1e-5)
    else:
      np.testing.assert_array_equal(scales(state), before)
    shape = rule.noise_shape(state.mechanism_state.rule_state)
    np.testing.assert_allclose(
      state.mechanism_state.stddev, 1.3 * np.asarray(shape), 1e-6
    )


def test_the_optax_stage_makes_the_same_step():
  rule = clipping.adaptive_layerwise(0.4)
  mechanism = mechanism_of(rule)
  step = train_step(rule)
  state, _ = step(step.init(PARAMS, KEY), BATCH)
  tx = optax.chain(mechanism.aggregate(KEY), optax.sgd(0.1))
  first, *rest = tx.init(PARAMS)
  norms = jaxdp.public_norms(loss_fn, rule)(PARAMS, PUBLIC)
  grads = jaxdp.per_example_grads(loss_fn)(PARAMS, BATCH)
  updates, _ = tx.update(grads, (mechanism.refresh(first, norms), *rest))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-6),
    state.params,
    optax.apply_updates(PARAMS, updates),
  )


def test_fit_follows_the_public_batch():
  state, history = jaxdp.fit(
    loss_fn,
    PARAMS,
    BATCH,
    mechanism_of(clipping.adaptive_layerwise(0.4)),
    optax.sgd(0.1),
    num_steps=2,
    delta=1e-3,
    public_batch=jaxdp.PublicBatch(PUBLIC, 1),
    progress=False,
  )
  assert (scales(state) != 1).any()
  assert "Public batches" in " ".join(history.statement.assumptions)


def test_a_public_batch_and_its_rule_need_each_other():
  rule = clipping.adaptive_layerwise(0.4)
  with pytest.raises(ValueError, match="pass public_batch="):
    jaxdp.make_train_step(loss_fn, mechanism_of(rule), optax.sgd(0.1))
  with pytest.raises(ValueError, match="public_batch is of no use to Flat"):
    train_step(clipping.flat(1.0))
  with pytest.raises(ValueError, match="every must be >= 1"):
    train_step(rule, every=0)


@pytest.mark.parametrize(
  "make",
  [
    clipping.adaptive_layerwise,
    clipping.preconditioned,
    clipping.adaptive_quantile,
  ],
)
def test_stages_without_the_release_refuse_rules_whose_state_moves(make):
  with pytest.raises(ValueError, match=r"Use mechanism\.aggregate"):
    jaxdp.clip_per_example(make(0.4))
  with pytest.raises(ValueError, match="has a state that moves"):
    jaxdp.clipped_sum(loss_fn, make(0.4))(PARAMS, BATCH)


def test_a_quantile_clip_norm_moves_with_what_was_released():
  rule = clipping.adaptive_quantile(0.4, budget_fraction=0.3)
  step = jaxdp.make_train_step(loss_fn, mechanism_of(rule), optax.sgd(0.1))
  state = step.init(PARAMS, KEY)
  first = np.asarray(state.mechanism_state.rule_state.l2_clip_norms)
  state, _ = step(state, BATCH)
  second = np.asarray(state.mechanism_state.rule_state.l2_clip_norms)
  assert (first != second).all()
  assert jnp.isfinite(second).all()
