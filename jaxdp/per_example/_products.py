"""A site as products of two matrices, whatever its equation looks like.

The gradient of a matrix product is X' Y, summed over positions. That of a
convolution is one such product for each place of its kernel, with the inputs
that this place meets (``Window``).
"""

import dataclasses
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdp.per_example._site import Site, Term
from jaxdp.per_example._wide import einsum

# Copied together at a time, so that they stay in a processor's cache.
_MOST_MET = 2**19


class Window(NamedTuple):
  """Which inputs meet which outputs: those of a convolution, by axis.

  At place ``s`` of the kernel, output ``q`` meets input
  ``q stride + s dilation - padding``, or a zero beyond the edge.
  """

  inputs: tuple[int, ...]
  outputs: tuple[int, ...]
  kernel: tuple[int, ...]
  strides: tuple[int, ...]
  dilation: tuple[int, ...]
  padding: tuple[int, ...]

  @classmethod
  def of_product(cls, positions: int) -> "Window":
    """Of a matrix product: position by position."""
    return cls((positions,), (positions,), (1,), (1,), (1,), (0,))

  @property
  def positions(self) -> int:
    return math.prod(self.outputs)

  @property
  def places(self) -> int:
    return math.prod(self.kernel)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Product:
  """Inputs and cotangents of one site, in their own types; *sensitive*.

  Attributes:
    x: the other operand.
    y: the cotangent of the result.
    window: which of them meet.
  """

  x: Float[Array, "units groups inputs k"]
  y: Float[Array, "units groups positions o"]
  window: Window = dataclasses.field(metadata={"static": True})

  def met(self) -> list[Float[Array, "units groups positions k"]]:
    """For each place of the kernel, the input met at every position."""
    window = self.window
    if window == Window.of_product(window.positions):
      return [self.x]
    x = self._padded()
    units, groups, *_, features = x.shape

    def at(place: tuple[int, ...]) -> Array:
      start = [s * d for s, d in zip(place, window.dilation, strict=True)]
      stop = [
        s + (n - 1) * stride + 1
        for s, n, stride in zip(
          start, window.outputs, window.strides, strict=True
        )
      ]
      piece = jax.lax.slice(
        x,
        (0, 0, *start, 0),
        (units, groups, *stop, features),
        (1, 1, *window.strides, 1),
      )
      return piece.reshape(units, groups, -1, features)

    return [
      at(place) for place in itertools.product(*map(range, window.kernel))
    ]

  def made(self) -> Float[Array, "units groups places k o"]:
    """X' Y of every unit.

    The inputs met are copied together, axis by axis: a slice for each place of
    an axis is fewer than one for each of the kernel.
    """
    window = self.window
    x = jnp.moveaxis(self._padded(), -1, 2)
    for axis in reversed(range(len(window.kernel))):
      size, stride = window.outputs[axis], window.strides[axis]
      starts = [s * window.dilation[axis] for s in range(window.kernel[axis])]
      pieces = [
        jax.lax.slice_in_dim(
          x, start, start + (size - 1) * stride + 1, stride, 3 + axis
        )
        for start in starts
      ]
      x = jnp.concatenate(pieces, axis=2)
    x = x.reshape(*x.shape[:3], -1)
    made = einsum("ugit,ugto->ugio", x, self.y)
    units, groups, _, features = self.x.shape
    return made.reshape(units, groups, window.places, features, -1)

  def _padded(self) -> Float[Array, "units groups *inputs k"]:
    """The inputs with those zeros that some place meets, and no more."""
    window = self.window
    units, groups, _, features = self.x.shape
    x = self.x.reshape(units, groups, *window.inputs, features)
    last = [
      (n - 1) * stride + (size - 1) * dilation + 1 - padding
      for n, size, stride, dilation, padding in zip(*window[1:], strict=True)
    ]
    widths = [
      (padding, stop - n, 0)
      for padding, stop, n in zip(
        window.padding, last, window.inputs, strict=True
      )
    ]
    none = (0, 0, 0)
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [none, none, *widths, none])


def by_layer(term: Term) -> Term:
  """Units and layers as one axis: ``[units * layers, repeats, ...]``.

  Its site is that of the whole; of its shapes, only the operand's is for one.
  """
  layers = term.site.num_layer_axes

  def one(x: Array) -> Array:
    x = jnp.moveaxis(x, 1, 1 + layers)
    return x.reshape(-1, *x.shape[1 + layers :])

  if not layers:
    return term
  inputs, cotangent = jax.tree.map(one, (term.inputs, term.cotangent))
  return Term(inputs, cotangent, term.site)


def of(term: Term) -> Product | None:
  """Of ``by_layer(term)``; None if it is none, or none that is known."""
  name = term.site.primitive.name
  if name == "dot_general":
    return _of_dot_general(term)
  if name == "conv_general_dilated":
    return _of_convolution(term)
  return None


