"""Per-example gradients against a loop, with units that must not be seen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp
from jaxdp import PerExampleGrads, aggregation, clipping
from jaxdp.per_example import unit_keys

UNITS = 5


def normal(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


PARAMS = {
  "body": {"kernel": normal(0, 3, 4), "bias": normal(1, 4)},
  "head": {"kernel": normal(2, 4, 2)},
}
BATCH = {"x": normal(3, UNITS, 3), "y": normal(4, UNITS, 2)}


def loss_fn(params, example):
  hidden = jnp.tanh(
    example["x"] @ params["body"]["kernel"] + params["body"]["bias"]
  )
  error = hidden @ params["head"]["kernel"] - example["y"]
  return 0.5 * jnp.sum(jnp.square(error))


def loop(loss_fn, params, batch):
  """The slow reference: `jax.grad` of each unit alone, stacked."""
  grad = jax.jit(jax.grad(loss_fn))
  units = len(jax.tree.leaves(batch)[0])
  rows = [
    grad(params, jax.tree.map(lambda x, i=i: x[i], batch)) for i in range(units)
  ]
  return jax.tree.map(lambda *x: np.stack(x), *rows)


def assert_close(a, b, rtol=1e-5, atol=1e-6):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol, atol), a, b)


def norms_of(stacked):
  """Whole norms by unit, in float64."""
  leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(stacked)]
  return np.sqrt(sum(np.sum(x.reshape(len(x), -1) ** 2, 1) for x in leaves))


@functools.cache
def expected_gradients():
  return loop(loss_fn, PARAMS, BATCH)


def zeroed(stacked, rows):
  """A copy with these rows zero."""
  stacked = jax.tree.map(np.array, stacked)
  for g in jax.tree.leaves(stacked):
    g[rows] = 0
  return stacked


SLOW = pytest.mark.slow
per_example_grads = jax.jit(jaxdp.per_example_grads(loss_fn, "stacked"))


# Against a loop.


def test_gradients_norms_and_sums_equal_a_loop():
  grads, expected = per_example_grads(PARAMS, BATCH), expected_gradients()
  assert grads.num_units == UNITS
  assert_close(grads.materialise(), expected)
  np.testing.assert_allclose(
    grads.norms((0, 0, 0))[0], norms_of(expected), 1e-6
  )
  by_group = np.stack([norms_of(expected["body"]), norms_of(expected["head"])])
  np.testing.assert_allclose(grads.norms((0, 0, 1)), by_group, 1e-6)
  weights = np.abs(normal(5, 2, UNITS))
  by_leaf = {"body": weights[0], "head": weights[1]}
  summed = {
    name: jax.tree.map(
      lambda g, name=name: np.einsum("u,u...->...", by_leaf[name], g), sub
    )
    for name, sub in expected.items()
  }
  assert_close(grads.weighted_sum(jnp.asarray(weights), (0, 0, 1)), summed)


@SLOW
def test_methods_give_the_same_gradients():
  auto = jax.jit(jaxdp.per_example_grads(loss_fn))(PARAMS, BATCH)
  assert_close(auto, per_example_grads(PARAMS, BATCH))


MASK = np.array([0, 1, 0, 0, 1], bool)


def test_gradients_are_a_pytree_that_crosses_jit_and_vmap():
  two = jax.tree.map(lambda x: np.stack([x, 2 * x]), PARAMS)
  both = jax.jit(jax.vmap(per_example_grads, (0, None, None)))(two, BATCH, MASK)
  for i in range(2):
    params = jax.tree.map(lambda x, i=i: x[i], two)
    alone = per_example_grads(params, BATCH, MASK)
    assert isinstance(alone, PerExampleGrads)
    assert_close(jax.tree.map(lambda x, i=i: x[i], both), alone, 1e-3, 1e-5)


def test_padding_has_no_norm_and_no_gradient():
  grads = per_example_grads(PARAMS, BATCH, MASK)
  assert_close(grads.materialise(), zeroed(expected_gradients(), MASK))
  norms = np.asarray(grads.norms((0, 0, 0)))[0]
  assert (norms == 0).tolist() == MASK.tolist()


def test_shapes_are_told_without_units():
  grads = jax.eval_shape(per_example_grads, PARAMS, BATCH)
  assert jax.tree.map(lambda x: x.shape, grads.params_like) == jax.tree.map(
    lambda x: x.shape, PARAMS
  )


# Auxiliary output and keys.


def test_auxiliary_output_is_stacked_over_units():
  def with_aux(w, example):
    loss = jnp.sum(w * example["x"])
    return loss, {"loss": loss, "x": example["x"]}

  w, expected = jnp.ones(3), BATCH["x"].sum(axis=1)
  grads, aux = jaxdp.per_example_grads(with_aux, has_aux=True)(w, BATCH)
  np.testing.assert_array_equal(aux["x"], BATCH["x"])
  np.testing.assert_allclose(aux["loss"], expected, 1e-5)
  np.testing.assert_array_equal(grads.materialise(), BATCH["x"])

  fn = jaxdp.clipped_sum(
    with_aux, clipping.flat(1.0), microbatch_size=2, has_aux=True
  )
  _, info = fn(w, BATCH)
  np.testing.assert_array_equal(info.aux["x"], BATCH["x"])
  np.testing.assert_allclose(info.loss, expected, 1e-5)


def keyed_loss(w, example, key):
  kept = jax.random.bernoulli(key, 0.5, (3,))
  return jnp.sum(jnp.where(kept, w * example["x"], 0.0))


def test_keys_go_to_units_by_their_position_whatever_the_microbatch():
  key, w = jax.random.key(5), jnp.ones(3)
  grads = jaxdp.per_example_grads(keyed_loss, has_key=True)(w, BATCH, key=key)
  kept = jax.vmap(lambda k: jax.random.bernoulli(k, 0.5, (3,)))(
    jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(UNITS))
  )
  expected = np.where(kept, BATCH["x"], 0)
  np.testing.assert_array_equal(grads.materialise(), expected)
  fn = jaxdp.clipped_sum(
    keyed_loss, clipping.flat(1e3), microbatch_size=2, has_key=True
  )
  summed, _ = fn(w, BATCH, key=key)
  np.testing.assert_allclose(summed.grads, expected.sum(axis=0), 1e-5)


def test_keys_of_the_old_kind_are_keys_too():
  new, old = jax.random.key(5), jax.random.PRNGKey(5)
  for units in (2, 5):
    assert (unit_keys(old, units) == unit_keys(new, units)).all()


# What trains.


MASKS = {
  "mask": {"body": {"kernel": True, "bias": False}, "head": {"kernel": True}},
  "prefix": {"body": False, "head": True},
  "callable": lambda name, leaf: name == "body/bias" or leaf.shape == (4, 2),
}


@pytest.mark.parametrize("trainable", MASKS.values(), ids=MASKS)
def test_frozen_leaves_have_no_gradient_and_no_norm(trainable):
  trained, _ = jaxdp.partition_params(PARAMS, trainable)
  grads_fn = jaxdp.per_example_grads(loss_fn, trainable=trainable)
  grads = jax.jit(grads_fn)(PARAMS, BATCH)
  expected = jax.tree.map(
    lambda kept, g: None if kept is None else g,
    trained,
    expected_gradients(),
    is_leaf=lambda x: x is None,
  )
  assert_close(grads.materialise(), expected)
  groups = (0,) * len(jax.tree.leaves(trained))
  np.testing.assert_allclose(grads.norms(groups)[0], norms_of(expected), 1e-6)


def test_frozen_leaves_have_no_noise():
  trainable = MASKS["prefix"]
  trained, _ = jaxdp.partition_params(PARAMS, trainable)
  mechanism = jaxdp.Mechanism(
    clipping.per_layer(1.0), jaxdp.sampling.FullBatch(UNITS), 1.0
  )
  state = mechanism.init(trained, jax.random.key(0))
  assert state.stddev.shape == (1,)

  def fused(params, batch):
    fn = jaxdp.clipped_sum(loss_fn, mechanism.rule, trainable=trainable)
    return mechanism.release(fn(params, batch)[0], state)[0]

  def chained(params, batch):
    grads_fn = jaxdp.per_example_grads(loss_fn, trainable=trainable)
    tx = mechanism.aggregate(jax.random.key(0))
    return tx.update(grads_fn(params, batch), state)[0]

  for way in (fused, chained):
    mean = jax.eval_shape(way, PARAMS, BATCH)
    assert mean["body"] == {"kernel": None, "bias": None}
    assert mean["head"]["kernel"].shape == (4, 2)


@pytest.mark.parametrize("trainable", [None, *MASKS.values()])
def test_partition_and_combine_are_inverses(trainable):
  trained, frozen = jaxdp.partition_params(PARAMS, trainable)
  joined = jaxdp.combine_params(trained, frozen)
  assert jax.tree.structure(joined) == jax.tree.structure(PARAMS)
  jax.tree.map(np.testing.assert_array_equal, joined, PARAMS)
  assert len(jax.tree.leaves((trained, frozen))) == 3


def test_frozen_leaves_may_be_integers():
  params = {"table": np.arange(3), "w": normal(0, 3)}
  grads = jaxdp.per_example_grads(
    lambda p, x: jnp.sum(p["w"] * x * p["table"].astype(jnp.float32)),
    trainable={"table": False, "w": True},
  )(params, BATCH["x"])
  np.testing.assert_allclose(
    grads.materialise()["w"], BATCH["x"] * np.arange(3), 1e-6
  )


# One unit that is not finite.


def bad_input(batch):
  batch = {**batch, "x": batch["x"].copy()}
  batch["x"][1].flat[0] = np.nan
  return batch


def overflow(batch):
  """The network multiplies activations by exp(shift): infinite for unit 1."""
  batch = {**batch, "shift": batch["shift"].copy()}
  batch["shift"][1] = 200.0
  return batch


def conv(x, kernel, groups):
  return jax.lax.conv_general_dilated(
    x[None],
    kernel,
    (1, 1),
    "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=groups,
  )[0]


def conv_net(groups, wrap=lambda fun: fun):
  """Two convolutions, parameters and a batch; `wrap` hides the layers."""
  first, second = groups
  params = {
    "a": normal(0, 3, 3, 4 // first, 8),
    "b": normal(1, 3, 3, 8 // second, 8),
  }
  batch = {"x": normal(2, UNITS, 6, 6, 4), "shift": normal(3, UNITS)}

  def loss(params, example):
    def layers(x, params):
      x = conv(x, params["a"], first) * jnp.exp(example["shift"])
      return conv(x, params["b"], second)

    x = wrap(layers)(example["x"], params)
    return jnp.sum(jnp.tanh(x) * x)

  return loss, params, batch


NETS = {
  "mlp": lambda: (
    lambda p, e: loss_fn(p, e) * jnp.exp(e["shift"]),
    PARAMS,
    {**BATCH, "shift": normal(5, UNITS)},
  ),
  "conv": lambda: conv_net((1, 1)),
  "depthwise": lambda: conv_net((4, 8)),
  "grouped": lambda: conv_net((2, 2)),
}
OTHERS = np.arange(UNITS) != 1


def others(tree):
  return jax.tree.map(lambda x: x[OTHERS], tree)


@pytest.mark.parametrize(
  "net",
  [
    "mlp",
    "grouped",
    *(pytest.param(n, marks=SLOW) for n in NETS if "conv" in n or "depth" in n),
  ],
)
def test_one_bad_unit_changes_no_other_gradient(net):
  loss, params, batch = NETS[net]()
  grads_fn = jax.jit(jaxdp.per_example_grads(loss))
  clean = grads_fn(params, batch).materialise()
  assert_close(clean, loop(loss, params, batch), 1e-4, 1e-4)
  groups = (0,) * len(jax.tree.leaves(params))
  for damage in (bad_input, overflow):
    grads = grads_fn(params, damage(batch))
    found = grads.materialise()
    assert_close(others(found), others(clean), 1e-4, 1e-4)
    assert all((np.asarray(x)[1] == 0).all() for x in jax.tree.leaves(found))
    assert np.isfinite(grads.norms(groups)[0]).tolist() == OTHERS.tolist()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a habit of XLA:CPU")
@pytest.mark.parametrize(
  "groups, spreads",
  [((2, 2), True), ((1, 1), False), pytest.param((4, 8), True, marks=SLOW)],
)
def test_vmap_of_grad_does_spread_nan_over_grouped_convolutions(
  groups, spreads
):
  """Control: the test above sees something. Dense convolutions are apart."""
  loss, params, batch = conv_net(groups)
  grads_fn = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))
  for damage in (bad_input, overflow):
    kernels = np.asarray(grads_fn(params, damage(batch))["a"])
    missing = np.isnan(kernels).any(axis=(1, 2, 3, 4))
    assert missing.tolist() == [spreads or i == 1 for i in range(UNITS)]


WRAPPERS = {
  "scan": lambda fun: (
    lambda x, p: jax.lax.scan(
      lambda c, _: (c + fun(x, p), None), jnp.zeros((6, 6, 8)), None, 2
    )[0]
  ),
  "cond": lambda fun: (
    lambda x, p: jax.lax.cond(
      jnp.sum(x) < 1e9, fun, lambda x, p: fun(-x, p), x, p
    )
  ),
  "jit": jax.jit,
  "remat": jax.checkpoint,
}


@SLOW
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_convolutions_are_found_inside_other_primitives(wrap):
  loss, params, batch = conv_net((2, 2), WRAPPERS[wrap])
  grads_fn = jax.jit(jaxdp.per_example_grads(loss))
  clean, grads = (grads_fn(params, b) for b in (batch, overflow(batch)))
  assert_close(
    others(grads.materialise()), others(clean.materialise()), 1e-4, 1e-4
  )
  assert np.isfinite(grads.norms((0, 0))[0]).tolist() == OTHERS.tolist()


@pytest.mark.parametrize("net", ["mlp", pytest.param("grouped", marks=SLOW)])
def test_loss_that_fails_on_zeros_survives_padding(net):
  """A removed unit is computed from zeros, where this loss is not finite."""
  loss, params, batch = NETS[net]()

  def normalising(params, example):
    x = example["x"] / jnp.linalg.norm(example["x"])
    return loss(params, {**example, "x": x})

  grads_fn = jax.jit(jaxdp.per_example_grads(normalising))
  grads = grads_fn(params, batch, MASK)
  expected = zeroed(loop(normalising, params, batch), MASK)
  assert_close(grads.materialise(), expected, 1e-4, 1e-4)
  assert np.isfinite(grads.norms((0,) * len(jax.tree.leaves(params)))).all()


def test_rows_wrapped_from_outside_are_dropped_whole():
  stacked = {"a": normal(0, 3, 2), "b": normal(1, 3, 4)}
  stacked["a"][1, 0] = np.nan
  grads = PerExampleGrads.from_stacked(stacked)
  assert (np.asarray(grads.materialise()["b"])[1] == 0).all()
  assert not np.isfinite(grads.norms((0, 0))[0, 1])


# Rounding is part of the guarantee.


@pytest.mark.parametrize(
  "shape, dtype",
  [
    ((2**24,), jnp.float32),
    ((2**12, 2**12), jnp.bfloat16),
    pytest.param((2**24, 1), jnp.float32, marks=SLOW),
    pytest.param((2**24,), jnp.bfloat16, marks=SLOW),
    pytest.param((2**8, 2**8, 2**8), jnp.float32, marks=SLOW),
  ],
  ids=str,
)
def test_squares_of_a_long_row_are_summed_without_loss(shape, dtype):
  """A running sum in float32 would stall; an under-estimate is a leak."""
  row = jnp.full((1, *shape), 0.1, dtype)
  exact = 2**24 * float(row.ravel()[0]) ** 2
  norm = float(PerExampleGrads.from_stacked(row).norms((0,))[0, 0])
  assert abs(norm**2 / exact - 1) < 1e-6


def aligned_gradients(units, dtype):
  """One direction for all, so that the sum is `units` times a unit's share."""
  x = np.broadcast_to(normal(0, 1, 1000), (units, 1000))
  return jnp.asarray(x, dtype)


