"""What a sampler is: rows by (seed, step), and what may be claimed for it.

A sampler chooses the rows of every step and is the only place that knows what
that choice is worth: how many units to expect (the public divisor of the
sum), how far one record moves the sum, which ``DpEvent`` a run of steps is, and
which accountant is right for that event. Read this file for the contract and
then ``_poisson.py``, the sampler to use unless there is a reason not to.

Everything here is host code in NumPy. ``sample`` is a pure function: any step
can be made again, on any machine, with no state to save.

>>> from jaxdp import sampling
>>> sampler = sampling.Poisson(num_examples=1000, expected_batch_size=32)
>>> batch = sampler.sample(seed=7, step=123)
>>> batch.indices.shape == batch.is_padding_example.shape == (66,)
True
"""

import dataclasses
import math
import numbers
import operator
import threading
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import dp_accounting
import numpy as np
from dp_accounting import NeighboringRelation

_SEED_BITS = 128
_WORD = (1 << 64) - 1


class Batch(NamedTuple):
  """Rows of the data set for one step; ``sample_many`` adds a leading axis."""

  # Both shape=(batch_size, *unit_shape).
  indices: np.ndarray  # int32; padding rows hold 0
  is_padding_example: np.ndarray  # bool; True = not real


class Sampler(Protocol):
  """The contract of a sampler, a frozen and hashable dataclass.

  Guarantees:
    ``sample`` depends on its arguments alone; ``sample_many`` stacks it.
    No row appears twice in a batch; padding rows are marked and hold index 0.
    ``dp_event`` is what ``sample`` followed by one Gaussian release per step is
    worth, under the relations that ``relations`` names. Other relations raise.
  """

  relations: ClassVar[Mapping[NeighboringRelation, str]]
  default_relation: ClassVar[NeighboringRelation]
  privacy_unit: ClassVar[str]

  @property
  def num_examples(self) -> int:
    """Rows of the data set; public."""

  @property
  def batch_size(self) -> int:
    """Units of every batch: the static shape, padding included."""

  @property
  def unit_shape(self) -> tuple[int, ...]:
    """() if a unit is one row; (capacity,) if it has places for several."""

  @property
  def expected_num_units(self) -> float:
    """The public constant by which the noisy sum is divided."""

  @property
  def expected_num_examples(self) -> float:
    """Rows of the data set that a step reads, on average."""

  @property
  def may_pad(self) -> bool:
    """Whether a batch may hold padding rows, and so needs its mask."""

  @property
  def assumptions(self) -> tuple[str, ...]:
    """What must hold beyond the event, one sentence each."""

  def accountant(self, relation: NeighboringRelation) -> str:
    """Name of the right accountant; raises for an unsupported relation."""

  def sensitivity_factor(self, relation: NeighboringRelation) -> float:
    """Worst change of the sum, in units of the clipping bound."""

  def dp_event(
    self,
    noise_multiplier: float,
    num_steps: int,
    relation: NeighboringRelation,
    *,
    first_step: int = 0,
  ) -> dp_accounting.DpEvent:
    """The event of steps first_step, ..., first_step + num_steps - 1."""

  def sample(self, seed: int, step: int) -> Batch:
    """The rows of one step."""

  def sample_many(self, seed: int, first_step: int, num_steps: int) -> Batch:
    """The rows of several steps, stacked on a leading axis."""

  def check(self, num_rows: int) -> None:
    """Refuses data whose length is not ``num_examples``."""

  def with_batch_size(self, batch_size: int) -> Self:
    """A copy that takes another (expected) batch size."""

  def to_dict(self) -> dict[str, Any]:
    """The sampler as JSON-able data; ``sampling.from_dict`` reads it."""


_SAMPLERS: dict[str, type["SamplerBase"]] = {}


