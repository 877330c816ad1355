"""Wide ResNets with GroupNorm: WRN-16-4 and WRN-40-4.

References:
  Zagoruyko and Komodakis 2016, arXiv:1605.07146; De et al. 2022,
  arXiv:2204.13650 (GroupNorm of 16 groups and weight standardisation for
  DP-SGD on CIFAR-10).
"""

from collections.abc import Sequence

import jax
from flax import nnx
from jax.typing import DTypeLike

from jaxdp.models import _layers


class PreactivationBlock(nnx.Module):
  """Normalise, activate, convolve, twice; the shortcut starts activated."""

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

    def norm(channels: int) -> _layers.GroupNorm:
      return _layers.GroupNorm(channels, num_groups, rngs=rngs)

    self.norm1, self.conv1 = norm(inputs), conv(inputs, 3, stride)
    self.norm2, self.conv2 = norm(features), conv(features, 3, 1)
    self.project = stride != 1 or inputs != features
    if self.project:
      self.shortcut = conv(inputs, 1, stride)

  def __call__(self, x: jax.Array) -> jax.Array:
    y = jax.nn.relu(self.norm1(x))
    if self.project:
      x = self.shortcut(y)
    y = self.conv1(y)
    return x + self.conv2(jax.nn.relu(self.norm2(y)))


class WideResNet(nnx.Module):
  """Three stages of (depth - 4) / 6 blocks, of 16, 32 and 64 times width."""

  def __init__(
    self,
    depth: int,
    width: int,
    *,
    input_shape: Sequence[int],
    num_classes: int,
    rngs: nnx.Rngs,
    dtype: DTypeLike,
    num_groups: int = 16,
    weight_standardization: bool = False,
  ) -> None:
    """At 32x32x3 and 10 classes: 2,748,890 parameters for WRN-16-4."""
    _layers.check_image_shape(f"wrn_{depth}_{width}", input_shape)
    self.conv = _layers.Conv(
      input_shape[-1],
      16,
      3,
      standardize=weight_standardization,
      dtype=dtype,
      rngs=rngs,
    )
    blocks = []
    inputs = 16
    for stage in range(3):
      features = 16 * 2**stage * width
      for block in range((depth - 4) // 6):
        blocks.append(
          PreactivationBlock(
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
    self.norm = _layers.GroupNorm(inputs, num_groups, rngs=rngs)
    self.head = nnx.Linear(inputs, num_classes, dtype=dtype, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    x = self.conv(x)
    for block in self.blocks:
      x = block(x)
    return self.head(jax.nn.relu(self.norm(x)).mean((1, 2)))
