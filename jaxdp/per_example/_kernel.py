"""GPU kernels for X' Y of every unit, which is never written to memory.

One for the squared norms and one for the weighted sum, for factors of 16-bit
floating-point numbers. Their products are exact in float32, where they are
added; the norm is that of the gradient summed, and no weight is rounded to
fewer bits than float32 has.

A convolution is a matrix product for each place of its kernel, over positions
that are found by arithmetic; padding costs no memory. Written with
Pallas for Triton. What other devices run is in ``_norms.py`` and ``_site.py``.
Under ``jit`` alone XLA would gather what a kernel reads on every device; inside
of ``shard_map``, which ``make_train_step`` uses, each has its own units.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from jaxdp.per_example._products import Product, Window
from jaxdp.per_example._wide import widen

# Tried on an H200, on the layers of a wide ResNet and of transformers. A sum
# has two tiles in registers, of a block and of all.
_MOST_OF_SQUARES = (128, 128)
_MOST_OF_SUM = (128, 64)
_LEAST_TILE = 16  # of a tensor core
_BLOCK = 64  # positions at a time
_STAGES = 3  # of them on their way
_SPLIT_PROGRAMS = 1024  # of a sum: several for each multiprocessor


def suits(product: Product) -> bool:
  """Whether JAX runs on a GPU, and these are for the kernels."""
  x, y = product.x, product.y
  return (
    jax.default_backend() == "gpu"
    and x.dtype == y.dtype
    and x.dtype in (jnp.bfloat16, jnp.float16)
    and product.window.positions >= _LEAST_TILE
    and max(x.size, y.size) < 2**31
  )


def on_gpu(
  kernel: Callable[..., Array], portable: Callable[..., Array], *args: Any
) -> Array:
  """One of two ways, by the device that this runs on."""

  def elsewhere(*args: Any) -> Array:
    return portable(*jax.tree.map(widen, args))

  return jax.lax.platform_dependent(*args, cuda=kernel, default=elsewhere)


def squares(
  product: Product, *, interpret: bool = False
) -> Float[Array, " units"]:
  """Squared norms, summed over groups and places of the kernel."""
  x, y, window = product.x, product.y, product.window
  units, groups = x.shape[:2]
  tiles = _Tiles(product, _MOST_OF_SQUARES)

  def kernel(x_ref, y_ref, out_ref):  # type: ignore[no-untyped-def]
    number, tile = _divide(pl.program_id(0), tiles.count)
    of_unit = _divide(number, groups)

    def body(i: Array, total: Array) -> Array:
      return total + _block(x_ref, y_ref, window, tiles, of_unit, tile, i)

    blocks = pl.cdiv(y.shape[2], _BLOCK)
    total = jax.lax.fori_loop(0, blocks, body, tiles.zeros())
    out_ref[...] = jnp.sum(total * total)

  programs = units * groups * tiles.count
  out = pl.pallas_call(
    kernel,
    grid=(programs,),
    out_specs=pl.BlockSpec((None,), lambda i: (i,)),
    out_shape=jax.ShapeDtypeStruct((programs,), jnp.float32),
    compiler_params=tiles.compiler_params,
    interpret=interpret,
    name="product_squares",
  )(x, y)
  return jnp.sum(out.reshape(units, -1), axis=1)


def weighted_sum(
  product: Product,
  weights: Float[Array, " units"],
  *,
  interpret: bool = False,
) -> Float[Array, "groups places k o"]:
  """Sum over units of weight times X' Y; one of weight 0 adds nothing."""
  x, y, window = product.x, product.y, product.window
  units, groups = x.shape[:2]
  tiles = _Tiles(product, _MOST_OF_SUM)
  splits = min(units, pl.cdiv(_SPLIT_PROGRAMS, groups * tiles.count))
  share = pl.cdiv(units, splits)
  blocks = pl.cdiv(y.shape[2], _BLOCK)

  def kernel(w_ref, x_ref, y_ref, out_ref):  # type: ignore[no-untyped-def]
    split, number = _divide(pl.program_id(0), groups * tiles.count)
    group, tile = _divide(number, tiles.count)

    def body(i: Array, total: Array) -> Array:
      unit, i = _divide(i, blocks)
      unit += split * share
      # Beyond the last: the last one, with a weight of 0.
      last = jnp.minimum(unit, units - 1)
      weight = jnp.where(unit < units, w_ref[last], 0.0)
      of_unit = last, group
      part = _block(x_ref, y_ref, window, tiles, of_unit, tile, i)
      # Not left to the weight: 0 * NaN is NaN.
      return total + jnp.where(weight == 0, 0.0, weight * part)

    out_ref[...] = jax.lax.fori_loop(0, share * blocks, body, tiles.zeros())

  def where(i: Array) -> tuple[Array, ...]:
    split, number = _divide(i, groups * tiles.count)
    group, tile = _divide(number, tiles.count)
    return split, group, *tiles.of(tile)

  out = pl.pallas_call(
    kernel,
    grid=(splits * groups * tiles.count,),
    out_specs=pl.BlockSpec((None, None, None, tiles.k, tiles.o), where),
    out_shape=jax.ShapeDtypeStruct(
      (splits, groups, window.places, *tiles.covered), jnp.float32
    ),
    compiler_params=tiles.compiler_params,
    interpret=interpret,
    name="product_weighted_sum",
  )(weights, x, y)
  return jnp.sum(out, axis=0)[..., : x.shape[3], : y.shape[3]]


