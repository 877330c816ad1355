"""Poisson sampling into buckets that are clipped as a whole: batch clipping."""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import dp_accounting
import numpy as np
from dp_accounting import NeighboringRelation

from jaxdp.sampling import _sampler


@dataclasses.dataclass(frozen=True)
class Buckets(_sampler.SamplerBase):
  """A Poisson sample, dealt into m buckets; the unit is a bucket.

  Every sampled record draws its bucket on its own, so that adding one record
  changes one bucket. That bucket's clipped gradient moves anywhere within the
  ball: the sensitivity is twice the bound. Were a list of records cut into
  consecutive buckets instead, one record would move all buckets after it.

  The loss gets ``jaxdp.units.Records``: see ``jaxdp.units.mean_over_records``,
  or write one that uses batch statistics of the bucket.

  Args:
    num_examples: N, rows of the data set; public.
    expected_batch_size: expected records a step, q N, over all buckets.
    num_buckets: m >= 1, by which the sum is divided.
    bucket_size: places in a bucket; "auto" for six standard deviations above
      the mean. What does not fit is dropped at random, within the bucket.

  Guarantees:
    Buckets are independent of each other given who is in which. An overfull
    bucket concerns its own records alone, so that the event is that of Poisson
    sampling, not a truncated one.

  Example:
    >>> sampler = Buckets(
    ...   num_examples=1000, expected_batch_size=60, num_buckets=10
    ... )
    >>> sampler.sample(seed=1, step=0).indices.shape
    (10, 21)
    >>> sampler.sensitivity_factor(sampler.default_relation)
    2.0

  References:
    arXiv:2307.11939; van Dijk et al. 2022, arXiv:2212.05796 (batch clipping).
  """

  num_examples: int
  expected_batch_size: float
  num_buckets: int
  bucket_size: int | Literal["auto"] = "auto"

  relations: ClassVar[Mapping[NeighboringRelation, str]] = {
    NeighboringRelation.ADD_OR_REMOVE_ONE: "pld",
    NeighboringRelation.REPLACE_SPECIAL: "pld",
  }
  refusals: ClassVar[Mapping[NeighboringRelation, str]] = {
    NeighboringRelation.REPLACE_ONE: (
      "the worst pair of a sampled bucket under replacement is not known."
    )
  }
  default_relation: ClassVar[NeighboringRelation] = (
    NeighboringRelation.ADD_OR_REMOVE_ONE
  )

  def __post_init__(self) -> None:
    n = _sampler.as_num_examples(self.num_examples)
    expected = _sampler.as_expected_batch_size(self.expected_batch_size, n)
    buckets = _sampler.as_int("num_buckets", self.num_buckets, minimum=1)
    size = self.bucket_size
    if size != "auto":
      size = _sampler.as_int("bucket_size", size, minimum=1)
      if size < expected / buckets:
        raise ValueError(
          f"bucket_size={size} is smaller than the {expected / buckets:g} "
          'records that a bucket expects, so most would be cut. Use "auto".'
        )
    object.__setattr__(self, "num_examples", n)
    object.__setattr__(self, "expected_batch_size", expected)
    object.__setattr__(self, "num_buckets", buckets)
    object.__setattr__(self, "bucket_size", size)

  @property
  def sampling_probability(self) -> float:
    """The probability q with which each record enters a step."""
    return self.expected_batch_size / self.num_examples

  @property
  def batch_size(self) -> int:
    return self.num_buckets

  @property
  def unit_shape(self) -> tuple[int, ...]:
    if self.bucket_size != "auto":
      return (self.bucket_size,)
    mean = self.expected_batch_size / self.num_buckets
    size = math.ceil(mean + 6 * math.sqrt(mean))
    return (min(self.num_examples, size),)

  @property
  def expected_num_units(self) -> float:
    return float(self.num_buckets)

  @property
  def expected_num_examples(self) -> float:
    return float(self.expected_batch_size)

  @property
  def may_pad(self) -> bool:
    return True

  @property
  def assumptions(self) -> tuple[str, ...]:
    return (
      "Amplification by sampling: every record enters every step independently "
      f"with probability {self.sampling_probability:.6g} and draws its bucket "
      "independently, both by this library's sampler, and which records were "
      "in which step is kept secret.",
    )

  def sensitivity_factor(self, relation: NeighboringRelation) -> float:
    self.accountant(relation)
    return 2.0

  def with_batch_size(self, batch_size: int) -> Self:
    return dataclasses.replace(self, expected_batch_size=batch_size)

  def sample(self, seed: int, step: int) -> _sampler.Batch:
    rng = _sampler.generator(seed, step, stream=4)
    count = rng.binomial(self.num_examples, self.sampling_probability)
    # In random order, so that an overfull bucket keeps a random subset.
    records = rng.choice(self.num_examples, int(count), replace=False)
    bucket = rng.integers(self.num_buckets, size=len(records))
    by_bucket = np.argsort(bucket, kind="stable")
    records, bucket = records[by_bucket], bucket[by_bucket]
    first = np.searchsorted(bucket, np.arange(self.num_buckets))
    place = np.arange(len(records)) - first[bucket]
    fits = place < self.unit_shape[0]
    indices = np.zeros((self.num_buckets, *self.unit_shape), np.int32)
    is_padding_example = np.ones(indices.shape, np.bool_)
    where = bucket[fits], place[fits]
    indices[where] = records[fits]
    is_padding_example[where] = False
    return _sampler.Batch(indices, is_padding_example)

  def _releases(
    self,
    noise_multiplier: float,
    first_step: int,
    num_steps: int,
    relation: NeighboringRelation,
  ) -> tuple[dp_accounting.DpEvent, int]:
    del first_step, relation  # Steps are exchangeable.
    # Given everything else, the output is N(v) or N(v + a) with |a| <= 2 R.
    release = dp_accounting.PoissonSampledDpEvent(
      self.sampling_probability,
      dp_accounting.GaussianDpEvent(noise_multiplier),
    )
    return release, num_steps
