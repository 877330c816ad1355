"""ResNet-18 and ResNet-34, with GroupNorm or BatchNorm.

References:
  He et al. 2016, arXiv:1512.03385; Wu and He 2018, arXiv:1803.08494.
"""

from collections.abc import Callable, Sequence

import jax
from flax import nnx
from jax.typing import DTypeLike

from jaxdp.models import _layers

Norm = Callable[[int], Callable[..., jax.Array]]

STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class BasicBlock(nnx.Module):
  """Two 3x3 convolutions and a shortcut, projected where shapes change."""

  def __init__(
    self,
    inputs: int,
    features: int,
    stride: int,
    *,
    norm: Norm,
    standardize: bool,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
  ) -> None:
    """``stride`` is that of the first convolution and of the shortcut."""

    def conv(channels: int, size: int, stride: int) -> _layers.Conv:
      return _layers.Conv(
        channels,
        features,
        size,
        stride,
        standardize=standardize,
        dtype=dtype,
        rngs=rngs,
      )

    self.conv1, self.norm1 = conv(inputs, 3, stride), norm(features)
    self.conv2, self.norm2 = conv(features, 3, 1), norm(features)
    self.project = stride != 1 or inputs != features
    if self.project:
      self.shortcut = conv(inputs, 1, stride)
      self.shortcut_norm = norm(features)

  def __call__(self, x: jax.Array, *mask: jax.Array) -> jax.Array:
    y = jax.nn.relu(self.norm1(self.conv1(x), *mask))
    y = self.norm2(self.conv2(y), *mask)
    if self.project:
      x = self.shortcut_norm(self.shortcut(x), *mask)
    return jax.nn.relu(x + y)


class ResNet(nnx.Module):
  """Four stages of basic blocks with 64, 128, 256 and 512 channels."""

  def __init__(
    self,
    depth: int,
    *,
    input_shape: Sequence[int],
    num_classes: int,
    rngs: nnx.Rngs,
    dtype: DTypeLike,
    stem: str = "imagenet",
    norm: str = "group",
    num_groups: int = 32,
    weight_standardization: bool = False,
  ) -> None:
    """``stem`` is "imagenet" (7x7 / 2, pooled) or "cifar" (3x3, not pooled).

    With ``norm="batch"`` the rows are a bucket, and a mask goes with them.

    With the ImageNet stem and 10 classes: 11,181,642 parameters at depth 18,
    21,289,802 at 34, as with BatchNorm.
    """
    _layers.check_image_shape(f"resnet{depth}", input_shape)
    if stem not in ("imagenet", "cifar"):
      raise ValueError(f"stem must be 'imagenet' or 'cifar', got {stem!r}.")
    if norm not in ("group", "batch"):
      raise ValueError(f"norm must be 'group' or 'batch', got {norm!r}.")
    make_norm: Norm = (
      (lambda channels: _layers.BatchNorm(channels, rngs=rngs))
      if norm == "batch"
      else lambda channels: _layers.GroupNorm(channels, num_groups, rngs=rngs)
    )
    self.pool = stem == "imagenet"
    size, stride = (7, 2) if self.pool else (3, 1)
    self.conv = _layers.Conv(
      input_shape[-1],
      64,
      size,
      stride,
      standardize=weight_standardization,
      dtype=dtype,
      rngs=rngs,
    )
    self.norm = make_norm(64)
    blocks = []
    inputs = 64
    for stage, num_blocks in enumerate(STAGES[depth]):
      features = 64 * 2**stage
      for block in range(num_blocks):
        blocks.append(
          BasicBlock(
            inputs,
            features,
            stride=2 if stage and not block else 1,
            norm=make_norm,
            standardize=weight_standardization,
            dtype=dtype,
            rngs=rngs,
          )
        )
        inputs = features
    self.blocks = nnx.List(blocks)
    self.head = nnx.Linear(inputs, num_classes, dtype=dtype, rngs=rngs)

  def __call__(self, x: jax.Array, *mask: jax.Array) -> jax.Array:
    """``mask`` is that of padding, for BatchNorm."""
    x = jax.nn.relu(self.norm(self.conv(x), *mask))
    if self.pool:
      x = _layers.max_pool(x, 3, 2, padding=1)
    for block in self.blocks:
      x = block(x, *mask)
    return self.head(x.mean((1, 2)))