def test_neighbouring_sums_of_bfloat16_leaves_stay_within_the_bound():
  """METHODS 6, B = 1024; a bfloat16 sum moves by more than twice the bound."""
  units, rule = 1024, clipping.flat(1.0)
  stacked = aligned_gradients(units, jnp.bfloat16)
  all_units, one_less = np.zeros(units, bool), np.arange(units) == 7

  @jax.jit
  def ours(mask):
    grads = PerExampleGrads.from_stacked(stacked, mask)
    clipped, _ = aggregation.clip(rule, grads, ())
    return aggregation.sum_clipped(clipped).grads

  def distance(summed):
    a, b = (np.asarray(summed(m), np.float64) for m in (all_units, one_less))
    return np.linalg.norm(a - b)

  assert ours(all_units).dtype == jnp.float32
  assert 0.999 < distance(ours) <= 1 + 1e-5

  @jax.jit
  def narrow(mask):
    grads = PerExampleGrads.from_stacked(stacked, mask)
    clipped, _ = aggregation.clip(rule, grads, ())
    weights = clipped.weights[0].astype(jnp.bfloat16)
    return jnp.einsum("u,ud->d", weights, stacked)

  assert distance(narrow) > 1.5  # control


def test_float16_gradients_keep_their_subnormal_values():
  """1e-5 is below float16's smallest normal number and still a gradient."""
  tiny = jnp.full((1, 64), 1e-5, jnp.float16)
  grads = jax.jit(PerExampleGrads.from_stacked)(tiny)
  exact = 8 * float(tiny[0, 0])
  np.testing.assert_allclose(grads.norms((0,))[0, 0], exact, 1e-6)
  summed = grads.weighted_sum(jnp.ones((1, 1)), (0,))
  np.testing.assert_allclose(summed, np.asarray(tiny[0], np.float32), 1e-6)


