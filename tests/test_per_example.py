"""Per-example gradients against a loop, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp
from jaxdp import PerExampleGrads, clipping
from jaxdp.per_example import unit_keys
from tests.units import (
  BATCH,
  MASK,
  PARAMS,
  UNITS,
  assert_close,
  expected_gradients,
  loss_fn,
  normal,
  norms_of,
  zeroed,
)

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


@pytest.mark.slow
@pytest.mark.parametrize("method", ["auto", "factored"])
def test_methods_give_the_same_gradients(method):
  fn = jax.jit(jaxdp.per_example_grads(loss_fn, method))
  results = [
    (grads.materialise(), grads.norms([0, 1, 2]), grads.squares)
    for grads in (fn(PARAMS, BATCH), per_example_grads(PARAMS, BATCH))
  ]
  assert_close(*results)


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
  with pytest.raises(
    ValueError, match=r"'auto', 'factored', 'stacked'.*'ghost'"
  ):
    jaxdp.per_example_grads(loss_fn, method="ghost")


def test_a_loss_with_a_key_needs_one():
  refuse("pass key=", keyed_loss, has_key=True)
