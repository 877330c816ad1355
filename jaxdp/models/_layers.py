"""What several models share. All but BatchNorm acts on each row alone."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "tanh": jnp.tanh,
  "relu": jax.nn.relu,
  "gelu": jax.nn.gelu,
  "silu": jax.nn.silu,
}


def activation_fn(name: str) -> Callable[[jax.Array], jax.Array]:
  """The activation of that name."""
  if name not in ACTIVATIONS:
    raise ValueError(
      f"activation must be one of {sorted(ACTIVATIONS)}, got {name!r}."
    )
  return ACTIVATIONS[name]


def max_pool(
  x: jax.Array, window: int, stride: int, padding: int = 0
) -> jax.Array:
  """Maximum over square windows of ``x [batch, height, width, channels]``.

  Equal to ``lax.reduce_window`` in value and gradient: of equal entries the
  first in row-major order gets the gradient (``jnp.maximum`` would share it),
  and NaN wins. Made of slices and selections, since the gradient of
  reduce_window is a scatter, which is several times slower under ``vmap``.
  """
  if padding:
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    x = jnp.pad(x, pads, constant_values=-jnp.inf)
  for axis in (2, 1):  # Rows last, so that the first row wins a tie.
    last = x.shape[axis] - window + 1
    shifted = [
      jax.lax.slice_in_dim(x, start, last + start, stride, axis)
      for start in range(window)
    ]
    x = shifted[0]
    for other in shifted[1:]:
      x = jnp.where((other > x) | jnp.isnan(other), other, x)
  return x


class GroupNorm(nnx.GroupNorm):
  """Normalises groups of channels, in float32 whatever the compute type."""

  def __init__(self, channels: int, num_groups: int, *, rngs: nnx.Rngs) -> None:
    """The gain is 1 and the offset 0 at first."""
    if num_groups < 1 or channels % num_groups:
      raise ValueError(
        f"num_groups must divide the {channels} channels, got {num_groups=}."
      )
    super().__init__(
      channels, num_groups, epsilon=1e-5, dtype=jnp.float32, rngs=rngs
    )

  def __call__(
    self, x: jax.Array, *, mask: jax.Array | None = None
  ) -> jax.Array:
    return super().__call__(x.astype(jnp.float32), mask=mask).astype(x.dtype)


class BatchNorm(nnx.Module):
  """Normalises each channel over all real rows, which are one unit.

  It keeps no running statistics, which would be a release without noise: what
  evaluation normalises by is computed from rows that may be shown.
  """

  def __init__(self, channels: int, *, rngs: nnx.Rngs) -> None:
    """The gain is 1 and the offset 0 at first."""
    del rngs
    self.scale = nnx.Param(jnp.ones(channels))
    self.bias = nnx.Param(jnp.zeros(channels))

  def __call__(self, x: jax.Array, is_padding_example: jax.Array) -> jax.Array:
    """In float32, over ``x [rows, height, width, channels]``."""
    rows, axes = x.astype(jnp.float32), tuple(range(x.ndim - 1))
    real = ~jnp.expand_dims(is_padding_example, range(1, x.ndim))
    count = jnp.maximum(jnp.sum(real), 1) * (x[0].size // x.shape[-1])

    def mean(values: jax.Array) -> jax.Array:
      total = jnp.sum(jnp.where(real, values, 0), axes, keepdims=True)
      return total / count.astype(jnp.float32)

    centred = rows - mean(rows)
    scaled = centred * jax.lax.rsqrt(mean(jnp.square(centred)) + 1e-5)
    scale, bias = (
      jnp.expand_dims(p[...], axes) for p in (self.scale, self.bias)
    )
    return (scaled * scale + bias).astype(x.dtype)


class Conv(nnx.Conv):
  """A square convolution without bias, optionally weight-standardised.

  With standardisation each output channel's kernel is shifted and scaled to
  mean 0 and variance 1 / fan_in before use (Qiao et al. 2019,
  arXiv:1903.10520).
  """

  def __init__(
    self,
    in_channels: int,
    out_channels: int,
    size: int,
    stride: int = 1,
    *,
    standardize: bool = False,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
  ) -> None:
    """Padded by ``size // 2`` on every side, as in the published networks."""
    super().__init__(
      in_channels,
      out_channels,
      (size, size),
      (stride, stride),
      padding=size // 2,
      use_bias=False,
      dtype=dtype,
      rngs=rngs,
    )
    self.standardize = standardize
    self.stride = stride

  def __call__(self, x: jax.Array, out_sharding: None = None) -> jax.Array:
    if not self.standardize:
      return super().__call__(x, out_sharding)
    kernel = self.kernel[...]
    mean = kernel.mean((0, 1, 2), keepdims=True)
    variance = kernel.var((0, 1, 2), keepdims=True)
    fan_in = kernel[..., 0].size
    kernel = (kernel - mean) * jax.lax.rsqrt(variance * fan_in + 1e-4)
    return jax.lax.conv_general_dilated(
      x,
      kernel.astype(x.dtype),
      (self.stride, self.stride),
      [(side // 2, side // 2) for side in kernel.shape[:2]],
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def check_image_shape(model: str, input_shape: Sequence[int]) -> None:
  """Raises unless the shape is ``(height, width, channels)``."""
  if len(input_shape) != 3 or min(input_shape) < 1:
    raise ValueError(
      f"model {model!r} takes images: input_shape must be (height, width, "
      f"channels), got {tuple(input_shape)}."
    )