@pytest.mark.parametrize(
  "dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=SLOW)]
)
def test_narrow_parameters_have_wide_norms_and_sums(dtype):
  params = jax.tree.map(lambda x: jnp.asarray(x, dtype), PARAMS)
  batch = jax.tree.map(lambda x: jnp.asarray(x, dtype), BATCH)
  grads = jax.jit(jaxdp.per_example_grads(loss_fn))(params, batch)
  stacked = grads.materialise()
  assert {x.dtype for x in jax.tree.leaves(stacked)} == {jnp.dtype(dtype)}
  norms = grads.norms((0, 0, 0))
  summed = grads.weighted_sum(jnp.ones((1, UNITS)), (0, 0, 0))
  for x in (norms, *jax.tree.leaves(summed)):
    assert x.dtype == jnp.float32
  np.testing.assert_allclose(norms[0], norms_of(stacked), 1e-6)
  exact = jax.tree.map(lambda g: np.asarray(g, np.float64).sum(0), stacked)
  assert_close(summed, exact)


def test_norm_and_sum_are_of_the_same_rounded_gradient():
  """XLA may skip a rounding to bfloat16 for one of the two (9e-4 was seen)."""
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), PARAMS)
  rule = clipping.flat(0.01)

  @jax.jit
  def contribution(batch, mask):
    stacked = jax.vmap(jax.grad(loss_fn), (None, 0))(params, batch)
    grads = PerExampleGrads.from_stacked(stacked, mask)
    return aggregation.sum_clipped(aggregation.clip(rule, grads, ())[0]).grads

  for seed in range(10):
    batch = {"x": normal(seed, UNITS, 3), "y": normal(seed + 100, UNITS, 2)}
    batch = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), batch)
    for unit in range(UNITS):
      alone = contribution(batch, np.arange(UNITS) != unit)
      norm = norms_of(jax.tree.map(lambda x: x[None], alone))[0]
      assert norm <= 0.01 * (1 + 8 * 2**-23)


