"""The two secrets of a run: the sampler's seed and the noise key.

They are independent, and come from the operating system unless a research run
names a seed. An *incarnation* is one uninterrupted chain of replayable steps;
each has secrets of its own, so that no key serves two batches.
"""

import secrets
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdp import noise

# fold_in data of noise keys: steps are below 2^31, incarnations from there on.
_INCARNATIONS = 1 << 31


class Seeds(NamedTuple):
  """What makes a run's randomness. *Sensitive*: noise can be subtracted."""

  sampler: int  # 128 bits
  noise: tuple[int, int]  # threefry key data
  named: int | None  # the seed of a research run

  @classmethod
  def make(cls, seed: int | None) -> Self:
    """From the operating system, or from a named seed; the same everywhere.

    With several processes all take those of process 0.
    """
    key = np.asarray(noise.key_data(noise.make_key(seed)))
    if seed is None:
      words: np.ndarray = np.frombuffer(secrets.token_bytes(16), np.uint32)
    else:
      sequence = np.random.SeedSequence(seed, spawn_key=(1,))
      words = sequence.generate_state(4)
    both = np.concatenate([words, key])
    if jax.process_count() > 1:
      from jax.experimental import multihost_utils

      both = np.asarray(multihost_utils.broadcast_one_to_all(both))
    sampler = int.from_bytes(both[:4].astype("<u4").tobytes(), "little")
    return cls(sampler, (int(both[4]), int(both[5])), seed)

  @classmethod
  def from_json(cls, values: dict[str, Any]) -> Self:
    """Reads what ``_asdict`` wrote."""
    first, second = values["noise"]
    return cls(int(values["sampler"]), (first, second), values["named"])

  def to_json(self) -> dict[str, Any]:
    """As JSON values; the sampler's seed is too long for a JSON number."""
    return {**self._asdict(), "sampler": str(self.sampler)}

  def noise_key(self, incarnation: int) -> Array:
    """The noise key of an incarnation."""
    data = jnp.asarray(self.noise, jnp.uint32)
    key = jax.random.wrap_key_data(data, impl="threefry2x32")
    if incarnation == 0:
      return key
    return jax.random.fold_in(key, jnp.uint32(_INCARNATIONS + incarnation))

  def sampler_seed(self, incarnation: int) -> int:
    """The sampler's seed of an incarnation."""
    if incarnation == 0:
      return self.sampler
    sequence = np.random.SeedSequence(self.sampler, spawn_key=(incarnation,))
    return int.from_bytes(sequence.generate_state(4).tobytes(), "little")
