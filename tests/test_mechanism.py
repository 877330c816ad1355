"""The release: its scale, its state, its checks and its key."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdp
from jaxdp import NeighboringRelation, PerExampleGrads, clipping, noise
from jaxdp.sampling import FixedSize, FullBatch, Poisson, Shuffled
from tests.rules import PARAMS, every_bounded_rule

ADD_OR_REMOVE_ONE = NeighboringRelation.ADD_OR_REMOVE_ONE
ZERO_OUT = NeighboringRelation.REPLACE_SPECIAL
REPLACE_ONE = NeighboringRelation.REPLACE_ONE

KEY = jax.random.key(3)
SAMPLERS = {
  "poisson": Poisson(num_examples=100, expected_batch_size=2.5),
  "fixed_size": FixedSize(num_examples=100, batch_size=4),
  "shuffled": Shuffled(num_examples=100, batch_size=4),
  "full_batch": FullBatch(num_examples=4),
}
every_sampler = pytest.mark.parametrize(
  "sampler", SAMPLERS.values(), ids=SAMPLERS
)
MASKED = np.zeros(4, bool)


def stacked(units=4, value=1.0):
  return {"w": jnp.full((units, 64), value), "v": jnp.full((units, 64), value)}


def sum_of(rule, units=4, value=1.0, mask=MASKED):
  grads = PerExampleGrads.from_stacked(stacked(units, value), mask)
  tx = optax.chain(jaxdp.clip_per_example(rule), jaxdp.sum_examples())
  return tx.update(grads, tx.init(grads.params_like))[0]


PARAMETERS = {"w": jnp.zeros(64), "v": jnp.zeros(64)}
FLAT = clipping.flat(0.7)


def plain(sigma=1.5, rule=FLAT, **kwargs):
  return jaxdp.Mechanism(rule, FullBatch(4), sigma, **kwargs)


# The scale of the noise.


@every_bounded_rule
@every_sampler
def test_stddev_is_sigma_times_factor_times_bound_times_shape(rule, sampler):
  """METHODS 5.7, for every relation that the sampler supports."""
  state = rule.init(PARAMS)
  shape = np.asarray(rule.noise_shape(state), np.float64)
  for relation in sampler.relations:
    mechanism = jaxdp.Mechanism(rule, sampler, 1.5, relation)
    factor = 2 if relation == REPLACE_ONE else 1
    np.testing.assert_allclose(
      mechanism.stddev(state), 1.5 * factor * rule.bound * shape, 1e-6
    )


@pytest.mark.parametrize("allocation", ["global", "equal", "weighted"])
@pytest.mark.parametrize("sigma", [0.5, 3.0])
def test_mu_does_not_depend_on_the_noise_allocation(allocation, sigma):
  """METHODS 5.7: sqrt(sum (c R_l / std_l)^2) is 1 / sigma for each gamma."""
  radii = {"head": 0.3, ".*": 0.7}
  rule = clipping.groupwise(radii, noise_allocation=allocation)
  for relation, factor in ((ADD_OR_REMOVE_ONE, 1), (REPLACE_ONE, 2)):
    mechanism = plain(sigma, rule, neighboring_relation=relation)
    stddev = np.asarray(mechanism.stddev(rule.init(PARAMS)), np.float64)
    shares = factor * np.array([0.3, 0.7]) / stddev
    np.testing.assert_allclose(np.linalg.norm(shares), 1 / sigma, 1e-6)


def test_released_noise_has_the_stated_scale_in_every_group():
  """Empirical, by group, against `noise_stddev`; the sum itself is zero."""
  n = 50_000
  params = {"body": jnp.zeros(n), "head": jnp.zeros(n)}
  rule = clipping.groupwise(
    {"head": 0.3, ".*": 20.0}, noise_allocation="weighted"
  )
  mechanism = jaxdp.Mechanism(rule, SAMPLERS["fixed_size"], 1.5)
  tx = mechanism.aggregate(KEY)
  zeros = jax.tree.map(lambda p: jnp.zeros((4, n)), params)
  mean, state = tx.update(zeros, tx.init(params))
  stated = mechanism.noise_stddev(state, params)
  expected = 1.5 * 2 * rule.noise_shape(rule.init(params)) / 4
  np.testing.assert_allclose([stated["head"], stated["body"]], expected, 1e-6)
  for name, x in mean.items():
    scale = float(jnp.std(x)) / float(stated[name])
    assert abs(scale - 1) < 5 / math.sqrt(2 * n)
    assert abs(scale * 2 / 3 - 1) > 5 / math.sqrt(2 * n)  # control
    assert abs(scale * 3 / 2 - 1) > 5 / math.sqrt(2 * n)


def test_replace_one_doubles_the_noise_at_an_equal_multiplier():
  for sampler in (SAMPLERS["poisson"], SAMPLERS["full_batch"]):
    one, two = (
      jaxdp.Mechanism(FLAT, sampler, 1.5, relation).stddev(())
      for relation in (ADD_OR_REMOVE_ONE, REPLACE_ONE)
    )
    np.testing.assert_array_equal(two, 2 * one)
    zero_out = jaxdp.Mechanism(FLAT, sampler, 1.5, ZERO_OUT).stddev(())
    np.testing.assert_array_equal(zero_out, one)


def test_sum_is_divided_by_the_expected_number_of_units():
  """Not by the rows, and not by the units that are there (2 of 12 here)."""
  sampler = SAMPLERS["poisson"]
  rows = sampler.batch_size
  mask = np.arange(rows) > 1
  summed = sum_of(FLAT, rows, 1e-3, mask)
  mechanism = jaxdp.Mechanism(FLAT, sampler, 0.0)
  mean, _ = mechanism.release(summed, mechanism.init(PARAMETERS, KEY))
  np.testing.assert_allclose(mean["w"], 2e-3 / 2.5, 1e-6)


def test_release_is_sum_plus_noise_over_units_in_float32():
  """By hand, with leaves of two dtypes: noise first, then the cast."""
  mechanism = plain()
  summed = dataclasses.replace(
    sum_of(FLAT), dtypes=(jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32))
  )
  state = mechanism.init(PARAMETERS, KEY)
  mean, _ = mechanism.release(summed, state)
  std = 1.5 * 0.7
  noisy = noise.add_gaussian_noise(
    jax.random.fold_in(KEY, 0), summed.grads, {"v": std, "w": std}
  )
  assert mean["v"].dtype == jnp.bfloat16
  assert mean["w"].dtype == jnp.float32
  np.testing.assert_array_equal(
    mean["v"], (noisy["v"] / 4).astype(jnp.bfloat16)
  )
  np.testing.assert_allclose(mean["w"], noisy["w"] / 4, 1e-6)


def test_an_empty_batch_is_a_step_of_noise():
  sampler = SAMPLERS["poisson"]
  rows = sampler.batch_size
  mechanism = jaxdp.Mechanism(FLAT, sampler, 1.0)
  summed = sum_of(FLAT, rows, mask=np.ones(rows, bool))
  mean, _ = mechanism.release(summed, mechanism.init(PARAMETERS, KEY))
  assert 0.5 * 0.7 / 2.5 < float(jnp.std(mean["w"])) < 2 * 0.7 / 2.5


# State.


def test_count_moves_and_the_key_stays():
  mechanism = plain()
  summed = sum_of(FLAT)
  state = mechanism.init(PARAMETERS, KEY)
  means = []
  for step in range(3):
    assert state.count == step
    mean, state = mechanism.release(summed, state)
    means.append(np.asarray(mean["w"]))
    np.testing.assert_array_equal(state.key, jax.random.key_data(KEY))
    np.testing.assert_allclose(state.stddev, [1.5 * 0.7], 1e-6)
  assert not np.isin(means[0], means[1]).any()
  assert not np.isin(means[1], means[2]).any()


def test_a_step_can_be_made_again_from_its_count():
  mechanism = plain()
  summed = sum_of(FLAT)
  state = mechanism.init(PARAMETERS, KEY)
  _, state = mechanism.release(summed, state)
  first, _ = mechanism.release(summed, state)
  again = state._replace(count=jnp.int32(1))
  jax.tree.map(
    np.testing.assert_array_equal, mechanism.release(summed, again)[0], first
  )


def test_state_made_for_other_parameters_is_refused():
  """It would pair groups with the noise of others: less noise for some."""
  rule = clipping.groupwise({"w": 10.0, ".*": 0.1}, noise_allocation="equal")
  mechanism = plain(rule=rule)
  state = mechanism.init(PARAMETERS, KEY)
  grads = PerExampleGrads.from_stacked({"v": None, "w": jnp.ones((4, 64))})
  tx = optax.chain(jaxdp.clip_per_example(rule), jaxdp.sum_examples())
  summed, _ = tx.update(grads, tx.init(grads.params_like))
  with pytest.raises(ValueError, match=r"2 noise scales.*1 groups.*trained"):
    mechanism.release(summed, state)


def test_order_of_groups_does_not_depend_on_what_is_frozen():
  rule = clipping.groupwise({"k": 10.0, ".*": 0.1}, noise_allocation="equal")
  params = {"a": jnp.zeros(3), "b_k": jnp.zeros(3), "c": jnp.zeros(3)}
  some = {**params, "a": None}
  for tree in (params, some):
    assert clipping.assign_groups(rule, tree).names == (0, 1)
  stddev = plain(rule=rule).init(params, KEY).stddev
  np.testing.assert_array_equal(stddev, plain(rule=rule).init(some, KEY).stddev)


def test_noise_multiplier_is_an_axis_and_needs_no_other_compile():
  """A study stacks mechanisms and runs them as one program."""
  summed = sum_of(FLAT)
  mechanisms = [plain(sigma) for sigma in (0.0, 1.0, 4.0)]
  traces = []

  @jax.jit
  def released(mechanism):
    traces.append(1)
    # The sum is of a rule that is traced here.
    own = dataclasses.replace(
      summed, tag=jaxdp.aggregation.rule_tag(mechanism.rule)
    )
    state = mechanism.init(PARAMETERS, KEY)
    return mechanism.release(own, state)[0]["w"]

  alone = [released(m) for m in mechanisms]
  assert len(traces) == 1
  together = jax.vmap(released)(
    jax.tree.map(lambda *x: jnp.stack([*map(jnp.float32, x)]), *mechanisms)
  )
  np.testing.assert_allclose(together, alone, 1e-5, 1e-6)
  base = alone[0]
  np.testing.assert_allclose(alone[2] - base, 4 * (alone[1] - base), 1e-4, 1e-5)


# What a release refuses.


def test_a_sum_of_another_rule_is_refused():
  state = plain().init(PARAMETERS, KEY)
  for other in (clipping.flat(0.7000001), clipping.normalized(0.7)):
    with pytest.raises(
      ValueError, match=r"clipped by.*its noise would not fit"
    ):
      plain().release(sum_of(other), state)


def test_a_sum_of_another_number_of_rows_is_refused():
  with pytest.raises(ValueError, match=r"over 3 rows.*have 4"):
    plain().release(sum_of(FLAT, 3, mask=None), plain().init(PARAMETERS, KEY))


def test_a_batch_that_may_be_padded_needs_its_mask():
  mechanism = jaxdp.Mechanism(FLAT, SAMPLERS["poisson"], 1.0)
  rows = SAMPLERS["poisson"].batch_size
  state = mechanism.init(PARAMETERS, KEY)
  with pytest.raises(ValueError, match=r"Poisson may hold padding.*mask"):
    mechanism.release(sum_of(FLAT, rows, mask=None), state)
  tx = mechanism.aggregate(KEY)
  with pytest.raises(ValueError, match=r"Poisson may hold padding.*mask"):
    tx.update(stacked(rows), tx.init(PARAMETERS))
  plain().release(sum_of(FLAT, mask=None), plain().init(PARAMETERS, KEY))


@pytest.mark.parametrize("what", [stacked(), {"w": jnp.zeros(3)}, 1.0])
def test_what_is_not_a_clipped_sum_is_refused(what):
  with pytest.raises(ValueError, match=r"ClippedSum.*got"):
    plain().release(what, plain().init(PARAMETERS, KEY))


def test_keys_that_are_not_fit_for_noise_are_refused_at_init():
  with pytest.raises(ValueError, match="threefry2x32"):
    plain().init(PARAMETERS, jax.random.key(0, impl="rbg"))
  with pytest.raises(ValueError, match="threefry2x32"):
    plain().aggregate(jax.random.key(0, impl="rbg")).init(PARAMETERS)


# The key is data.


WORDS = np.array([0xC0FFEE11, 0xBADC0DE5], np.uint32)
SECRET = jax.random.wrap_key_data(jnp.asarray(WORDS), impl="threefry2x32")


def mentions_of_the_key(text):
  """Every way in which a program may spell one of the two words."""
  found = []
  for word in WORDS:
    spellings = {
      str(int(word)),
      str(int(word.astype(np.int32))),
      f"{int(word):08x}",
      word.tobytes().hex(),
    }
    found += [
      s for s in spellings if re.search(re.escape(s), text, re.IGNORECASE)
    ]
  return found


@pytest.fixture(scope="module")
def secret_chains():
  mechanism = plain()
  return {
    "aggregate": mechanism.aggregate(SECRET),
    "chain": optax.chain(
      jaxdp.clip_per_example(FLAT),
      jaxdp.sum_examples(),
      mechanism.privatize(SECRET),
      optax.sgd(0.1),
    ),
    "dp_sgd": jaxdp.optimizers.dp_sgd(mechanism, SECRET, 0.1),
  }


@pytest.mark.parametrize("name", ["aggregate", "chain", "dp_sgd"])
def test_the_key_is_no_constant_of_the_lowered_program(secret_chains, name):
  tx = secret_chains[name]
  lowered = jax.jit(tx.update).lower(stacked(), tx.init(PARAMETERS))
  assert not mentions_of_the_key(lowered.as_text())


def test_the_key_is_no_constant_of_the_compiled_program(secret_chains):
  tx = secret_chains["aggregate"]
  lowered = jax.jit(tx.update).lower(stacked(), tx.init(PARAMETERS))
  assert not mentions_of_the_key(lowered.compile().as_text())


def test_a_key_that_is_closed_over_would_be_found(secret_chains):
  """Control, for both texts."""
  tx = secret_chains["aggregate"]
  state = tx.init(PARAMETERS)
  lowered = jax.jit(lambda grads: tx.update(grads, state)).lower(stacked())
  assert len(mentions_of_the_key(lowered.as_text())) >= 2
  assert len(mentions_of_the_key(lowered.compile().as_text())) >= 2
