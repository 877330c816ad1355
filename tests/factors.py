"""What the factored engine keeps, in float64: products, and their factors."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxdp.per_example import _look_up
from jaxdp.per_example._site import Factored


@contextlib.contextmanager
def float64():
  with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
    yield


def in_type(dtype, tree):
  """The same with floating-point numbers of another type."""

  def one(x):
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    return x.astype(dtype) if floating else x

  return jax.tree.map(one, tree)


def norms_in_float64(grads):
  """Norms of the gradients, and those of X times Y; by leaf, and whole.

  The products are made in float64 from the factors as they are.
  """
  with float64():
    leaves = jax.tree.leaves(grads.stacked, is_leaf=_is_factored)
    leaves = in_type(np.float64, leaves)
    found = map(_size, jax.jit(_products)(leaves)), map(_of_factors, leaves)
    by_leaf = [np.array(list(norms)) for norms in found]
  return [np.vstack([x, np.linalg.norm(x, axis=0)]) for x in by_leaf]


def _is_factored(x):
  return isinstance(x, Factored)


def _products(leaves):
  def stacked(term):
    site = dataclasses.replace(term.site, dtype=np.dtype(np.float64))
    return dataclasses.replace(term, site=site).stacked()

  return [
    sum(map(stacked, leaf.terms)) if _is_factored(leaf) else leaf
    for leaf in leaves
  ]


def _size(x):
  return np.linalg.norm(np.reshape(x, (len(x), -1)), axis=1)


def _of_factors(leaf):
  if not _is_factored(leaf):
    return _size(leaf)
  # Of a token outside of its table, the cotangent may be NaN.
  return sum(
    _of_inputs(term) * _size(np.nan_to_num(term.cotangent))
    for term in leaf.terms
  )


def _of_inputs(term):
  x, site = term.inputs[0], term.site
  if site.primitive.name in _look_up.PRIMITIVES:  # a one-hot matrix
    return np.full(len(x), x[0].size ** 0.5)
  places = 1  # of a kernel; each meets an input at most once
  if site.primitive.name == "conv_general_dilated":
    spec = dict(site.params)["dimension_numbers"].rhs_spec
    places = np.prod([site.operand_shape[d] for d in spec[2:]])
  return places**0.5 * _size(x)
