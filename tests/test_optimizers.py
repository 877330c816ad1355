"""DP optimizers: a release, then what optax would have done with it."""

import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import jaxdp
from jaxdp import PerExampleGrads, clipping, optimizers
from jaxdp.sampling import FullBatch, Poisson

KEY = jax.random.key(17)
UNITS = 6
PARAMS = {"bias": jnp.zeros(3), "kernel": jnp.ones((4, 3))}
SAMPLER = FullBatch(UNITS)


@pytest.fixture(autouse=True)
def _standard_promotion():
  # optax.adam raises a float to the integer step count.
  with jax.numpy_dtype_promotion("standard"):
    yield


def grads_of(step, scale=1.0, units=UNITS):
  rng = np.random.default_rng(step)
  return jax.tree.map(
    lambda p: scale * rng.standard_normal((units, *p.shape), np.float32), PARAMS
  )


def mechanism_of(sigma=1.3, rule=clipping.flat(0.7), sampler=SAMPLER):  # noqa: B008
  return jaxdp.Mechanism(rule, sampler, sigma)


def run(tx, steps=3, scale=1.0, params=PARAMS):
  """Updates of several steps, op by op: compiling the noise takes longer."""
  state, updates = tx.init(params), []
  for step in range(steps):
    update, state = tx.update(grads_of(step, scale), state, params)
    updates.append(update)
  return updates


def assert_close(a, b, rtol=1e-6, atol=1e-7):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol, atol), a, b)


# One row an optimizer: ours, and the optax optimizer after the release.
ROWS = {
  "dp_sgd": (optimizers.dp_sgd, optax.sgd),
  "dp_adam": (optimizers.dp_adam, optax.adam),
  "dp_adam_bc": (optimizers.dp_adam_bc, None),
}
every_optimizer = pytest.mark.parametrize("name", ROWS)


def test_every_public_optimizer_has_a_row():
  public = {
    name
    for name, _ in inspect.getmembers(optimizers, inspect.isfunction)
    if name.startswith("dp_")
  }
  assert public == ROWS.keys()


@pytest.mark.parametrize("name, kwargs", [
  ("dp_sgd", {}),
  ("dp_sgd", {"momentum": 0.9}),
  ("dp_sgd", {"momentum": 0.9, "nesterov": True}),
  ("dp_adam", {}),
  ("dp_adam", {"b1": 0.8, "b2": 0.99, "eps": 1e-3}),
])  # fmt: skip
def test_dp_optimizer_is_a_release_and_then_the_optax_one(name, kwargs):
  ours, theirs = ROWS[name]
  mechanism = mechanism_of()
  a = run(ours(mechanism, KEY, 0.1, **kwargs))
  b = run(optax.chain(mechanism.aggregate(KEY), theirs(0.1, **kwargs)))
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", ["dp_sgd", "dp_adam"])
@pytest.mark.parametrize(
  "rule", [clipping.flat(1e6), clipping.no_clipping()], ids=["huge", "none"]
)
def test_no_noise_and_no_clipping_is_the_plain_step(name, rule):
  """METHODS 5.12: on the sum over q N, here with padding in the batch."""
  sampler = Poisson(num_examples=50, expected_batch_size=2.5)
  rows, real = sampler.batch_size, 4
  ours, theirs = (make for make in ROWS[name])
  tx = ours(mechanism_of(0.0, rule, sampler), KEY, 0.1)
  plain = theirs(0.1)
  state, plain_state = tx.init(PARAMS), plain.init(PARAMS)
  for step in range(2):
    stacked = grads_of(step, units=rows)
    grads = PerExampleGrads.from_stacked(stacked, np.arange(rows) >= real)
    mean = jax.tree.map(lambda g: g[:real].sum(axis=0) / 2.5, stacked)
    updates, state = tx.update(grads, state, PARAMS)
    expected, plain_state = plain.update(mean, plain_state, PARAMS)
    assert_close(updates, expected, 1e-5, 1e-6)


def test_clipping_without_noise_is_that_of_optax():
  """The outside reference; optax divides by the rows, which are UNITS."""
  theirs = optax.contrib.differentially_private_aggregate(0.7, 0.0, KEY)
  ours = mechanism_of(0.0).aggregate(KEY)
  assert_close(run(ours), run(theirs), 1e-5, 1e-6)


# DP-AdamBC.


def scaled_moments(means, stddevs, b1, b2, floor):
  """METHODS 3.6 by hand, in float64; one leaf."""
  m = v = phi = 0.0
  out = []
  for t, (mean, std) in enumerate(zip(means, stddevs, strict=True), 1):
    mean = np.asarray(mean, np.float64)
    m = b1 * m + (1 - b1) * mean
    v = b2 * v + (1 - b2) * mean**2
    phi = b2 * phi + (1 - b2) * std**2
    corrected = v / (1 - b2**t) - phi / (1 - b2**t)
    out.append(m / (1 - b1**t) / np.sqrt(np.maximum(corrected, floor)))
  return out


