"""ResNet-18 and ResNet-34 with GroupNorm.

References:
  He et al. 2016, arXiv:1512.03385; Wu and He 2018, arXiv:1803.08494.
"""

from collections.abc import Sequence

import jax
from flax import nnx
from jax.typing import DTypeLike

from jaxdp.models import _layers

STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class BasicBlock(nnx.Module):
  """Two 3x3 convolutions and a shortcut, projected where shapes change."""

  def __init__(
    self,
    inputs: int,
    features: int,
    stride: int,
    *,
    num_groups: int,
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

    def norm() -> _layers.GroupNorm:
      return _layers.GroupNorm(features, num_groups, rngs=rngs)

    self.conv1, self.norm1 = conv(inputs, 3, stride), norm()
    self.conv2, self.norm2 = conv(features, 3, 1), norm()
    self.project = stride != 1 or inputs != features
    if self.project:
      self.shortcut, self.shortcut_norm = conv(inputs, 1, stride), norm()

  def __call__(self, x: jax.Array) -> jax.Array:
    y = jax.nn.relu(self.norm1(self.conv1(x)))
    y = self.norm2(self.conv2(y))
    if self.project:
      x = self.shortcut_norm(self.shortcut(x))
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
    num_groups: int = 32,
    weight_standardization: bool = False,
  ) -> None:
    """``stem`` is "imagenet" (7x7 / 2, pooled) or "cifar" (3x3, not pooled).

    With the ImageNet stem and 10 classes: 11,181,642 parameters at depth 18,
    21,289,802 at 34, as with BatchNorm.
    """
    _layers.check_image_shape(f"resnet{depth}", input_shape)
    if stem not in ("imagenet", "cifar"):
      raise ValueError(f"stem must be 'imagenet' or 'cifar', got {stem!r}.")
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
    self.norm = _layers.GroupNorm(64, num_groups, rngs=rngs)
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
            num_groups=num_groups,
            standardize=weight_standardization,
            dtype=dtype,
            rngs=rngs,
          )
        )
        inputs = features
    self.blocks = nnx.List(blocks)
    self.head = nnx.Linear(inputs, num_classes, dtype=dtype, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    x = jax.nn.relu(self.norm(self.conv(x)))
    if self.pool:
      x = _layers.max_pool(x, 3, 2, padding=1)
    for block in self.blocks:
      x = block(x)
    return self.head(x.mean((1, 2)))