def by_unit(term: Term) -> Product | None:
  """The term's products, with its layers among the groups."""
  product = of(by_layer(term))
  if product is None:
    return None
  units = term.cotangent.shape[0]

  def one(x: Array) -> Array:
    return x.reshape(units, -1, *x.shape[2:])

  return jax.tree.map(one, product)


def stacked(term: Term) -> Float[Array, "units ..."]:
  """``term.stacked()``, of a term that is products, a few units at a time."""
  product = by_unit(term)
  assert product is not None
  _, groups, _, features = product.x.shape
  window = product.window
  met = groups * features * window.places * window.positions

  def one(product: Product) -> Array:
    (made,) = jax.tree.map(lambda x: x[None], product).made()
    return gradient(term.site, made)

  result: Array
  result = jax.lax.map(one, product, batch_size=max(1, _MOST_MET // met))
  return result


def _of_dot_general(term: Term) -> Product:
  site = term.site
  contracting, batch = dict(site.params)["dimension_numbers"]
  # Of the input, which is the other operand; units and repeats are in front.
  mine = 1 - site.position
  (x,), y = term.inputs, term.cotangent
  shared = [2 + d for d in batch[mine]]
  summed = [2 + d for d in contracting[mine]]
  free = [d for d in range(2, x.ndim) if d not in (*shared, *summed)]
  x = jnp.transpose(x, (0, *shared, 1, *free, *summed))
  units, num_shared, num_free = x.shape[0], len(shared), len(free)
  groups = math.prod(x.shape[1 : 1 + num_shared])
  positions = math.prod(x.shape[1 + num_shared : 2 + num_shared + num_free])
  x = x.reshape(units, groups, positions, -1)
  # The result has shared axes, free ones of the left, free ones of the right.
  start = 2 + num_shared
  split = y.ndim - num_free if mine == 1 else start
  order = (
    0, *range(2, start), 1, *range(split, y.ndim), *range(start, split)
  )  # fmt: skip
  y = jnp.transpose(y, order).reshape(units, groups, positions, -1)
  return Product(x, y, Window.of_product(positions))


def _of_convolution(term: Term) -> Product | None:
  site = term.site
  params = dict(site.params)
  if site.position != 1 or params["batch_group_count"] != 1:
    return None
  numbers, kernel = params["dimension_numbers"], site.operand_shape
  x = _canonical(term.inputs[0], numbers.lhs_spec)
  y = _canonical(term.cotangent, numbers.out_spec)
  # Zeros between the inputs, as the convolution sees them.
  none = (0, 0, 0)
  between = [(0, 0, step - 1) for step in params["lhs_dilation"]]
  x = jax.lax.pad(x, jnp.zeros((), x.dtype), [none, none, *between, none])
  window = Window(
    x.shape[1:-1],
    y.shape[1:-1],
    (1, *(kernel[d] for d in numbers.rhs_spec[2:])),
    (1, *params["window_strides"]),
    (1, *params["rhs_dilation"]),
    (0, *(low for low, _ in params["padding"])),
  )
  groups = params["feature_group_count"]
  return Product(_by_group(x, groups), _by_group(y, groups), window)


def _canonical(x: Array, spec: tuple[int, ...]) -> Array:
  """To ``[units, rows, *where, features]``; spec is (rows, features, where)."""
  rows, features, *where = (2 + d for d in spec)
  x = jnp.transpose(x, (0, 1, rows, *where, features))
  return x.reshape(x.shape[0], -1, *x.shape[3:])


def _by_group(x: Array, groups: int) -> Array:
  """To ``[units, groups, positions, features]``."""
  units, features = x.shape[0], x.shape[-1]
  x = x.reshape(units, -1, groups, features // groups)
  return jnp.swapaxes(x, 1, 2)


def gradient(
  site: Site, products: Float[Array, "groups places k o"]
) -> Float[Array, "..."]:
  """Products, for the groups of every layer, as the parameter's gradient."""
  rows = math.prod(site.layers)
  products = products.reshape(rows, -1, *products.shape[1:])
  params, shape = dict(site.params), site.operand_shape
  if site.primitive.name == "dot_general":
    contracting, batch = (d[site.position] for d in params["dimension_numbers"])
    axes = [*batch, *contracting]
    axes += [d for d in range(len(shape)) if d not in axes]
  else:
    outputs, inputs, *where = params["dimension_numbers"].rhs_spec
    axes = [*where, inputs, outputs]
    products = jnp.moveaxis(products, 1, 3)
  products = products.reshape(rows, *(shape[d] for d in axes))
  order = [axes.index(d) for d in range(len(shape))]
  products = jnp.transpose(products, (0, *(1 + d for d in order)))
  products = products.reshape(*site.layers, *shape)
  abstract = jax.ShapeDtypeStruct(site.shape, products.dtype)
  (total,) = jax.linear_transpose(site.view, abstract)(products)
  return total
