"""Barriers between models: their identities, and one that is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp import connectivity

KEYS = jax.random.split(jax.random.key(0), 2)
FIRST, LAST = ({"w": jax.random.normal(key, (3, 2))} for key in KEYS)
X = jax.random.normal(jax.random.key(1), (5, 3))


def wavy(params):
  return jnp.sum(jnp.sin(3 * X @ params["w"]))


def test_a_model_is_connected_to_itself():
  path = connectivity.linear_path(wavy, FIRST, FIRST)
  assert path.values.shape == (30,)
  assert abs(path.barrier) <= 1e-5


def test_a_barrier_is_the_same_from_either_side():
  there = connectivity.linear_path(wavy, FIRST, LAST)
  back = connectivity.linear_path(wavy, LAST, FIRST)
  assert there.barrier > 0.1
  np.testing.assert_allclose(there.barrier, back.barrier, rtol=1e-4)
  np.testing.assert_allclose(there.values, back.values[::-1], atol=1e-4)


def test_a_convex_loss_has_no_barrier_and_a_linear_one_no_excess():
  convex = connectivity.linear_path(
    lambda p: jnp.sum((X @ p["w"]) ** 2), FIRST, LAST
  )
  assert convex.barrier <= 1e-5
  assert jnp.all(convex.excess[1:-1] < 0)
  linear = connectivity.linear_path(lambda p: jnp.sum(X @ p["w"]), FIRST, LAST)
  np.testing.assert_allclose(linear.excess, 0, atol=1e-5)


def test_the_barrier_of_a_double_well_is_its_hill():
  path = connectivity.linear_path(
    lambda w: (w**2 - 1) ** 2, jnp.array(-1.0), jnp.array(1.0), num_points=31
  )
  np.testing.assert_allclose(path.barrier, 1.0, rtol=1e-6)


def test_models_that_do_not_match_are_refused():
  with pytest.raises(ValueError, match="different structure"):
    connectivity.linear_path(wavy, FIRST, {"w": jnp.zeros((2, 2))})
  with pytest.raises(ValueError, match="num_points must be >= 2"):
    connectivity.linear_path(wavy, FIRST, LAST, num_points=1)
