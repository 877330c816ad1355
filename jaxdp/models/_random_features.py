"""A linear classifier on random Fourier features: a kernel machine.

The features are fixed, so that clipping and noise meet a convex problem; and
since a feature vector has norm 1, the noise in a logit does not grow with the
number of features.

References:
  Rahimi and Recht 2007, "Random features for large-scale kernel machines";
  Chaudhuri et al. 2011, arXiv:0912.0071, section 5 (their private training);
  Tramèr and Boneh 2021, arXiv:2011.11660 (fixed features against deep ones).
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

# The features are the same for everyone, whatever the model's seed.
_PUBLIC_SEED = 0


class RandomFeatures(nnx.Module):
  """sqrt(2/k) cos(W x + b) of the centred input on the unit sphere."""

  def __init__(
    self,
    *,
    input_shape: Sequence[int],
    num_classes: int,
    rngs: nnx.Rngs,
    dtype: DTypeLike,
    num_features: int = 2000,
    bandwidth: float = 0.5,
  ) -> None:
    """``bandwidth`` is that of the kernel exp(-|x - y|^2 / 2 bandwidth^2)."""
    if not bandwidth > 0:
      raise ValueError(f"bandwidth must be > 0, got {bandwidth=}.")
    self.inputs = math.prod(input_shape)
    self.num_features = num_features
    self.bandwidth = bandwidth
    self.head = nnx.Linear(
      num_features, num_classes, use_bias=False, dtype=dtype, rngs=rngs
    )

  def __call__(self, x: jax.Array) -> jax.Array:
    x = jnp.reshape(x, (x.shape[0], self.inputs))
    x = x - jnp.mean(x, axis=1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.sum(x**2, axis=1, keepdims=True) + 1e-12)
    frequencies, phases = _public_features(self.inputs, self.num_features)
    angles = x @ jnp.asarray(frequencies / self.bandwidth, x.dtype)
    features = jnp.cos(angles + jnp.asarray(phases, x.dtype))
    return self.head(math.sqrt(2 / self.num_features) * features)


@functools.cache
def _public_features(
  inputs: int, num_features: int
) -> tuple[np.ndarray, np.ndarray]:
  rng = np.random.default_rng(_PUBLIC_SEED)
  frequencies = rng.standard_normal((inputs, num_features), np.float32)
  phases = rng.uniform(0, 2 * np.pi, (1, num_features)).astype(np.float32)
  return frequencies, phases
