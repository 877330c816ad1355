"""Every example at every step."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Self

import dp_accounting
import numpy as np
from dp_accounting import NeighboringRelation

from jaxdp.sampling import _sampler


@dataclasses.dataclass(frozen=True)
class FullBatch(_sampler.SamplerBase):
  r"""Takes the whole data set at each step: the plain Gaussian mechanism.

  .. math:: \mu = \sqrt{T} / \sigma

  The accounting is exact, in closed form, and nothing depends on chance; the
  batch must fit the device (see ``microbatch_size`` of the training step).

  Args:
    num_examples: N, the rows of the data set; public.

  Example:
    >>> from jaxdp.sampling import FullBatch
    >>> FullBatch(num_examples=3).sample(seed=1, step=5).indices.tolist()
    [0, 1, 2]
  """

  num_examples: int

  relations: ClassVar[Mapping[NeighboringRelation, str]] = {
    NeighboringRelation.ADD_OR_REMOVE_ONE: "gdp",
    NeighboringRelation.REPLACE_SPECIAL: "gdp",
    NeighboringRelation.REPLACE_ONE: "gdp",
  }
  default_relation: ClassVar[NeighboringRelation] = (
    NeighboringRelation.ADD_OR_REMOVE_ONE
  )

  def __post_init__(self) -> None:
    n = _sampler.as_num_examples(self.num_examples)
    object.__setattr__(self, "num_examples", n)

  @property
  def batch_size(self) -> int:
    return self.num_examples

  @property
  def expected_num_units(self) -> float:
    return float(self.num_examples)

  @property
  def may_pad(self) -> bool:
    return False

  @property
  def assumptions(self) -> tuple[str, ...]:
    return ("No amplification: every step uses every example.",)

  def with_batch_size(self, batch_size: int) -> Self:
    raise ValueError(
      f"FullBatch takes all num_examples={self.num_examples} rows, so "
      f"batch_size={batch_size} cannot be set. Use Poisson(num_examples="
      f"{self.num_examples}, expected_batch_size={batch_size})."
    )

  def sample(self, seed: int, step: int) -> _sampler.Batch:
    _sampler.check_seed(seed)
    _sampler.as_int("step", step, minimum=0)
    return _sampler.Batch(
      np.arange(self.num_examples, dtype=np.int32),
      np.zeros(self.num_examples, np.bool_),
    )

  def _releases(
    self,
    noise_multiplier: float,
    first_step: int,
    num_steps: int,
    relation: NeighboringRelation,
  ) -> tuple[dp_accounting.DpEvent, int]:
    # Accounted in closed form from our own convention, std/(c R).
    del first_step, relation
    return dp_accounting.GaussianDpEvent(noise_multiplier), num_steps
