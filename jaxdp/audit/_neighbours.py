"""Two neighbouring data sets, and the batches that a sampler draws of each.

Rows are the same on both sides, so that one program serves both: row 0 is the
canary, the last one is what replaces it, and the others are what everybody has.
Who is in a batch is decided by the sampler that is audited, with and without.
"""

import dataclasses
from typing import Any

import numpy as np

from jaxdp.sampling import Batch, NeighboringRelation, Sampler


@dataclasses.dataclass(frozen=True)
class Blanked:
  """A sampler of a data set in which some rows are blank: zero-out, exactly.

  Not of a kind of its own: it draws, costs and describes itself as the sampler
  inside. In its batches blank rows are padding.
  """

  sampler: Sampler
  rows: tuple[int, ...]

  def __getattr__(self, name: str) -> Any:
    if name.startswith("__"):  # asked for by copy and pickle
      raise AttributeError(name)
    return getattr(self.sampler, name)

  @property
  def may_pad(self) -> bool:
    return True

  def sample(self, seed: int, step: int) -> Batch:
    """The rows of one step."""
    return self._blank(self.sampler.sample(seed, step))

  def sample_many(self, seed: int, first_step: int, num_steps: int) -> Batch:
    """The rows of several steps, stacked on a leading axis."""
    return self._blank(self.sampler.sample_many(seed, first_step, num_steps))

  def _blank(self, batch: Batch) -> Batch:
    is_blank = np.isin(batch.indices, self.rows)
    padding = batch.is_padding_example | is_blank
    return Batch(np.where(padding, 0, batch.indices), padding)


def draw(
  sampler: Sampler,
  relation: NeighboringRelation,
  with_canary: bool,
  seed: int,
  first_step: int,
  num_steps: int,
) -> Batch:
  """Batches of one side, in rows of the common data set, stacked by step."""
  if with_canary:
    return sampler.sample_many(seed, first_step, num_steps)
  if relation == NeighboringRelation.REPLACE_SPECIAL:
    blanked = Blanked(sampler, (0,))
    return blanked.sample_many(seed, first_step, num_steps)
  if relation == NeighboringRelation.REPLACE_ONE:
    batch = sampler.sample_many(seed, first_step, num_steps)
    return batch._replace(indices=replaced(sampler, batch))
  # The canary's row is not there: the others are rows 1, 2, ... of all.
  batch = without_one(sampler).sample_many(seed, first_step, num_steps)
  missing = sampler.batch_size - batch.indices.shape[1]
  widths = [(0, 0), (0, missing), *[(0, 0)] * (batch.indices.ndim - 2)]
  padding = np.pad(batch.is_padding_example, widths, constant_values=True)
  indices = np.pad(batch.indices + 1, widths)
  return Batch(np.where(padding, 0, indices).astype(np.int32), padding)


def replaced(sampler: Sampler, batch: Batch) -> np.ndarray:
  """Indices in which the last row stands in the canary's place."""
  is_canary = (batch.indices == 0) & ~batch.is_padding_example
  return np.where(is_canary, sampler.num_examples, batch.indices)


def without_one(sampler: Sampler) -> Sampler:
  """The sampler for one row less; every other row as likely as before."""
  fields = {f.name for f in dataclasses.fields(sampler)}  # type: ignore[arg-type]
  n = sampler.num_examples - 1
  changes: dict[str, Any] = {"num_examples": n}
  if "expected_batch_size" in fields:
    rate = sampler.expected_num_examples / sampler.num_examples
    changes["expected_batch_size"] = rate * n
  if "max_batch_size" in fields:
    changes["max_batch_size"] = sampler.batch_size
  if "bucket_size" in fields:
    (changes["bucket_size"],) = sampler.unit_shape
  return dataclasses.replace(sampler, **changes)  # type: ignore[type-var]