def test_adam_bc_without_noise_has_the_floored_root_as_denominator():
  """METHODS 5.12 and 3.6, std = 0: sqrt(max(v, floor))."""
  mechanism = mechanism_of(0.0)
  means = run(mechanism.aggregate(KEY))
  updates = run(
    optimizers.dp_adam_bc(mechanism, KEY, 0.1, b1=0.8, b2=0.9, floor=1e-3)
  )
  for name in PARAMS:
    expected = scaled_moments(
      [m[name] for m in means], [0.0] * 3, 0.8, 0.9, 1e-3
    )
    got = [u[name] for u in updates]
    assert_close(got, [-0.1 * x for x in expected], 1e-5)


def test_adam_bc_takes_the_variance_of_each_groups_noise_out():
  """METHODS 3.6: Phi_l = (std_l / q N)^2, from the mechanism itself."""
  rule = clipping.groupwise(
    {"bias": 3.0, ".*": 0.2}, noise_allocation="weighted"
  )
  mechanism = mechanism_of(1.3, rule)
  means = run(mechanism.aggregate(KEY))
  updates = run(optimizers.dp_adam_bc(mechanism, KEY, 0.1, floor=1e-4))
  shape = rule.noise_shape(rule.init(PARAMS))
  stddevs = dict(zip(["bias", "kernel"], 1.3 * shape / UNITS, strict=True))
  for name, std in stddevs.items():
    expected = scaled_moments(
      [m[name] for m in means], [float(std)] * 3, 0.9, 0.999, 1e-4
    )
    assert_close([u[name] for u in updates], [-0.1 * x for x in expected], 1e-3)


@pytest.mark.parametrize("steps", [1, 2, 50])
def test_constant_noise_is_corrected_by_exactly_its_variance(steps):
  """METHODS 3.6: Phi = (std / B)^2, whatever the step and the decay."""
  tx = optimizers.scale_by_adam_bc(b2=0.99)
  params, std = {"w": jnp.zeros(3)}, {"w": jnp.float32(0.25)}
  update = jax.jit(functools.partial(tx.update, noise_stddev=std))
  state = tx.init(params)
  for _ in range(steps):
    _, state = update({"w": jnp.ones(3)}, state)
  phi = float(state.noise_nu["w"]) / (1 - 0.99**steps)
  assert abs(phi / 0.25**2 - 1) < 1e-5


def test_scheduled_noise_is_averaged_as_the_second_moment_is():
  """METHODS 3.6: Phi_t = (1-b2)/(1-b2^t) sum_s b2^(t-s) (std_s / q N)^2."""
  stddevs, b2 = [0.5, 0.1, 0.3, 0.0], 0.9
  tx = optimizers.scale_by_adam_bc(0.0, b2, floor=1e-6)
  state = tx.init({"w": jnp.zeros(2)})
  for std in stddevs:
    scaled, state = tx.update(
      {"w": jnp.full(2, 2.0)}, state, noise_stddev={"w": jnp.float32(std)}
    )
  weights = b2 ** np.arange(3, -1, -1) * (1 - b2) / (1 - b2**4)
  phi = np.sum(weights * np.square(stddevs))
  np.testing.assert_allclose(scaled["w"], 2 / math.sqrt(4 - phi), 1e-6)


def test_floor_stands_where_noise_exceeds_the_second_moment():
  tx = optimizers.scale_by_adam_bc(floor=0.04)
  updates, _ = tx.update(
    {"w": jnp.array([0.5, -0.5])},
    tx.init({"w": jnp.zeros(2)}),
    noise_stddev={"w": jnp.float32(100.0)},
  )
  np.testing.assert_allclose(updates["w"], [2.5, -2.5], 1e-5)


def test_adam_bc_is_at_home_under_strict_promotion():
  tx = optimizers.dp_adam_bc(mechanism_of(), KEY, 0.1)
  with jax.numpy_dtype_promotion("strict"):
    jax.eval_shape(
      lambda grads: tx.update(grads, tx.init(PARAMS), PARAMS), grads_of(0)
    )


def test_adam_bc_needs_the_noise_and_a_floor():
  tx = optimizers.adam_bc(0.1)
  with pytest.raises(ValueError, match="dp_adam_bc"):
    tx.update(PARAMS, tx.init(PARAMS), PARAMS)
  chained = optax.chain(mechanism_of().aggregate(KEY), tx)
  with pytest.raises(ValueError, match="noise_stddev=mechanism"):
    chained.update(grads_of(0), chained.init(PARAMS), PARAMS)
  for floor in (0.0, -1.0, math.nan):
    with pytest.raises(ValueError, match=f"floor={floor}"):
      optimizers.adam_bc(0.1, floor=floor)


