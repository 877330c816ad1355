"""One training step: equal to its parts, private in what it shows."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdp
from jaxdp import training
from tests import toy

SAMPLER = toy.poisson()
STEPS = 3
# Much faster to compile than plain SGD, which XLA fuses with the noise twice.
MOMENTUM = optax.sgd(0.5, momentum=0.9)


def run(step, key, sampler=SAMPLER, steps=STEPS, params=None, data=None):
  """The state after some steps, and what the last one reports."""
  state = step.init(toy.params() if params is None else params, key)
  for t in range(steps):
    batch, mask = toy.batch(sampler, t, data=data)
    state, info = step(state, batch, mask)
  return state, info


@pytest.fixture(scope="module")
def plain():
  """The default step, compiled once, and where it leads."""
  step = jaxdp.make_train_step(toy.loss_fn, toy.mechanism(SAMPLER), MOMENTUM)
  return step, *run(step, toy.key())


@pytest.fixture(scope="module")
def chain():
  """The same as a chain: `(params, opt_state, batch, mask)`, and its start."""
  mechanism = toy.mechanism(SAMPLER)
  tx = optax.chain(mechanism.aggregate(toy.key()), MOMENTUM)
  grads_fn = jaxdp.per_example_grads(toy.loss_fn)

  @jax.jit
  def step(params, opt_state, batch, mask):
    grads = grads_fn(params, batch, mask)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  return step, (toy.params(), tx.init(toy.params()))


def test_a_step_equals_the_optax_chain(plain, chain):
  step, carry = chain
  for t in range(STEPS):
    carry = step(*carry, *toy.batch(SAMPLER, t))
  toy.assert_close(plain[1].params, carry[0])
  assert float(jnp.linalg.norm(carry[0]["kernel"])) > 0.5  # it did move


def test_a_step_equals_the_fused_path(plain):
  mechanism = toy.mechanism(SAMPLER)
  sum_fn = jaxdp.clipped_sum(toy.loss_fn, mechanism.rule)

  @jax.jit
  def step(params, opt_state, state, batch, mask):
    summed, _ = sum_fn(params, batch, mask, state.rule_state)
    mean, state = mechanism.release(summed, state)
    updates, opt_state = MOMENTUM.update(mean, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, state

  params = toy.params()
  carry = params, MOMENTUM.init(params), mechanism.init(params, toy.key())
  for t in range(STEPS):
    carry = step(*carry, *toy.batch(SAMPLER, t))
  toy.assert_close(plain[1].params, carry[0])
  toy.assert_close(plain[1].mechanism_state, carry[2])


def test_another_key_gives_other_noise(plain):
  state, _ = run(plain[0], toy.key(8))
  gap = np.abs(state.params["kernel"] - plain[1].params["kernel"])
  # A step's noise has 0.5 * 5.0 / 12 = 0.2 of standard deviation.
  assert np.all(gap > 1e-3)


def test_without_a_mechanism_it_is_the_gradient_of_the_mean_over_real_rows():
  step = jaxdp.make_train_step(toy.loss_fn, None, MOMENTUM, diagnostics=True)
  state, info = run(step, toy.key())

  def mean_loss(params, batch, mask):
    losses = jax.vmap(toy.loss_fn, (None, 0))(params, batch)
    return jnp.sum(losses, where=~mask) / jnp.sum(~mask).astype(jnp.float32)

  @jax.jit
  def expected(params, opt_state, batch, mask):
    loss, grads = jax.value_and_grad(mean_loss)(params, batch, mask)
    updates, opt_state = MOMENTUM.update(grads, opt_state)
    return loss, optax.apply_updates(params, updates), opt_state

  carry = toy.params(), MOMENTUM.init(toy.params())
  for t in range(STEPS):
    batch, mask = toy.batch(SAMPLER, t)
    loss, *carry = expected(*carry, batch, mask)
  toy.assert_close(state.params, carry[0])
  np.testing.assert_allclose(info.sensitive.train_loss, loss, rtol=1e-5)
  assert int(info.sensitive.num_units) == np.sum(~mask)

  before = jax.tree.map(np.asarray, state.params)
  frozen_state = state._replace(opt_state=MOMENTUM.init(state.params))
  state, _ = step(frozen_state, batch, np.ones_like(mask))
  toy.assert_same(state.params, before)


def test_a_batch_of_padding_is_a_step_of_noise_alone(plain, chain):
  batch, mask = toy.batch(SAMPLER)
  state = plain[0].init(toy.params(), toy.key())
  state, info = plain[0](state, batch, np.ones_like(mask))
  params, _ = chain[0](*chain[1], batch, np.ones_like(mask))
  toy.assert_close(state.params, params)
  assert info.update_norm > 0.1


@pytest.fixture(scope="module")
def averaging():
  """A step that averages; 0.2 < (1 + t) / (10 + t) from the second step on."""
  return jaxdp.make_train_step(
    toy.loss_fn, toy.mechanism(SAMPLER), MOMENTUM, ema_decay=0.2
  )


def test_averaged_parameters_follow_their_formula(averaging):
  state = averaging.init(toy.params(), toy.key())
  average = jax.tree.map(np.asarray, toy.params())
  for t in range(4):
    state, _ = averaging(state, *toy.batch(SAMPLER, t))
    keep = min(0.2, (1 + t) / (10 + t))
    average = jax.tree.map(
      lambda a, p, keep=keep: keep * a + (1 - keep) * np.asarray(p),
      average,
      state.params,
    )
  toy.assert_close(state.ema_params, average)
  toy.assert_same(training.released_params(state), state.ema_params)


def test_without_averaging_the_last_parameters_are_released(plain):
  assert plain[1].ema_params == ()
  toy.assert_same(training.released_params(plain[1]), plain[1].params)


def test_frozen_leaves_have_no_gradient_no_noise_and_no_optimizer_state():
  params = {**toy.params(), "bias": jnp.zeros(3), "constant": jnp.arange(3)}

  def loss_fn(params, example):
    loss = toy.loss_fn(params, example)
    constant = jnp.sum(params["constant"]).astype(jnp.float32)
    return loss + jnp.sum(params["bias"] * example["x"][:3]) + constant

  step = jaxdp.make_train_step(
    loss_fn,
    toy.mechanism(SAMPLER),
    MOMENTUM,
    trainable=lambda name, leaf: name == "kernel",
    ema_decay=0.5,
  )
  state, _ = run(step, toy.key(), params=params)
  for name in ("bias", "constant"):
    toy.assert_same(state.params[name], params[name])
    toy.assert_same(state.ema_params[name], params[name])
  assert len(jax.tree.leaves(state.opt_state)) == 1
  assert np.all(np.asarray(state.params["kernel"] != params["kernel"]))


def random_loss(params, example, key):
  """The gradient is noise of the example's own key."""
  weights = jax.random.normal(key, params["kernel"].shape)
  return jnp.sum(params["kernel"] * weights) + toy.loss_fn(params, example)


