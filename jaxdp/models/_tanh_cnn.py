"""The tanh network of the MNIST tutorials of DP-SGD: 26,010 parameters.

References:
  Papernot, Thakurta, Song, Chien, Erlingsson 2020, arXiv:2007.14191, Table 1
  (bounded activations keep gradients small, so that clipping hurts less).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxdp.models import _layers


class TanhCNN(nnx.Module):
  """Two strided convolutions with 2x2 max-pooling of stride 1, two dense."""

  def __init__(
    self,
    *,
    input_shape: Sequence[int],
    num_classes: int,
    rngs: nnx.Rngs,
    dtype: DTypeLike,
    activation: str = "tanh",
  ) -> None:
    """At 28x28x1 and 10 classes: 1,040 + 8,224 + 16,416 + 330 parameters."""
    _layers.check_image_shape("tanh_cnn", input_shape)
    height, width, channels = input_shape
    height, width = _side(height), _side(width)
    if min(height, width) < 1:
      raise ValueError(
        "model 'tanh_cnn' needs images of at least 13x13, got "
        f"input_shape={tuple(input_shape)}. For 8x8 digits take 'mlp'."
      )
    self.activation_fn = _layers.activation_fn(activation)
    self.conv1 = nnx.Conv(
      channels, 16, (8, 8), 2, padding="SAME", dtype=dtype, rngs=rngs
    )
    self.conv2 = nnx.Conv(
      16, 32, (4, 4), 2, padding="VALID", dtype=dtype, rngs=rngs
    )
    self.dense1 = nnx.Linear(height * width * 32, 32, dtype=dtype, rngs=rngs)
    self.dense2 = nnx.Linear(32, num_classes, dtype=dtype, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    x = _layers.max_pool(self.activation_fn(self.conv1(x)), 2, 1)
    x = _layers.max_pool(self.activation_fn(self.conv2(x)), 2, 1)
    x = jnp.reshape(x, (x.shape[0], -1))
    return self.dense2(self.activation_fn(self.dense1(x)))


def _side(size: int) -> int:
  """Pixels before the dense layers: SAME / 2, pool, VALID 4 / 2, pool."""
  size = -(-size // 2) - 1
  return (size - 4) // 2 + 1 - 1
