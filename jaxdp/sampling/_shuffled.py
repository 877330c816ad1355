"""A new order of the data for every epoch, cut into batches."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import ClassVar, Self

import dp_accounting
import numpy as np
from dp_accounting import NeighboringRelation

from jaxdp.sampling import _fixed_size, _sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shuffled(_sampler.SamplerBase):
  r"""Goes through a new permutation of the data in each epoch.

  Every example is in exactly one batch of an epoch, so E epochs are E releases
  of the Gaussian mechanism for each record, and no more is claimed:

  .. math:: \mu = \sqrt{E} / \sigma

  A part of an epoch is charged whole: the record may have been in it.

  Args:
    num_examples: N, the rows of the data set; public.
    batch_size: B, at most N. The last of the ceil(N / B) batches of an epoch
      is padded where B does not divide N. The divisor of the sum is B always.

  Guarantees:
    An epoch holds every example once; epochs are independent permutations.
    ``sample`` needs no earlier step. Within an epoch it reuses a permutation
    that takes time proportional to N.

  Example:
    >>> from jaxdp import NeighboringRelation, sampling
    >>> sampler = sampling.Shuffled(num_examples=100, batch_size=40)
    >>> sampler.batches_per_epoch
    3
    >>> sampler.dp_event(2.0, 7, NeighboringRelation.REPLACE_ONE).count
    3
  """

  num_examples: int
  batch_size: int

  relations: ClassVar[Mapping[NeighboringRelation, str]] = {
    NeighboringRelation.REPLACE_SPECIAL: "gdp",
    NeighboringRelation.REPLACE_ONE: "gdp",
  }
  refusals: ClassVar[Mapping[NeighboringRelation, str]] = {
    NeighboringRelation.ADD_OR_REMOVE_ONE: (
      "one record more or less shifts every later batch of the epoch."
    ),
  }
  default_relation: ClassVar[NeighboringRelation] = (
    NeighboringRelation.REPLACE_SPECIAL
  )

  def __post_init__(self) -> None:
    n, size = _fixed_size.check_batch_size(self.num_examples, self.batch_size)
    object.__setattr__(self, "num_examples", n)
    object.__setattr__(self, "batch_size", size)

  @property
  def batches_per_epoch(self) -> int:
    """Steps in which every example is seen once."""
    return -(-self.num_examples // self.batch_size)

  @property
  def expected_num_units(self) -> float:
    return float(self.batch_size)

  @property
  def may_pad(self) -> bool:
    return self.num_examples % self.batch_size != 0

  @property
  def assumptions(self) -> tuple[str, ...]:
    return (
      "No amplification is claimed for shuffling: every record is charged one "
      "Gaussian release for each epoch begun.",
    )

  def with_batch_size(self, batch_size: int) -> Self:
    return dataclasses.replace(self, batch_size=batch_size)

  def sample(self, seed: int, step: int) -> _sampler.Batch:
    step = _sampler.as_int("step", step, minimum=0)
    epoch, position = divmod(step, self.batches_per_epoch)
    start = position * self.batch_size
    rows = _order(self.num_examples, seed, epoch)
    rows = rows[start : start + self.batch_size]
    indices = np.zeros(self.batch_size, np.int32)
    indices[: len(rows)] = rows
    is_padding_example = np.ones(self.batch_size, np.bool_)
    is_padding_example[: len(rows)] = False
    return _sampler.Batch(indices, is_padding_example)

  def _releases(
    self,
    noise_multiplier: float,
    first_step: int,
    num_steps: int,
    relation: NeighboringRelation,
  ) -> tuple[dp_accounting.DpEvent, int]:
    del relation  # Exact and in our own convention, std/(c R), under both.
    first_epoch = first_step // self.batches_per_epoch
    last_epoch = (first_step + num_steps - 1) // self.batches_per_epoch
    release = dp_accounting.GaussianDpEvent(noise_multiplier)
    return release, last_epoch - first_epoch + 1


@functools.lru_cache(maxsize=4)
def _order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
  order = _sampler.generator(seed, epoch, stream=3).permutation(num_examples)
  order = order.astype(np.int32)
  order.flags.writeable = False
  return order