class SamplerBase:
  """What the samplers of this package share; they differ in the rest."""

  relations: ClassVar[Mapping[NeighboringRelation, str]]
  default_relation: ClassVar[NeighboringRelation]
  privacy_unit: ClassVar[str] = "example"
  # Why a relation is missing, for the error that says so.
  refusals: ClassVar[Mapping[NeighboringRelation, str]] = {}

  @property
  def unit_shape(self) -> tuple[int, ...]:
    return ()

  @property
  def expected_num_examples(self: "_Complete") -> float:
    return self.expected_num_units

  def __init_subclass__(cls, **kwargs: Any) -> None:
    super().__init_subclass__(**kwargs)
    _SAMPLERS[cls.__name__] = cls

  def accountant(self, relation: NeighboringRelation) -> str:
    if not isinstance(relation, NeighboringRelation):
      raise ValueError(
        "neighboring_relation must be a jaxdp.NeighboringRelation, got "
        f"{relation!r}. Use jaxdp.NeighboringRelation.ADD_OR_REMOVE_ONE, "
        ".REPLACE_SPECIAL (zero-out) or .REPLACE_ONE."
      )
    if relation in self.relations:
      return self.relations[relation]
    works = ", ".join(r.name for r in self.relations)
    others = ", ".join(
      name for name, cls in _SAMPLERS.items() if relation in cls.relations
    )
    raise ValueError(
      f"{type(self).__name__} has no accountant for neighboring_relation="
      f"{relation.name}: {self.refusals[relation]} It works with {works}; "
      f"for {relation.name} use {others}."
    )

  def sensitivity_factor(self, relation: NeighboringRelation) -> float:
    self.accountant(relation)
    return 2.0 if relation == NeighboringRelation.REPLACE_ONE else 1.0

  def dp_event(
    self: "_Complete",
    noise_multiplier: float,
    num_steps: int,
    relation: NeighboringRelation,
    *,
    first_step: int = 0,
  ) -> dp_accounting.DpEvent:
    self.accountant(relation)
    noise_multiplier = _noise_multiplier(noise_multiplier)
    num_steps = as_int("num_steps", num_steps, minimum=0)
    first_step = as_int("first_step", first_step, minimum=0)
    if num_steps == 0:
      return dp_accounting.NoOpDpEvent()
    if noise_multiplier == 0:
      return dp_accounting.NonPrivateDpEvent()
    release, count = self._releases(
      noise_multiplier, first_step, num_steps, relation
    )
    return dp_accounting.SelfComposedDpEvent(release, count)

  def sample_many(
    self: "_Complete", seed: int, first_step: int, num_steps: int
  ) -> Batch:
    first_step = as_int("first_step", first_step, minimum=0)
    num_steps = as_int("num_steps", num_steps, minimum=1)
    steps = range(first_step, first_step + num_steps)
    batches = [self.sample(seed, step) for step in steps]
    return Batch(*(np.stack(field) for field in zip(*batches, strict=True)))

  def check(self: "_Complete", num_rows: int) -> None:
    if num_rows != self.num_examples:
      raise ValueError(
        f"the data has {num_rows} rows but the sampler was made for "
        f"num_examples={self.num_examples}, and epsilon depends on it. Make "
        f"the sampler with num_examples={num_rows}, or pass the data that it "
        "was made for."
      )

  def to_dict(self) -> dict[str, Any]:
    fields = dataclasses.asdict(self)  # type: ignore[call-overload]
    return {"sampler": type(self).__name__, **fields}


class _Complete(Sampler, Protocol):
  """A sampler that also says what its steps release."""

  def _releases(
    self,
    noise_multiplier: float,
    first_step: int,
    num_steps: int,
    relation: NeighboringRelation,
  ) -> tuple[dp_accounting.DpEvent, int]:
    """One release in the accountant's convention, and how many there are."""


