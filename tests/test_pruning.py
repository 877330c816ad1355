"""Pruning: a mask of ones is dense, and masked entries are no parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdp
from jaxdp import pruning

UNITS = 6
PARAMS = {"bias": jnp.arange(3.0), "kernel": jnp.ones((4, 3)) / 2}
BATCH = np.random.default_rng(0).normal(size=(UNITS, 4)).astype(np.float32)


def loss_fn(params, x):
  return jnp.sum(jnp.tanh(x @ params["kernel"] + params["bias"]) ** 2)


def random_mask(keep):
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda x: rng.random(x.shape) < keep, PARAMS)


def train(mask, noise_multiplier, rest="zero"):
  """Three steps on all units; mask None is dense."""
  mechanism = jaxdp.Mechanism(
    jaxdp.clipping.flat(0.1), jaxdp.sampling.FullBatch(UNITS), noise_multiplier
  )
  params, loss, trainable = PARAMS, loss_fn, None
  if mask is not None:
    params = pruning.prune(PARAMS, mask, mask_source="data_free", rest=rest)
    loss, trainable = pruning.over_active(loss_fn), pruning.is_active
  state, _ = jaxdp.fit(
    loss, params, BATCH, mechanism, optax.sgd(0.1, momentum=0.9),
    num_steps=3, delta=1e-5, seed=2, trainable=trainable,
  )  # fmt: skip
  return state.params if mask is None else state.params.join()


def test_a_mask_of_ones_is_dense():
  """Without noise, which differs with the name of a leaf."""
  ones = jax.tree.map(lambda x: np.ones(x.shape, bool), PARAMS)
  dense = train(None, 0.0)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    train(ones, 0.0),
    dense,
  )


@pytest.mark.parametrize("rest", ["zero", "keep"])
def test_masked_entries_stay_exactly_and_others_move(rest):
  mask = random_mask(0.5)
  after = train(mask, 5.0, rest)
  for before, now, active in zip(
    *map(jax.tree.leaves, (PARAMS, after, mask)), strict=True
  ):
    held = before[~active] if rest == "keep" else 0.0
    np.testing.assert_array_equal(np.asarray(now)[~active], held)
    assert np.all(np.asarray(now)[active] != before[active])


@pytest.mark.parametrize("method", ["stacked", "factored"])
def test_norms_are_over_active_entries(method):
  mask = random_mask(0.4)
  pruned = pruning.prune(PARAMS, mask, mask_source="public", rest="keep")
  grads = jaxdp.per_example_grads(
    pruning.over_active(loss_fn), method=method, trainable=pruning.is_active
  )(pruned, BATCH)
  dense = jax.vmap(jax.grad(loss_fn), in_axes=(None, 0))(PARAMS, BATCH)
  expected = sum(
    np.sum(np.asarray(g)[:, m] ** 2, axis=1)
    for g, m in zip(jax.tree.leaves(dense), jax.tree.leaves(mask), strict=True)
  )
  np.testing.assert_allclose(grads.norms([0, 0])[0] ** 2, expected, rtol=1e-5)


@pytest.mark.parametrize(
  "mask, match",
  [
    (jax.tree.map(lambda x: np.zeros(x.shape, bool), PARAMS), "nothing would"),
    (jax.tree.map(lambda x: np.ones(x.shape), PARAMS), "must hold bools"),
    ({"bias": np.ones(3, bool)}, "structure and shapes of params"),
    (
      {"bias": np.ones(3, bool), "kernel": np.ones((4, 1), bool)},
      "structure and shapes of params",
    ),
  ],
)
def test_masks_that_do_not_fit_are_refused(mask, match):
  with pytest.raises(ValueError, match=match):
    pruning.prune(PARAMS, mask, mask_source="public")


def test_masks_need_a_sound_source():
  mask = random_mask(0.5)
  with pytest.raises(ValueError, match="release without noise"):
    pruning.prune(PARAMS, mask, mask_source="private")
  with pytest.raises(ValueError, match="'zero' or 'keep'"):
    pruning.prune(PARAMS, mask, mask_source="dp", rest="one")