@pytest.mark.slow
@pytest.mark.parametrize("microbatch_size, devices", [(5, None), (5, 2)])
def test_keys_of_examples_are_the_same_for_any_slicing(
  microbatch_size, devices
):
  def make(**kwargs):
    return jaxdp.make_train_step(
      random_loss,
      toy.mechanism(SAMPLER),
      MOMENTUM,
      has_key=True,
      **kwargs,
    )

  whole, _ = run(make(), toy.key())
  mesh = None
  if devices:
    mesh = training.data_mesh(jax.devices()[:devices])
  step = make(microbatch_size=microbatch_size, mesh=mesh)
  state = step.init(toy.params(), toy.key())
  order = np.arange(24).reshape(-1, devices or 1).T.ravel()
  for t in range(STEPS):
    batch, mask = toy.batch(SAMPLER, t)
    batch = {k: v[order] for k, v in batch.items()}
    state, _ = step(state, batch, mask[order])
  toy.assert_close(state.params, whole.params)


def test_keys_differ_between_examples_and_steps():
  def loss_fn(params, example, key):
    return params["w"] * jax.random.normal(key, ())

  step = jaxdp.make_train_step(
    loss_fn,
    toy.mechanism(SAMPLER, 0.0, jaxdp.clipping.flat(1e-3)),
    optax.sgd(1.0),
    has_key=True,
    diagnostics=True,
  )
  state = step.init({"w": jnp.zeros(())}, toy.key())
  quantiles = []
  for t in range(2):
    state, info = step(state, *toy.batch(SAMPLER, t))
    quantiles.append(np.asarray(info.sensitive.grad_norm_quantiles))
  assert np.all(np.diff(quantiles[0]) > 0)  # examples
  assert np.all(quantiles[0] != quantiles[1])  # steps