def from_dict(fields: Mapping[str, Any]) -> Sampler:
  """The sampler that ``sampler.to_dict()`` described.

  >>> from jaxdp import sampling
  >>> sampler = sampling.FixedSize(num_examples=100, batch_size=10)
  >>> sampling.from_dict(sampler.to_dict()) == sampler
  True
  """
  fields = dict(fields)
  name = fields.pop("sampler", None)
  if name not in _SAMPLERS:
    raise ValueError(
      f"unknown sampler {name!r}; known are {', '.join(_SAMPLERS)}. A sampler "
      "of your own must be imported before its record is read."
    )
  try:
    return _SAMPLERS[name](**fields)  # type: ignore[return-value]
  except TypeError as error:
    raise ValueError(
      f"{name} cannot be made from {fields}: {error}. The record comes from "
      "another version or was edited."
    ) from None


def as_int(name: str, value: Any, *, minimum: int, maximum: int = _WORD) -> int:
  """``value`` as a Python int, or an error that names it."""
  try:
    if isinstance(value, bool | np.bool_):
      raise TypeError
    result = operator.index(value)
  except TypeError:
    raise ValueError(
      f"{name} must be an integer, got {name}={value!r}. Pass an int."
    ) from None
  if not minimum <= result <= maximum:
    wanted = f">= {minimum}" if result < minimum else f"<= {maximum}"
    raise ValueError(f"{name} must be {wanted}, got {name}={result}.")
  return result


def check_seed(value: Any) -> int:
  """A seed of up to 128 bits, as a Python int."""
  return as_int("seed", value, minimum=0, maximum=(1 << _SEED_BITS) - 1)


def as_num_examples(value: Any) -> int:
  """``num_examples``, whose rows must fit the int32 indices of a batch."""
  return as_int("num_examples", value, minimum=1, maximum=2**31 - 1)


def as_expected_batch_size(value: Any, num_examples: int) -> int | float:
  """``expected_batch_size``, of which there cannot be more than examples."""
  expected = as_positive("expected_batch_size", value)
  if expected > num_examples:
    raise ValueError(
      f"expected_batch_size={expected} is larger than {num_examples=}. Lower "
      f"it to at most {num_examples}, or use FullBatch({num_examples=})."
    )
  return expected


def as_positive(name: str, value: Any) -> int | float:
  """``value`` as a finite, positive number, or an error that names it."""
  if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
    raise ValueError(f"{name} must be a number, got {name}={value!r}.")
  number = float(value)
  if not (math.isfinite(number) and number > 0):
    raise ValueError(f"{name} must be > 0 and finite, got {name}={value}.")
  return int(value) if isinstance(value, numbers.Integral) else number


def _noise_multiplier(value: Any) -> float:
  if value is None:
    raise ValueError(
      "noise_multiplier is None, so there is no event yet. Set it, or find it "
      "with jaxdp.calibrate_noise(mechanism, target_epsilon=..., ...)."
    )
  if isinstance(value, bool) or not isinstance(value, numbers.Real):
    raise ValueError(
      f"noise_multiplier must be a number, got noise_multiplier={value!r}."
    )
  number = float(value)
  if not (math.isfinite(number) and number >= 0):
    raise ValueError(
      f"noise_multiplier must be >= 0 and finite, got noise_multiplier={value}."
    )
  return number


class _Stream(threading.local):
  """One generator per thread, moved to where it is needed."""

  def __init__(self) -> None:
    self.bits = np.random.Philox(key=0)
    self.rng = np.random.Generator(self.bits)
    self.state: Any = self.bits.state


_STREAM = _Stream()


def generator(seed: int, step: int, stream: int) -> np.random.Generator:
  """The random numbers of (seed, step); ``stream`` keeps samplers apart.

  Philox 4x64-10 is a counter turned into random words by a key. The seed is
  the key and the step a high word of the counter, so every step has 2**128
  blocks of its own and none depends on the steps before it. Setting the
  state of an existing generator costs a tenth of making one, which counts
  where a step on the device takes less than a millisecond.

  The generator is good until this thread asks for the next one.

  References:
    Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", SC11.
  """
  seed = check_seed(seed)
  step = as_int("step", step, minimum=0)
  state = _STREAM.state
  state["state"]["key"][:] = seed & _WORD, seed >> 64
  state["state"]["counter"][:] = 0, 0, step, stream
  _STREAM.bits.state = state
  return _STREAM.rng
