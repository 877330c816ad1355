"""DP-CNN: six 3x3 convolutions and two dense layers, 550,570 parameters.

References:
  Papernot et al. 2020, arXiv:2007.14191, Table 2 (the network it descends
  from); Morsbach et al. 2024, arXiv:2411.02051 (the counts).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxdp.models import _layers


class DPCNN(nnx.Module):
  """Stages of two convolutions of 32, 64 and 128 channels, each 2x2 pooled."""

  def __init__(
    self,
    *,
    input_shape: Sequence[int],
    num_classes: int,
    rngs: nnx.Rngs,
    dtype: DTypeLike,
    activation: str = "tanh",
    hidden: int = 128,
  ) -> None:
    """At 32x32x3: 550,570 parameters for 10 classes, 562,180 for 100."""
    _layers.check_image_shape("dp_cnn", input_shape)
    height, width, channels = input_shape
    if min(height, width) < 8:
      raise ValueError(
        "model 'dp_cnn' halves the image three times, so it needs at least "
        f"8x8 pixels, got input_shape={tuple(input_shape)}."
      )
    self.activation_fn = _layers.activation_fn(activation)
    convs = []
    for features in (32, 64, 128):
      for inputs in (channels, features):
        convs.append(nnx.Conv(inputs, features, (3, 3), dtype=dtype, rngs=rngs))
      channels = features
    self.convs = nnx.List(convs)
    flat = (height // 8) * (width // 8) * channels
    self.dense1 = nnx.Linear(flat, hidden, dtype=dtype, rngs=rngs)
    self.dense2 = nnx.Linear(hidden, num_classes, dtype=dtype, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    for index, conv in enumerate(self.convs):
      x = self.activation_fn(conv(x))
      if index % 2:
        x = _layers.max_pool(x, 2, 2)
    x = jnp.reshape(x, (x.shape[0], -1))
    return self.dense2(self.activation_fn(self.dense1(x)))