def recording():
  """Momentum SGD that keeps the noise it was told of, by leaf, in its state."""

  def init_fn(params):
    return jax.tree.map(lambda _: jnp.float32(-1), params)

  def update_fn(updates, state, params=None, *, noise_stddev, **extra_args):
    return updates, noise_stddev

  recorder = optax.GradientTransformationExtraArgs(init_fn, update_fn)
  return optax.chain(recorder, MOMENTUM)


@pytest.mark.parametrize(
  "mechanism, stddev", [(toy.mechanism(SAMPLER), 5.0 * 0.5 / 12), (None, 0.0)]
)
def test_optimizers_are_told_the_noise_of_the_mean(mechanism, stddev):
  step = jaxdp.make_train_step(toy.loss_fn, mechanism, recording())
  state, _ = run(step, toy.key(), steps=1)
  told = state.opt_state[0]["kernel"]
  np.testing.assert_allclose(told, stddev, rtol=1e-6)


@pytest.mark.slow
def test_a_step_with_corrected_adam_equals_its_chain():
  mechanism = toy.mechanism(SAMPLER)
  step = jaxdp.make_train_step(
    toy.loss_fn, mechanism, jaxdp.optimizers.adam_bc(0.1, floor=1e-3)
  )
  state, _ = run(step, toy.key())
  tx = jaxdp.optimizers.dp_adam_bc(mechanism, toy.key(), 0.1, floor=1e-3)
  grads_fn = jaxdp.per_example_grads(toy.loss_fn)

  @jax.jit
  def chained(params, opt_state, batch, mask):
    grads = grads_fn(params, batch, mask)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  carry = toy.params(), tx.init(toy.params())
  for t in range(STEPS):
    carry = chained(*carry, *toy.batch(SAMPLER, t))
  toy.assert_close(state.params, carry[0], rtol=1e-4)


def test_nothing_sensitive_is_reported_unless_asked_for(plain):
  info = plain[2]
  assert info.sensitive is None
  assert info._fields == ("update_norm", "sensitive")
  step = plain[0]
  before = step.init(toy.params(), toy.key())
  expected = np.concatenate(
    [np.ravel(x) for x in jax.tree.leaves(before.params)]
  )
  after, info = step(before, *toy.batch(SAMPLER))
  actual = np.concatenate([np.ravel(x) for x in jax.tree.leaves(after.params)])
  np.testing.assert_allclose(
    info.update_norm, np.linalg.norm(actual - expected), rtol=1e-5
  )


def test_diagnostics_are_those_of_a_loop_over_examples():
  data = toy.dataset()
  batch, mask = toy.batch(SAMPLER, data=data)
  batch["x"][1] = np.nan  # a real row: the sampler pads at the end
  mechanism = toy.mechanism(SAMPLER, rule=jaxdp.clipping.flat(2.1))
  step = jaxdp.make_train_step(
    toy.loss_fn, mechanism, MOMENTUM, diagnostics=True
  )
  state = step.init(toy.params(), toy.key())
  _, info = step(state, batch, mask)
  one = jax.jit(jax.value_and_grad(toy.loss_fn))
  losses, norms = [], []
  for i in np.flatnonzero(~mask):
    loss, grad = one(toy.params(), {k: v[i] for k, v in batch.items()})
    if i != 1:
      losses.append(float(loss))
      norms.append(np.linalg.norm(grad["kernel"]))
  norms = np.array(norms)
  seen = info.sensitive
  assert 0 < np.mean(norms > 2.1) < 1
  np.testing.assert_allclose(seen.train_loss, np.mean(losses), rtol=1e-5)
  np.testing.assert_allclose(seen.clip_fraction, np.mean(norms > 2.1))
  np.testing.assert_allclose(
    seen.grad_norm_quantiles,
    np.quantile(norms, [0.05, 0.25, 0.5, 0.75, 0.95]),
    rtol=1e-5,
  )
  assert seen.num_units == len(norms) + 1
  assert seen.num_dropped == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_image_that_is_not_finite_drops_its_unit_and_moves_nothing_else(
  plain, value
):
  step = plain[0]
  batch, mask = toy.batch(SAMPLER)
  padded = mask.copy()
  padded[2] = True
  expected, _ = step(step.init(toy.params(), toy.key()), batch, padded)
  batch["x"][2, 1] = value
  state, _ = step(step.init(toy.params(), toy.key()), batch, mask)
  toy.assert_same(state.params, expected.params)


