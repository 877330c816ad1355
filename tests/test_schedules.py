"""Schedules of noise and clip norm: what runs is what is charged."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxdp
from jaxdp import PiecewiseConstant, clipping
from tests import toy

LEVELS = {0: 1.0, 3: 0.5, 5: 2.0}
FACTORS = [1.0, 1.0, 1.0, 0.5, 0.5, 2.0, 2.0]
SCHEDULE = PiecewiseConstant(LEVELS)


# The schedule.


def test_a_step_has_the_factor_of_its_level():
  factors = jax.vmap(SCHEDULE)(jnp.arange(7))
  np.testing.assert_array_equal(factors, FACTORS)
  assert PiecewiseConstant(list(LEVELS.items())) == SCHEDULE
  assert hash(SCHEDULE) == hash(PiecewiseConstant(SCHEDULE.levels))


@given(st.integers(0, 9), st.integers(0, 9))
def test_pieces_are_the_steps_level_by_level(first, count):
  pieces = list(SCHEDULE.pieces(first, count))
  steps = [s for begin, n, _ in pieces for s in range(begin, begin + n)]
  assert steps == list(range(first, first + count))
  for begin, n, factor in pieces:
    assert {float(SCHEDULE(s)) for s in range(begin, begin + n)} == {factor}


@pytest.mark.parametrize(
  "levels, message",
  [
    ({}, "from step 0"),
    ({1: 1.0}, "from step 0"),
    ([(0, 1.0), (5, 2.0), (5, 3.0)], "rising order"),
    ({0: 1.0, -1: 2.0}, "rising order"),
    ({0: "much"}, "from step 0"),
    (1.0, "from step 0"),
    ({0: 0.0}, "> 0 and finite"),
    ({0: 1.0, 1: float("nan")}, "> 0 and finite"),
    (dict.fromkeys(range(33), 1.0), "at most 32"),
  ],
)
def test_what_is_no_schedule_is_refused(levels, message):
  with pytest.raises(ValueError, match=message):
    PiecewiseConstant(levels)


# Clip norms.


@pytest.mark.parametrize(
  "make",
  [
    clipping.flat,
    clipping.normalized,
    clipping.per_layer,
    lambda c: clipping.groupwise({"a": c, "b": 2 * c}),
    lambda c: clipping.automatic(c, gamma=0.0),
    clipping.preconditioned,
  ],
  ids=["flat", "normalized", "per_layer", "groupwise", "automatic", "precond"],
)
def test_a_scheduled_rule_is_the_rule_of_its_clip_norm(make):
  params = {"a": {"kernel": jnp.ones(3)}, "b": {"kernel": jnp.ones(5)}}
  rule = clipping.scheduled(make(0.7), LEVELS)
  state = rule.init(params)
  groups = len(clipping.assign_groups(rule, params).names)
  norms = jnp.broadcast_to(jnp.geomspace(1e-3, 1e3, 9), (groups, 9))
  for factor in FACTORS:
    plain = make(0.7 * factor)
    at = plain.init(params)
    np.testing.assert_allclose(
      rule.weights(norms, state), plain.weights(norms, at), 1e-5
    )
    np.testing.assert_allclose(
      rule.noise_shape(state), plain.noise_shape(at), 1e-6
    )
    state = rule.update(state, jnp.zeros(0))


def test_a_scheduled_rule_hands_on_public_norms():
  base = clipping.adaptive_layerwise(0.7)
  params = {"a": {"kernel": jnp.ones(3)}, "b": {"kernel": jnp.ones(5)}}
  rule = clipping.scheduled(base, LEVELS)
  norms = jnp.array([1.0, 3.0])
  state = rule.refresh(rule.init(params), norms)
  expected = base.refresh(base.init(params), norms)
  np.testing.assert_array_equal(
    rule.noise_shape(state), base.noise_shape(expected)
  )
  assert rule.needs_public_norms


@pytest.mark.parametrize(
  "make, message",
  [
    (clipping.no_clipping, "NoClipping has no clip norm"),
    (lambda: clipping.adaptive_quantile(1.0), "AdaptiveQuantile has no clip"),
    (lambda: clipping.scheduled(clipping.flat(1.0), LEVELS), "Scheduled has"),
    (lambda: clipping.flat(1e-12), "between 1e-12 and 1e18"),
    (lambda: clipping.groupwise({".*": 1e-12}), "between 1e-12 and 1e18"),
  ],
  ids=["none", "quantile", "twice", "flat-tiny", "groups-tiny"],
)
def test_a_rule_whose_clip_norm_cannot_move_is_refused(make, message):
  with pytest.raises(ValueError, match=message):
    clipping.scheduled(make(), LEVELS)


# Noise.


def test_noise_has_the_scale_that_is_charged():
  """Zero gradients, so that what is released is the noise of its step."""
  n = 20_000
  mechanism = jaxdp.Mechanism(
    clipping.flat(0.5),
    jaxdp.sampling.FullBatch(4),
    1.5,
    noise_schedule=SCHEDULE,
  )
  tx = mechanism.aggregate(jax.random.key(0))
  params = {"w": jnp.zeros(n)}
  state, update = tx.init(params), jax.jit(tx.update)
  plan = jaxdp.accounting.Plan.of(mechanism)
  for step, factor in enumerate(FACTORS):
    mean, state = update({"w": jnp.zeros((4, n))}, state)
    (charged,) = plan.noise_multipliers(step, 1)
    assert charged == 1.5 * factor
    stated = mechanism.noise_stddev(state, params)["w"]
    assert float(stated) == pytest.approx(charged * 0.5 / 4, rel=1e-6)
    scale = float(jnp.std(mean["w"])) / float(stated)
    assert abs(scale - 1) < 5 / np.sqrt(2 * n)


def test_a_clip_norm_moves_its_noise_and_costs_nothing():
  plain = toy.mechanism()
  moved = plain.replace(rule=clipping.scheduled(plain.rule, LEVELS))
  assert moved.epsilon(7, 1e-5) == plain.epsilon(7, 1e-5)
  state = moved.rule.init(toy.params())
  for factor in FACTORS:
    np.testing.assert_allclose(
      moved.stddev(state), factor * plain.stddev(()), 1e-6
    )
    state = moved.rule.update(state, jnp.zeros(0))


def test_noise_of_a_schedule_is_calibrated_as_a_whole():
  mechanism = jaxdp.calibrate_noise(
    toy.mechanism(noise_multiplier=None).replace(noise_schedule=SCHEDULE),
    target_epsilon=2.0,
    target_delta=1e-5,
    num_steps=7,
  )
  assert 0.999 * 2 <= mechanism.epsilon(7, 1e-5) <= 2
  mu = np.sqrt(sum(f**-2 for f in FACTORS)) / mechanism.sigma
  assert mechanism.epsilon(7, 1e-5) == pytest.approx(
    jaxdp.accounting.gdp.epsilon(mu, 1e-5)
  )


# Training.


@pytest.fixture(scope="module")
def scheduled():
  mechanism = toy.mechanism()
  return mechanism.replace(
    rule=clipping.scheduled(mechanism.rule, {0: 1.0, 6: 0.5}),
    noise_schedule=SCHEDULE,
  )


@pytest.mark.parametrize(
  "steps_per_call", [pytest.param(1, marks=pytest.mark.slow), "auto"]
)
def test_fit_runs_and_charges_every_level(scheduled, steps_per_call):
  state, history = toy.fit(
    mechanism=scheduled,
    optimizer=optax.sgd(0.5),
    seed=5,
    performance=jaxdp.PerformanceFlags(steps_per_call=steps_per_call),
  )
  steps = int(state.step)
  assert history.ledger.epsilon(toy.DELTA) == pytest.approx(
    scheduled.epsilon(steps, toy.DELTA), rel=1e-9
  )
  assert history.statement.noise_multiplier == (5.0, 2.5, 10.0)
  by_hand = hand_made(scheduled, state.mechanism_state.key, steps)
  np.testing.assert_allclose(
    state.params["kernel"], by_hand["kernel"], 1e-4, 1e-5
  )


def hand_made(scheduled, key, steps):
  """The same run from mechanisms that know nothing of schedules."""
  params = toy.params()
  base = scheduled.rule.base
  for t in range(steps):
    clip = base.l2_clip_norm * (1.0 if t < 6 else 0.5)
    factor = dict(enumerate(FACTORS)).get(t, 2.0)
    mechanism = jaxdp.Mechanism(
      clipping.flat(clip), scheduled.sampler, 5.0 * factor
    )
    summed, _ = jaxdp.clipped_sum(toy.loss_fn, mechanism.rule)(
      params, toy.dataset()
    )
    noise_state = mechanism.init(params, jax.random.wrap_key_data(key))
    noise_state = noise_state._replace(count=jnp.int32(t))
    mean, _ = mechanism.release(summed, noise_state)
    params = optax.apply_updates(params, jax.tree.map(lambda g: -0.5 * g, mean))
  return params


def test_max_epsilon_stops_within_a_schedule(scheduled):
  limit = scheduled.epsilon(5, toy.DELTA)
  state, history = toy.fit(mechanism=scheduled, max_epsilon=limit, seed=5)
  assert (int(state.step), history.stopped_by_budget) == (5, True)
  assert history.statement.epsilon <= limit
