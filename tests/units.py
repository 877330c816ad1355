"""A small model, its gradients by a loop, and how to compare with them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

UNITS = 5


def normal(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


PARAMS = {
  "body": {"kernel": normal(0, 3, 4), "bias": normal(1, 4)},
  "head": {"kernel": normal(2, 4, 2)},
}
BATCH = {"x": normal(3, UNITS, 3), "y": normal(4, UNITS, 2)}
MASK = np.array([0, 1, 0, 0, 1], bool)


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