def test_the_state_is_donated_and_the_parameters_given_are_not(averaging):
  params = toy.params()
  before = averaging.init(params, toy.key())
  after, _ = averaging(before, *toy.batch(SAMPLER))
  assert before.params["kernel"].is_deleted()
  assert before.ema_params["kernel"].is_deleted()
  toy.assert_same(params, toy.params())
  assert np.all(np.isfinite(after.params["kernel"]))


def test_the_state_keeps_its_structure_and_the_program_is_compiled_once(plain):
  step = plain[0]
  before = step.init(toy.params(), toy.key())
  like = jax.eval_shape(lambda: before)
  state, _ = run(step, toy.key())
  assert jax.eval_shape(lambda: state) == like
  assert step.jitted._cache_size() == 1


def test_the_noise_key_is_data_and_not_part_of_the_program(plain):
  step = plain[0]
  words = 0x1BADB002, 0x0DEFACED
  key = jax.random.wrap_key_data(
    np.array(words, np.uint32), impl="threefry2x32"
  )
  state = step.init(toy.params(), key)
  lowered = step.jitted.lower(state, *toy.batch(SAMPLER))
  texts = lowered.as_text(), lowered.compile().as_text()
  for word in words:
    for text in texts:
      assert f"{word}" not in text
      assert f"{word:x}" not in text.lower()
  assert state.mechanism_state.key.tolist() == list(words)


def test_a_batch_that_may_hold_padding_needs_its_mask(plain):
  step = plain[0]
  batch, _ = toy.batch(SAMPLER)
  with pytest.raises(ValueError, match="without its mask"):
    step(step.init(toy.params(), toy.key()), batch)


def test_a_batch_of_another_size_is_refused(plain):
  step = plain[0]
  batch, mask = toy.batch(SAMPLER)
  batch = {k: v[:-1] for k, v in batch.items()}
  with pytest.raises(ValueError, match=r"23 rows, but batches of .* have 24"):
    step(step.init(toy.params(), toy.key()), batch, mask[:-1])


def test_a_batch_whose_leaves_disagree_is_refused(plain):
  step = plain[0]
  batch, mask = toy.batch(SAMPLER)
  batch["label"] = batch["label"][:-1]
  with pytest.raises(ValueError, match=r"same leading axis.*'label': \(23,\)"):
    step(step.init(toy.params(), toy.key()), batch, mask)


def test_a_loss_that_is_not_a_scalar_is_refused():
  step = jaxdp.make_train_step(
    lambda params, example: example["x"] @ params["kernel"],
    toy.mechanism(SAMPLER),
    MOMENTUM,
  )
  state = step.init(toy.params(), toy.key())
  with pytest.raises(ValueError, match=r"one real scalar.*shape=\(3,\)"):
    step(state, *toy.batch(SAMPLER))


def test_a_step_without_a_noise_multiplier_says_how_to_get_one():
  with pytest.raises(ValueError, match="calibrate_noise"):
    jaxdp.make_train_step(
      toy.loss_fn, toy.mechanism(noise_multiplier=None), MOMENTUM
    )


@pytest.mark.parametrize("ema_decay", [-0.1, 1.0, float("nan")])
def test_a_decay_outside_of_its_range_is_refused(ema_decay):
  with pytest.raises(ValueError, match=rf"ema_decay must be .* {ema_decay}"):
    jaxdp.make_train_step(
      toy.loss_fn, toy.mechanism(), MOMENTUM, ema_decay=ema_decay
    )
