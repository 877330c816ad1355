"""Clip and sum in every way that there is, for every rule of the table."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdp
from jaxdp import clipping
from tests.rules import PARAMS, every_name, some_names

MODEL = jax.tree.map(
  lambda p: jnp.asarray(
    np.random.default_rng(p.size).standard_normal(p.shape), jnp.float32
  ),
  PARAMS,
)
BATCH = {
  "x": np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32),
  "y": np.random.default_rng(1).standard_normal((7, 2)).astype(np.float32),
}
BATCH["x"][1, 0] = np.nan  # dropped
BATCH["y"][3] *= 1e6  # clipped by all
MASK = np.array([0, 0, 0, 0, 0, 1, 1], bool)
KEY = jax.random.key(11)


def loss_fn(params, example):
  hidden = jnp.tanh(
    example["x"] @ params["body"]["kernel"] + params["body"]["bias"]
  )
  error = hidden @ params["head"]["kernel"] - example["y"]
  return 0.5 * jnp.sum(jnp.square(error))


def mechanism_of(rule):
  sigma = 1.3 if math.isfinite(rule.bound) else 0
  return jaxdp.Mechanism(rule, jaxdp.sampling.FullBatch(7), sigma)


# Rule and size are static, so that each pair compiles once for all tests.
@jax.jit(static_argnums=(0, 1))
def clipped_sum(rule, microbatch_size, batch, mask):
  fn = jaxdp.clipped_sum(loss_fn, rule, microbatch_size=microbatch_size)
  return fn(MODEL, batch, mask, rule.init(MODEL))


@pytest.fixture(scope="module")
def per_example_grads():
  return jax.jit(jaxdp.per_example_grads(loss_fn))(MODEL, BATCH, MASK)


def assert_same(a, b, atol=1e-6):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-5, atol), a, b)


def bytes_of(tree):
  return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def largest(tree):
  return max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(tree))


# Microbatches.


@some_names
def test_microbatched_equals_whole(rule):
  """METHODS 5.14; the last microbatch of three is padding alone."""
  whole, info = clipped_sum(rule, None, BATCH, MASK)
  pieces, pieces_info = clipped_sum(rule, 3, BATCH, MASK)
  assert (pieces.tag, pieces.num_units, pieces.masked) == (
    whole.tag,
    7,
    True,
  )
  assert_same(pieces, whole, 1e-5 * largest(whole.grads))
  real = ~MASK
  assert_same(info.weights, pieces_info.weights)
  assert_same(info.norms[:, real], pieces_info.norms[:, real])
  assert_same(info.loss[real], pieces_info.loss[real])


@pytest.mark.parametrize(
  "size",
  [
    2,
    "auto",
    *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 4, 7, 50)),
  ],
)
def test_any_microbatch_size_gives_the_same_sum(size):
  rule = clipping.per_layer(0.8)
  whole, _ = clipped_sum(rule, None, BATCH, MASK)
  pieces, info = clipped_sum(rule, size, BATCH, MASK)
  assert_same(pieces, whole)
  assert info.norms.shape == (2, 7)
  assert info.loss.shape == (7,)


def test_microbatched_without_a_mask_stays_unmasked():
  rule = clipping.flat(0.7)
  fn = jaxdp.clipped_sum(loss_fn, rule, microbatch_size=3)
  summed, _ = jax.eval_shape(fn, MODEL, BATCH)
  assert not summed.masked
  assert summed.num_units == 7


def test_microbatches_of_padding_alone_are_skipped():
  seen = []

  def counting_loss(params, x):
    jax.debug.callback(lambda x: seen.append(float(x)), x)
    return params * x

  fn = jaxdp.clipped_sum(counting_loss, clipping.flat(1.0), microbatch_size=2)
  xs, mask = jnp.arange(1.0, 7.0), np.array([0, 1, 1, 1, 1, 1], bool)
  summed, _ = jax.jit(fn)(jnp.float32(1.0), xs, mask)
  jax.block_until_ready(summed)
  jax.effects_barrier()
  assert summed.grads == 1
  assert sorted(seen) == [0.0, 1.0]  # padding was zeroed before the loss


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "all"])
def test_bad_microbatch_sizes_are_named(size):
  with pytest.raises(ValueError, match=f"microbatch_size.*{size}"):
    jaxdp.clipped_sum(loss_fn, clipping.flat(1.0), microbatch_size=size)


@every_name
@pytest.mark.parametrize("size", [None, 3])
def test_garbage_in_padding_changes_no_bit(rule, size):
  """METHODS 5.14, through the loss, whole and in microbatches."""
  clean, _ = clipped_sum(rule, size, BATCH, MASK)
  for x, y in ((np.nan, 1e30), (np.inf, -np.inf), (3e38, 0.0), (-4.0, 5.0)):
    dirty = {"x": BATCH["x"].copy(), "y": BATCH["y"].copy()}
    dirty["x"][5:], dirty["y"][5:] = x, y
    same, _ = clipped_sum(rule, size, dirty, MASK)
    assert bytes_of(clean) == bytes_of(same)


@every_name
@pytest.mark.parametrize("size", [None, 3])
def test_batch_of_padding_alone_sums_to_zero(rule, size):
  summed, info = clipped_sum(rule, size, BATCH, np.ones(7, bool))
  assert largest(summed.grads) == 0
  assert (np.asarray(summed.statistic) == 0).all()
  assert (np.asarray(info.weights) == 0).all()


# Three ways, one release.


@some_names
def test_chain_aggregate_and_fused_give_the_same_update(
  rule, per_example_grads
):
  """Op by op, from one key; the fused sum is compiled, the others are not."""
  mechanism = mechanism_of(rule)
  state = mechanism.init(MODEL, KEY)
  summed, _ = clipped_sum(rule, None, BATCH, MASK)
  fused, after = mechanism.release(summed, state)
  assert after.count == 1

  tx = optax.chain(mechanism.aggregate(KEY), optax.scale(-0.1))
  updates, _ = tx.update(per_example_grads, tx.init(MODEL), MODEL)
  assert_same(updates, jax.tree.map(lambda x: -0.1 * x, fused))

  if not rule.adaptive:
    tx = optax.chain(
      jaxdp.clip_per_example(rule),
      jaxdp.sum_examples(),
      mechanism.privatize(KEY),
    )
    assert_same(tx.update(per_example_grads, tx.init(MODEL), MODEL)[0], fused)


def test_jit_of_a_whole_chain_changes_rounding_only(per_example_grads):
  mechanism = mechanism_of(clipping.flat(0.7))
  tx = optax.chain(mechanism.aggregate(KEY), optax.sgd(0.1, momentum=0.9))
  state = tx.init(MODEL)
  eager, jitted = tx.update, jax.jit(tx.update)
  for _ in range(3):
    updates, _ = eager(per_example_grads, state, MODEL)
    same, state = jitted(per_example_grads, state, MODEL)
    assert_same(updates, same)
  assert jitted._cache_size() == 1


@every_name
def test_state_keeps_its_structure_shapes_and_dtypes(rule, per_example_grads):
  tx = mechanism_of(rule).aggregate(KEY)
  before = jax.eval_shape(tx.init, MODEL)
  updates, after = jax.eval_shape(tx.update, per_example_grads, before)
  assert before == after  # weak types included
  expected = jax.tree.map(lambda x: (x.shape, x.dtype), MODEL)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), updates) == expected


def test_released_means_have_the_dtypes_of_the_parameters():
  mixed = jax.tree.map(lambda p: jnp.ones((7, *p.shape), p.dtype), PARAMS)
  tx = mechanism_of(clipping.flat(0.7)).aggregate(KEY)
  updates, _ = jax.eval_shape(tx.update, mixed, tx.init(PARAMS))
  assert jax.tree.map(lambda x: x.dtype, updates) == jax.tree.map(
    lambda x: x.dtype, PARAMS
  )


def test_plain_stacked_trees_are_taken_for_per_example_grads(per_example_grads):
  stacked = per_example_grads.materialise()
  masked = jaxdp.PerExampleGrads.from_stacked(stacked, MASK)
  tx = mechanism_of(clipping.flat(0.7)).aggregate(KEY)
  state = tx.init(MODEL)
  expected = tx.update(per_example_grads, state)[0]
  assert_same(tx.update(stacked, state)[0], expected)
  assert_same(tx.update(masked, state)[0], expected)


def test_traced_mechanism_is_one_program_for_all_clip_norms():
  """The mechanism goes through jit as data, microbatched and released."""
  traces, batch = [], jnp.linspace(0.1, 5.0, 7)

  def step(mechanism, state, size):
    fn = jaxdp.clipped_sum(
      lambda w, x: w * x, mechanism.rule, microbatch_size=size
    )
    summed, _ = fn(jnp.float32(1.0), batch, MASK, state.rule_state)
    return mechanism.release(summed, state)[0]

  @jax.jit
  def jitted(mechanism, state):
    traces.append(1)
    return step(mechanism, state, 3)

  for clip_norm, sigma in ((0.7, 1.0), (3.0, 0.5)):
    mechanism = mechanism_of(clipping.flat(clip_norm)).replace(
      noise_multiplier=sigma
    )
    state = mechanism.init(jnp.float32(1.0), KEY)
    assert_same(jitted(mechanism, state), step(mechanism, state, None))
  assert len(traces) == 1


# Refusals.


@every_name
def test_adaptive_rules_are_refused_without_their_state(rule):
  if not rule.adaptive:
    jaxdp.clip_per_example(rule).init(PARAMS)
    return
  with pytest.raises(ValueError, match="aggregate"):
    jaxdp.clip_per_example(rule)
  with pytest.raises(ValueError, match="rule_state"):
    jaxdp.clipped_sum(loss_fn, rule)(MODEL, BATCH, MASK)


def test_stages_refuse_what_another_stage_should_have_got(per_example_grads):
  rule = clipping.flat(0.7)
  clip, add = jaxdp.clip_per_example(rule), jaxdp.sum_examples()
  clipped, _ = clip.update(per_example_grads, ())
  summed, _ = add.update(clipped, optax.EmptyState())
  with pytest.raises(ValueError, match="ClippedGrads: they were clipped"):
    clip.update(clipped, ())
  with pytest.raises(ValueError, match="ClippedSum: they were clipped"):
    clip.update(summed, ())
  with pytest.raises(ValueError, match="Put clip_per_example"):
    add.update(per_example_grads, optax.EmptyState())


STAGES = {
  "clip_per_example": lambda: jaxdp.clip_per_example(clipping.flat(0.7)),
  "sum_examples": jaxdp.sum_examples,
  "privatize": lambda: mechanism_of(clipping.flat(0.7)).privatize(KEY),
  "aggregate": lambda: mechanism_of(clipping.flat(0.7)).aggregate(KEY),
  "dp_sgd": lambda: jaxdp.optimizers.dp_sgd(
    mechanism_of(clipping.flat(0.7)), KEY, 0.1
  ),
}
MASKED_TREE = {"body": True, "head": False}


@pytest.mark.parametrize("stage", STAGES)
def test_masks_around_per_example_stages_raise(stage):
  tx = optax.masked(STAGES[stage](), MASKED_TREE)
  with pytest.raises(ValueError, match="trainable="):
    tx.init(MODEL)
  tx = optax.multi_transform(
    {"dp": STAGES[stage](), "none": optax.set_to_zero()},
    {"body": "dp", "head": "none"},
  )
  with pytest.raises(ValueError, match="trainable="):
    tx.init(MODEL)


def test_masked_gradients_are_refused_too(per_example_grads):
  tx = STAGES["aggregate"]()
  masked = per_example_grads.materialise() | {"head": optax.MaskedNode()}
  with pytest.raises(ValueError, match="masked leaves would pass"):
    tx.update(masked, tx.init(MODEL))


@pytest.mark.parametrize(
  "factory, kwargs",
  [
    (jaxdp.clip_per_example, {"rule": clipping.flat(0.7)}),
    (jaxdp.sum_examples, {}),
    (mechanism_of(clipping.flat(0.7)).privatize, {"key": KEY}),
    (mechanism_of(clipping.flat(0.7)).aggregate, {"key": KEY}),
    (
      jaxdp.optimizers.dp_sgd,
      {
        "mechanism": mechanism_of(clipping.flat(0.7)),
        "key": KEY,
        "learning_rate": 0.1,
      },
    ),
  ],
  ids=lambda x: getattr(x, "__name__", None),
)
def test_inject_hyperparams_refuses_per_example_stages(factory, kwargs):
  with pytest.raises(TypeError, match="Inject after the release"):
    optax.inject_hyperparams(factory)(**kwargs)


def test_optax_wrappers_work_after_the_release(per_example_grads):
  mechanism = mechanism_of(clipping.flat(0.7))
  state = mechanism.init(MODEL, KEY)
  summed, _ = clipped_sum(mechanism.rule, None, BATCH, MASK)
  mean, _ = mechanism.release(summed, state)
  tx = optax.chain(
    mechanism.aggregate(KEY),
    optax.masked(optax.scale(3.0), MASKED_TREE),
    optax.multi_transform(
      {"a": optax.scale(2.0), "b": optax.identity()},
      {"body": "b", "head": "a"},
    ),
    optax.inject_hyperparams(optax.sgd)(learning_rate=0.5),
  )
  updates, _ = tx.update(per_example_grads, tx.init(MODEL), MODEL)
  assert_same(updates["body"], jax.tree.map(lambda x: -1.5 * x, mean["body"]))
  assert_same(updates["head"], jax.tree.map(lambda x: -1.0 * x, mean["head"]))
