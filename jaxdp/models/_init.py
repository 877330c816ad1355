"""Initial parameters, drawn on the host by name and shape.

Not by the initialisers of the layers: those compile one program per shape,
which takes longer than some trainings. NumPy also gives the same values on
every device and for every version of JAX.
"""

import zlib
from collections.abc import Callable

import numpy as np

Shape = tuple[int, ...]

# Standard deviation of a normal distribution cut at two of its own.
_CUT_STDDEV = 0.87962566103423978


def _kernel(rng: np.random.Generator, shape: Shape) -> np.ndarray:
  """Variance 1 / fan_in, cut at two standard deviations (LeCun 1998)."""
  values = rng.standard_normal(shape, np.float32)
  while (outside := np.abs(values) > 2).any():
    values[outside] = rng.standard_normal(outside.sum(), np.float32)
  fan_in = np.prod(shape[:-1])
  return values * np.float32(1 / (_CUT_STDDEV * np.sqrt(fan_in)))


_INITIALISERS: dict[str, Callable[[np.random.Generator, Shape], np.ndarray]] = {
  "bias": lambda rng, shape: np.zeros(shape, np.float32),
  "scale": lambda rng, shape: np.ones(shape, np.float32),
  "kernel": _kernel,
  "position": lambda rng, shape: (
    np.float32(0.02) * rng.standard_normal(shape, np.float32)
  ),
  "embedding": lambda rng, shape: rng.standard_normal(shape, np.float32),
}


def initial_value(seed: int, path: str, shape: Shape) -> np.ndarray:
  """Depends on its arguments alone: adding a layer changes no other one.

  Example:
    >>> initial_value(0, "layers/0/bias", (2,))
    array([0., 0.], dtype=float32)
  """
  rng = np.random.default_rng([seed, zlib.crc32(path.encode())])
  return _INITIALISERS[path.rpartition("/")[2]](rng, shape)
