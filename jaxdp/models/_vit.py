"""ViT-Tiny for small images.

References:
  Dosovitskiy et al. 2021, arXiv:2010.11929; Touvron et al. 2021,
  arXiv:2012.12877 (the Tiny size: 12 layers, width 192, 3 heads).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxdp.models import _layers


class LayerNorm(nnx.LayerNorm):
  """Normalises in float32, whatever the compute type."""

  def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
    """The gain is 1 and the offset 0 at first."""
    super().__init__(width, epsilon=1e-6, dtype=jnp.float32, rngs=rngs)

  def __call__(
    self, x: jax.Array, *, mask: jax.Array | None = None
  ) -> jax.Array:
    return super().__call__(x.astype(jnp.float32), mask=mask).astype(x.dtype)


class Attention(nnx.Module):
  """Self-attention with one product for queries, keys and values."""

  def __init__(
    self, width: int, num_heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs
  ) -> None:
    """``width`` is split among the heads."""
    if num_heads < 1 or width % num_heads:
      raise ValueError(
        f"num_heads must divide the width {width}, got {num_heads=}."
      )
    self.num_heads = num_heads
    self.qkv = nnx.Linear(width, 3 * width, dtype=dtype, rngs=rngs)
    self.out = nnx.Linear(width, width, dtype=dtype, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    batch, tokens, width = x.shape
    size = width // self.num_heads
    qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, size)
    query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    scores = jnp.einsum("bqhd,bkhd->bhqk", query * size**-0.5, key)
    weights = jax.nn.softmax(scores.astype(jnp.float32)).astype(x.dtype)
    y = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
    return self.out(y.reshape(batch, tokens, width))


class Block(nnx.Module):
  """Attention, then a two-layer network, each on a normalised input."""

  def __init__(
    self,
    width: int,
    num_heads: int,
    mlp_width: int,
    *,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
  ) -> None:
    """``mlp_width`` is that of the hidden layer."""
    self.norm1 = LayerNorm(width, rngs=rngs)
    self.attention = Attention(width, num_heads, dtype=dtype, rngs=rngs)
    self.norm2 = LayerNorm(width, rngs=rngs)
    self.mlp1 = nnx.Linear(width, mlp_width, dtype=dtype, rngs=rngs)
    self.mlp2 = nnx.Linear(mlp_width, width, dtype=dtype, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    x = x + self.attention(self.norm1(x))
    return x + self.mlp2(jax.nn.gelu(self.mlp1(self.norm2(x))))


class ViT(nnx.Module):
  """Patches, learned positions, blocks, mean over tokens, linear head."""

  def __init__(
    self,
    *,
    input_shape: Sequence[int],
    num_classes: int,
    rngs: nnx.Rngs,
    dtype: DTypeLike,
    patch_size: int = 4,
    width: int = 192,
    num_layers: int = 12,
    num_heads: int = 3,
    mlp_width: int = 768,
  ) -> None:
    """``patch_size`` must divide height and width of the image."""
    _layers.check_image_shape("vit_tiny", input_shape)
    height, image_width, channels = input_shape
    if patch_size < 1 or height % patch_size or image_width % patch_size:
      raise ValueError(
        "patch_size must divide the image's height and width, got "
        f"{patch_size=} for input_shape={tuple(input_shape)}."
      )
    self.patch_size = patch_size
    tokens = (height // patch_size) * (image_width // patch_size)
    self.patch = nnx.Linear(
      patch_size**2 * channels, width, dtype=dtype, rngs=rngs
    )
    self.position = nnx.Param(
      0.02 * jax.random.normal(rngs.params(), (tokens, width))
    )
    self.blocks = nnx.List(
      [
        Block(width, num_heads, mlp_width, dtype=dtype, rngs=rngs)
        for _ in range(num_layers)
      ]
    )
    self.norm = LayerNorm(width, rngs=rngs)
    self.head = nnx.Linear(width, num_classes, dtype=dtype, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    x = self.patch(_patches(x, self.patch_size))
    x = x + self.position[...].astype(x.dtype)[None]
    for block in self.blocks:
      x = block(x)
    return self.head(self.norm(x).mean(1))


def _patches(x: jax.Array, size: int) -> jax.Array:
  """``[b, h, w, c]`` to ``[b, (h / size) (w / size), size size c]``.

  A dense layer on patches is the usual strided convolution, and its per-example
  gradient is a matrix product.
  """
  batch, height, width, channels = x.shape
  x = x.reshape(
    batch, height // size, size, width // size, size, channels
  ).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(batch, -1, size * size * channels)
