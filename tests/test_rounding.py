"""Rounding is part of the guarantee: of norms, of sums, of narrow leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp
from jaxdp import PerExampleGrads, aggregation, clipping
from tests.units import (
  BATCH,
  PARAMS,
  UNITS,
  assert_close,
  loss_fn,
  normal,
  norms_of,
)

pytestmark = pytest.mark.rounding

SLOW = pytest.mark.slow


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


@pytest.mark.parametrize("method", ["stacked", "factored"])
@pytest.mark.parametrize(
  "dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=SLOW)]
)
def test_narrow_parameters_have_wide_norms_and_sums(dtype, method):
  params = jax.tree.map(lambda x: jnp.asarray(x, dtype), PARAMS)
  batch = jax.tree.map(lambda x: jnp.asarray(x, dtype), BATCH)
  grads = jax.jit(jaxdp.per_example_grads(loss_fn, method))(params, batch)
  stacked = grads.materialise()
  types = {x.dtype for x in jax.tree.leaves(stacked)}
  # Factors are summed as they are; biases are stacked by either engine.
  assert types <= {jnp.dtype(dtype), jnp.dtype(jnp.float32)}
  assert (types == {jnp.dtype(dtype)}) == (method == "stacked")
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
