"""Poisson sampling: every example enters a step by its own coin."""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import dp_accounting
import numpy as np
from dp_accounting import NeighboringRelation

from jaxdp.sampling import _sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class Poisson(_sampler.SamplerBase):
  r"""Takes each example independently with probability q, in static shape.

  .. math:: q = B / N, \qquad \text{cap} = \lceil B + 6 \sqrt{B} \rceil

  A sample larger than the cap is cut to a uniformly random subset of that
  size, and the accountant is told so (``TruncatedSubsampledGaussianDpEvent``).
  At six standard deviations the cut costs less than 1e-3 of epsilon.

  Args:
    num_examples: N, the rows of the data set; public.
    expected_batch_size: B = q N > 0, at most N; it need not be an integer.
    max_batch_size: The cap, rows of every batch. "auto" is the formula above,
      at most N; an int is at least B; None is N rows and no cut.

  Guarantees:
    Every example is in a step with probability q, before the cut.
    Steps are independent of each other.

  Edge cases:
    A batch may be empty (all rows are padding): an ordinary, noise-only step.
    A cap of at least N never cuts: the event is plain Poisson sampling.

  Example:
    >>> from jaxdp.sampling import Poisson
    >>> sampler = Poisson(num_examples=60_000, expected_batch_size=256)
    >>> sampler.batch_size, sampler.expected_num_units
    (352, 256.0)

  References:
    Abadi et al. 2016, arXiv:1607.00133 (lots by Poisson sampling).
    arXiv:2508.15089 (privacy of truncated Poisson sampling).
  """

  num_examples: int
  expected_batch_size: int | float
  max_batch_size: int | Literal["auto"] | None = "auto"

  relations: ClassVar[Mapping[NeighboringRelation, str]] = {
    NeighboringRelation.ADD_OR_REMOVE_ONE: "pld",
    NeighboringRelation.REPLACE_SPECIAL: "pld",
    NeighboringRelation.REPLACE_ONE: "pld",
  }
  default_relation: ClassVar[NeighboringRelation] = (
    NeighboringRelation.ADD_OR_REMOVE_ONE
  )

  def __post_init__(self) -> None:
    n = _sampler.as_num_examples(self.num_examples)
    expected = _sampler.as_expected_batch_size(self.expected_batch_size, n)
    cap = self.max_batch_size
    if cap is not None and cap != "auto":
      cap = _sampler.as_int("max_batch_size", cap, minimum=1)
      if cap < expected:
        raise ValueError(
          f"max_batch_size={cap} is smaller than expected_batch_size="
          f'{expected}, so most batches would be cut. Use "auto" '
          f"({_auto_cap(n, expected)} here) or an int of at least "
          f"{math.ceil(expected)}."
        )
    object.__setattr__(self, "num_examples", n)
    object.__setattr__(self, "expected_batch_size", expected)
    object.__setattr__(self, "max_batch_size", cap)

  @property
  def sampling_probability(self) -> float:
    """The probability q with which each example enters a step."""
    return self.expected_batch_size / self.num_examples

  @property
  def batch_size(self) -> int:
    if self.max_batch_size is None:
      return self.num_examples
    if self.max_batch_size == "auto":
      return _auto_cap(self.num_examples, self.expected_batch_size)
    return self.max_batch_size

  @property
  def expected_num_units(self) -> float:
    return float(self.expected_batch_size)

  @property
  def may_pad(self) -> bool:
    return self.sampling_probability < 1 or self.batch_size > self.num_examples

  @property
  def assumptions(self) -> tuple[str, ...]:
    cut = ""
    if self.batch_size < self.num_examples:
      cut = f" and cut at random to at most {self.batch_size}"
    return (
      "Amplification by sampling: every example enters every step "
      f"independently with probability {self.sampling_probability:.6g}, drawn "
      f"by this library's sampler{cut}, and which examples were in which step "
      "is kept secret.",
    )

  def with_batch_size(self, batch_size: int) -> Self:
    return dataclasses.replace(self, expected_batch_size=batch_size)

  def sample(self, seed: int, step: int) -> _sampler.Batch:
    # Given their number, the included examples are a uniformly random subset:
    # with independent coins P(S) = q^|S| (1-q)^(N-|S|) depends on |S| alone.
    # So a binomial count and then a choice without replacement is Poisson
    # sampling, in O(B) instead of N coins. A uniformly random subset of that
    # choice is again a choice without replacement, so the cut is a minimum.
    rng = _sampler.generator(seed, step, stream=1)
    count = rng.binomial(self.num_examples, self.sampling_probability)
    size = self.batch_size
    count = min(int(count), size)
    indices = np.zeros(size, np.int32)
    indices[:count] = rng.choice(
      self.num_examples, count, replace=False, shuffle=False
    )
    is_padding_example = np.ones(size, np.bool_)
    is_padding_example[:count] = False
    return _sampler.Batch(indices, is_padding_example)

  def _releases(
    self,
    noise_multiplier: float,
    first_step: int,
    num_steps: int,
    relation: NeighboringRelation,
  ) -> tuple[dp_accounting.DpEvent, int]:
    del first_step  # Steps are exchangeable.
    # Ours is std/(2R) under replace-one, where dp-accounting's PLD of a
    # sampled Gaussian reads std/R.
    if relation == NeighboringRelation.REPLACE_ONE:
      noise_multiplier = 2 * noise_multiplier
    if self.batch_size < self.num_examples:
      release = dp_accounting.TruncatedSubsampledGaussianDpEvent(
        dataset_size=self.num_examples,
        sampling_probability=self.sampling_probability,
        truncated_batch_size=self.batch_size,
        noise_multiplier=noise_multiplier,
      )
    else:
      release = dp_accounting.PoissonSampledDpEvent(
        self.sampling_probability,
        dp_accounting.GaussianDpEvent(noise_multiplier),
      )
    return release, num_steps


def _auto_cap(num_examples: int, expected_batch_size: float) -> int:
  spread = 6 * math.sqrt(expected_batch_size)
  return min(num_examples, math.ceil(expected_batch_size + spread))