def _divide(number: Array, by: int) -> tuple[Array, Array]:
  """Quotient and remainder, of what is not negative."""
  divisor = jnp.asarray(by, number.dtype)
  return jax.lax.div(number, divisor), jax.lax.rem(number, divisor)


class _Tiles:
  """The products of one unit, cut into pieces that fit in registers."""

  def __init__(self, product: Product, most: tuple[int, int]) -> None:
    """``most`` are the rows and columns of a large one."""
    sizes = product.x.shape[3], product.y.shape[3]
    self.k, self.o = (
      min(limit, max(_LEAST_TILE, pl.next_power_of_2(size)))
      for size, limit in zip(sizes, most, strict=True)
    )
    self._rows = pl.cdiv(sizes[0], self.k)
    self._columns = pl.cdiv(sizes[1], self.o)
    self._places = product.window.places

  @property
  def count(self) -> int:
    return self._rows * self._columns * self._places

  @property
  def covered(self) -> tuple[int, int]:
    """Rows and columns of all tiles."""
    return self._rows * self.k, self._columns * self.o

  def of(self, number: Array) -> tuple[Array, Array, Array]:
    """Place of the kernel, row and column of a tile."""
    number, place = _divide(number, self._places)
    column, row = _divide(number, self._rows)
    return place, row, column

  def zeros(self) -> Array:
    return jnp.zeros((self.k, self.o), jnp.float32)

  @property
  def compiler_params(self) -> plgpu.CompilerParams:
    warps = 8 if self.k * self.o > 128 * 64 else 4
    return plgpu.CompilerParams(num_warps=warps, num_stages=_STAGES)


def _block(
  x_ref: Any,
  y_ref: Any,
  window: Window,
  tiles: _Tiles,
  of_unit: tuple[Array, Array],
  tile: Array,
  block: Array,
) -> Float[Array, "k o"]:
  """X' Y of a unit and group over a block of positions, in float32."""
  place, k, o = tiles.of(tile)
  positions = block * _BLOCK + jnp.arange(_BLOCK, dtype=jnp.int32)
  rows, valid = _rows(window, positions, place)
  x = _load(x_ref, of_unit, rows, valid, k * tiles.k, tiles.k)
  positions = jnp.where(valid, positions, 0)
  y = _load(y_ref, of_unit, positions, valid, o * tiles.o, tiles.o)
  return plgpu.dot(x, y, trans_a=True, allow_tf32=False)


def _rows(
  window: Window, positions: Array, place: Array
) -> tuple[Array, Array]:
  """Which input each position meets, and whether there is one; else row 0."""
  row = jnp.zeros_like(positions)
  valid = positions < window.positions
  size = 1
  for inputs, outputs, kernel, stride, dilation, padding in zip(
    *map(reversed, window), strict=True
  ):
    positions, output = _divide(positions, outputs)
    place, offset = _divide(place, kernel)
    at = output * stride + offset * dilation - padding
    valid &= (at >= 0) & (at < inputs)
    row += at * size
    size *= inputs
  return jnp.where(valid, row, 0), valid


def _load(
  ref: Any,
  of_unit: tuple[Array, Array],
  rows: Array,
  valid: Array,
  start: Array,
  count: int,
) -> Array:
  """Rows from a column on; zeros where there is none."""
  columns, width = start + jnp.arange(count, dtype=jnp.int32), ref.shape[-1]
  mask = jnp.broadcast_to(valid[:, None], (rows.size, count))
  if width % count:
    mask &= (columns < width)[None, :]
    columns = jnp.minimum(columns, width - 1)
  unit, group = of_unit
  piece = ref.at[unit, group, rows[:, None], columns[None, :]]
  return plgpu.load(piece, mask=mask, other=0.0)