# Bad input, before anything is compiled.


def refuse(match, fun=loss_fn, params=PARAMS, batch=BATCH, mask=None, **kwargs):
  with pytest.raises(ValueError, match=match):
    jaxdp.per_example_grads(fun, **kwargs)(params, batch, mask)
  kwargs.pop("method", None)
  with pytest.raises(ValueError, match=match):
    jaxdp.clipped_sum(fun, clipping.flat(1.0), microbatch_size=2, **kwargs)(
      params, batch, mask
    )


def test_loss_that_is_not_one_real_scalar_is_refused():
  refuse(r"one real scalar.*\(2,\)", lambda p, e: e["y"] * p["body"]["bias"][0])
  refuse("int32.*reduce", lambda p, e: jnp.int32(1))
  refuse("has_aux=True if it returns", lambda p, e: (loss_fn(p, e), e))
  refuse("needs a loss_fn that returns", loss_fn, has_aux=True)


def test_batches_that_disagree_or_are_empty_are_refused():
  refuse(r"'y': \(4, 2\)", batch={**BATCH, "y": BATCH["y"][:4]})
  refuse(r"'z': \(\)", batch={**BATCH, "z": np.float32(1)})
  refuse("no arrays", batch={})
  refuse("no rows", batch=jax.tree.map(lambda x: x[:0], BATCH))


def test_padding_masks_of_another_shape_or_dtype_are_refused():
  refuse(r"bool with shape \(5,\).*float32", mask=np.zeros(UNITS, np.float32))
  refuse(r"with shape \(4,\)", mask=np.zeros(4, bool))


def test_parameters_that_cannot_be_clipped_are_refused():
  refuse("'count' has dtype int32.*Freeze", params={**PARAMS, "count": 1})
  refuse("No parameter is trainable", params={})


def test_trainable_masks_that_do_not_fit_are_refused():
  refuse("No parameter.*'body/bias'", trainable=lambda name, leaf: False)
  refuse("structure of params", trainable={"body": True})
  refuse("structure of params", trainable={"body": True, "tail": True})
  refuse("tree of bools, got 'no'", trainable={"body": "no", "head": True})


def test_unknown_methods_are_refused():
  with pytest.raises(ValueError, match=r"'auto', 'stacked'.*'ghost'"):
    jaxdp.per_example_grads(loss_fn, method="ghost")


def test_a_loss_with_a_key_needs_one():
  refuse("pass key=", keyed_loss, has_key=True)