# Identities that tie clip norm, rate and epsilon.


def sgd_run(rule, rate, sigma=1.3, scale=100.0):
  """At the default scale all norms are far above every clip norm used."""
  return run(
    optimizers.dp_sgd(mechanism_of(sigma, rule), KEY, rate), scale=scale
  )


def test_rate_and_clip_norm_trade_off_while_all_units_are_clipped():
  """METHODS 5.13 for flat: (lr, C) -> (lr / k, k C), noise included."""
  a = sgd_run(clipping.flat(0.5), 0.3)
  b = sgd_run(clipping.flat(2.0), 0.075)
  assert_close(a, b, 1e-5, 1e-6)
  # Control: not where nothing is clipped.
  a = sgd_run(clipping.flat(0.5), 0.3, 0.0, 1e-3)
  b = sgd_run(clipping.flat(2.0), 0.075, 0.0, 1e-3)
  assert_close(a[0]["bias"], 4 * b[0]["bias"], 1e-5)


def test_outer_momentum_of_zero_is_plain():
  """METHODS 5.9."""
  plain, none = (
    run(optimizers.dp_sgd(mechanism_of(), KEY, 0.3, momentum=momentum))
    for momentum in (None, 0.0)
  )
  jax.tree.map(np.testing.assert_array_equal, plain, none)


def test_normalized_does_not_depend_on_the_clip_norm_while_all_exceed_it():
  """METHODS 5.13."""
  a, b = (sgd_run(clipping.normalized(c), 0.3) for c in (0.5, 2.0))
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("scale", [0.05, 1.0, 100.0])
def test_adam_on_flat_is_adam_on_normalized_with_epsilon_over_c(scale):
  """METHODS 3.6 and 5.13, with noise, whatever is clipped."""
  clip, eps = 0.25, 1e-3
  a = run(
    optimizers.dp_adam(
      mechanism_of(rule=clipping.flat(clip)), KEY, 0.1, eps=eps
    ),
    scale=scale,
  )
  b = run(
    optimizers.dp_adam(
      mechanism_of(rule=clipping.normalized(clip)), KEY, 0.1, eps=eps / clip
    ),
    scale=scale,
  )
  assert_close(a, b, 1e-4, 1e-6)


# Use.


@every_optimizer
def test_state_keeps_its_structure_shapes_and_dtypes(name):
  tx = ROWS[name][0](mechanism_of(), KEY, 0.1)
  before = jax.eval_shape(tx.init, PARAMS)
  _, after = jax.eval_shape(tx.update, grads_of(0), before, PARAMS)
  assert before == after


@every_optimizer
def test_schedules_are_learning_rates(name):
  """At step t the rate is schedule(t), so the second update is 0 here."""
  schedule = optax.piecewise_constant_schedule(0.1, {1: 0.0})
  first, second = run(ROWS[name][0](mechanism_of(), KEY, schedule), 2)
  assert float(jnp.abs(first["bias"]).max()) > 0
  assert float(jnp.abs(second["bias"]).max()) == 0


@every_optimizer
def test_loss_falls_on_a_toy_problem(name):
  """Linear regression, 64 units, modest noise, a rate for each optimizer."""
  rng = np.random.default_rng(0)
  x = rng.standard_normal((64, 4)).astype(np.float32)
  batch = {"x": x, "y": x @ np.array([1, -2, 3, 0.5], np.float32)}

  def loss_fn(params, example):
    return 0.5 * jnp.square(example["x"] @ params["w"] - example["y"])

  mechanism = mechanism_of(1.0, clipping.flat(1.0), FullBatch(64))
  rate = {"dp_sgd": 0.5, "dp_adam": 0.2, "dp_adam_bc": 0.2}[name]
  kwargs = {"floor": 1e-3} if name == "dp_adam_bc" else {}
  tx = ROWS[name][0](mechanism, KEY, rate, **kwargs)
  grads_fn = jaxdp.per_example_grads(loss_fn)
  params = {"w": jnp.zeros(4)}

  def step(carry, _):
    params, state = carry
    updates, state = tx.update(grads_fn(params, batch), state, params)
    return (optax.apply_updates(params, updates), state), None

  def mean_loss(params):
    return jnp.mean(jax.vmap(loss_fn, (None, 0))(params, batch))

  (trained, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, None, 60))(
    (params, tx.init(params))
  )
  assert mean_loss(trained) < 0.1 * mean_loss(params)
