"""Batches of one size, drawn without replacement, anew at each step."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Self

import dp_accounting
import numpy as np
from dp_accounting import NeighboringRelation

from jaxdp.sampling import _sampler

_FIXED_LENGTH = (
  "a batch of fixed size says how many records there are, so a record can be "
  "replaced but not added, removed or blanked."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedSize(_sampler.SamplerBase):
  """Takes a uniformly random subset of ``batch_size`` examples at each step.

  No padding and no empty batch, but a looser accountant than ``Poisson``: the
  bound is in Renyi DP and for replacing a record only.

  Args:
    num_examples: N, the rows of the data set; public.
    batch_size: B, at most N.

  Guarantees:
    Every batch holds B different examples; all subsets are equally likely.
    Steps are independent of each other.

  Example:
    >>> from jaxdp.sampling import FixedSize
    >>> batch = FixedSize(num_examples=10, batch_size=4).sample(seed=1, step=0)
    >>> len(set(batch.indices.tolist())), batch.is_padding_example.any().item()
    (4, False)

  References:
    Wang, Balle, Kasiviswanathan 2019, arXiv:1808.00087, Theorem 27.
  """

  num_examples: int
  batch_size: int

  relations: ClassVar[Mapping[NeighboringRelation, str]] = {
    NeighboringRelation.REPLACE_ONE: "rdp"
  }
  refusals: ClassVar[Mapping[NeighboringRelation, str]] = {
    NeighboringRelation.ADD_OR_REMOVE_ONE: _FIXED_LENGTH,
    NeighboringRelation.REPLACE_SPECIAL: _FIXED_LENGTH,
  }
  default_relation: ClassVar[NeighboringRelation] = (
    NeighboringRelation.REPLACE_ONE
  )

  def __post_init__(self) -> None:
    n, size = check_batch_size(self.num_examples, self.batch_size)
    object.__setattr__(self, "num_examples", n)
    object.__setattr__(self, "batch_size", size)

  @property
  def expected_num_units(self) -> float:
    return float(self.batch_size)

  @property
  def may_pad(self) -> bool:
    return False

  @property
  def assumptions(self) -> tuple[str, ...]:
    return (
      "Amplification by sampling: every step takes a uniformly random subset "
      f"of {self.batch_size} of {self.num_examples} examples, drawn by this "
      "library's sampler, and which examples were in which step is kept "
      "secret.",
    )

  def with_batch_size(self, batch_size: int) -> Self:
    return dataclasses.replace(self, batch_size=batch_size)

  def sample(self, seed: int, step: int) -> _sampler.Batch:
    rng = _sampler.generator(seed, step, stream=2)
    indices = rng.choice(
      self.num_examples, self.batch_size, replace=False, shuffle=False
    )
    return _sampler.Batch(
      indices.astype(np.int32), np.zeros(self.batch_size, np.bool_)
    )

  def _releases(
    self,
    noise_multiplier: float,
    first_step: int,
    num_steps: int,
    relation: NeighboringRelation,
  ) -> tuple[dp_accounting.DpEvent, int]:
    # Replace-one only, where dp-accounting's RDP reads std/(2R), as we do.
    del first_step, relation
    release = dp_accounting.SampledWithoutReplacementDpEvent(
      source_dataset_size=self.num_examples,
      sample_size=self.batch_size,
      event=dp_accounting.GaussianDpEvent(noise_multiplier),
    )
    return release, num_steps


def check_batch_size(num_examples: int, batch_size: int) -> tuple[int, int]:
  """Both as ints, or an error that names the one that is wrong."""
  n = _sampler.as_num_examples(num_examples)
  size = _sampler.as_int("batch_size", batch_size, minimum=1)
  if size > n:
    raise ValueError(
      f"batch_size={size} is larger than num_examples={n}. Lower it to at "
      f"most {n}, or use FullBatch(num_examples={n})."
    )
  return n, size
