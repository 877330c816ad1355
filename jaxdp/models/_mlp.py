"""A multilayer perceptron on the flattened input."""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxdp.models import _layers


class MLP(nnx.Module):
  """Dense layers of widths ``hidden``, then one without activation."""

  def __init__(
    self,
    *,
    input_shape: Sequence[int],
    num_classes: int,
    rngs: nnx.Rngs,
    dtype: DTypeLike,
    hidden: Sequence[int] = (128,),
    activation: str = "tanh",
  ) -> None:
    """No ``hidden`` layer makes it logistic regression."""
    widths = [math.prod(input_shape), *hidden, num_classes]
    self.activation_fn = _layers.activation_fn(activation)
    self.layers = nnx.List(
      [
        nnx.Linear(inputs, outputs, dtype=dtype, rngs=rngs)
        for inputs, outputs in itertools.pairwise(widths)
      ]
    )

  def __call__(self, x: jax.Array) -> jax.Array:
    x = jnp.reshape(x, (x.shape[0], -1))
    for layer in self.layers[:-1]:
      x = self.activation_fn(layer(x))
    return self.layers[-1](x)
