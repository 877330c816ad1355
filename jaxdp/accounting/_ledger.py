"""A ledger of executed steps: what a run has cost, whatever became of it.

It stores the plan of the steps and which ran, nothing that training could
change, and works epsilon out from that alone. Two rules keep it true:

- Charge *before* a step's result can be observed, and write the ledger to disk
  before running the steps. A scan of steps is charged whole.
- A step that runs again is free only if it is the same release, bit by bit.
  Otherwise begin a new incarnation (with another noise key) at that step.

>>> import jaxdp
>>> ledger = Ledger.for_mechanism(
...   jaxdp.Mechanism(
...     jaxdp.clipping.flat(1.0), jaxdp.sampling.FullBatch(1000), 30.0
...   )
... )
>>> ledger.charge(100)
>>> round(ledger.epsilon(delta=1e-5), 4)
1.2711
>>> ledger.charge(20, first_step=80)  # The same releases again.
>>> ledger.num_steps
100
>>> ledger.begin_incarnation(first_step=80)
>>> ledger.charge(20)
>>> ledger.num_steps
120
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Protocol

import dp_accounting
from dp_accounting import NeighboringRelation

from jaxdp import _digest, sampling
from jaxdp.accounting import _epsilon, _events, _statement, _validate
from jaxdp.accounting._assumptions import RunFacts
from jaxdp.schedule import CONSTANT, PiecewiseConstant

# 2: with a digest. Run directories of format 1 do not resume.
_FORMAT = 2


class PlannedMechanism(Protocol):
  """What a plan needs of a mechanism; see ``jaxdp.Mechanism``."""

  @property
  def sampler(self) -> sampling.Sampler: ...

  @property
  def sigma(self) -> float: ...

  @property
  def noise_schedule(self) -> PiecewiseConstant: ...

  @property
  def relation(self) -> NeighboringRelation: ...

  @property
  def is_private(self) -> bool: ...


@dataclasses.dataclass(frozen=True)
class Plan:
  """What steps are worth: sampler, noise and relation, or not private."""

  sampler: sampling.Sampler
  noise_multiplier: float
  neighboring_relation: NeighboringRelation
  is_private: bool = True
  noise_schedule: PiecewiseConstant = CONSTANT

  @classmethod
  def of(cls, mechanism: PlannedMechanism) -> "Plan":
    """The plan that a mechanism carries out."""
    return cls(
      mechanism.sampler,
      mechanism.sigma,
      mechanism.relation,
      mechanism.is_private,
      mechanism.noise_schedule,
    )

  @property
  def accountant(self) -> str:
    return self.sampler.accountant(self.neighboring_relation)

  def noise_multipliers(self, first_step: int, num_steps: int) -> list[float]:
    """Those of these steps, level by level."""
    pieces = self.noise_schedule.pieces(first_step, num_steps)
    return [self.noise_multiplier * factor for _, _, factor in pieces]

  def dp_event(self, first_step: int, num_steps: int) -> dp_accounting.DpEvent:
    """What these steps release, each at the noise of its level."""
    if num_steps > 0 and not self.is_private:
      return dp_accounting.NonPrivateDpEvent()
    parts = [
      self.sampler.dp_event(
        self.noise_multiplier * factor,
        count,
        self.neighboring_relation,
        first_step=begin,
      )
      for begin, count, factor in self.noise_schedule.pieces(
        first_step, num_steps
      )
    ]
    return _events.merge(dp_accounting.ComposedDpEvent(parts))

  def to_dict(self) -> dict[str, Any]:
    return {
      "sampler": self.sampler.to_dict(),
      "noise_multiplier": self.noise_multiplier,
      "neighboring_relation": self.neighboring_relation.name,
      "is_private": self.is_private,
      "noise_schedule": self.noise_schedule.levels,
    }

  @classmethod
  def from_dict(cls, fields: Mapping[str, Any]) -> "Plan":
    return cls(
      sampling.from_dict(fields["sampler"]),
      fields["noise_multiplier"],
      NeighboringRelation[fields["neighboring_relation"]],
      fields["is_private"],
      PiecewiseConstant(fields["noise_schedule"]),
    )


@dataclasses.dataclass(frozen=True)
class Segment:
  """Steps in a row, of one incarnation of the noise key."""

  incarnation: int
  first_step: int
  num_steps: int


@dataclasses.dataclass
class Ledger:
  """Executed steps and what they cost.

  Attributes:
    plan: of every step.
    segments: charged steps; equal neighbours are one segment.
    incarnation: how often steps were, or may be, run again with new noise.
    next_step: the first step that this incarnation has not been charged for.
  """

  plan: Plan
  segments: tuple[Segment, ...] = ()
  incarnation: int = 0
  next_step: int = 0

  @classmethod
  def for_mechanism(cls, mechanism: PlannedMechanism) -> "Ledger":
    """An empty ledger of a mechanism's steps."""
    return cls(Plan.of(mechanism))

  @property
  def num_steps(self) -> int:
    """Steps charged so far, those of every incarnation counted."""
    return sum(segment.num_steps for segment in self.segments)

  @property
  def accountant(self) -> str:
    """Name of the accountant of all steps."""
    return self.plan.accountant

  @property
  def neighboring_relation(self) -> NeighboringRelation:
    """What epsilon speaks about."""
    return self.plan.neighboring_relation

  def charge(self, num_steps: int, *, first_step: int | None = None) -> None:
    """Charges the steps first_step, ..., first_step + num_steps - 1.

    Args:
      num_steps: >= 0.
      first_step: None for the step after the last one charged. Steps that this
        incarnation was charged for already are not charged again: pass it to
        replay steps as the same releases.
    """
    num_steps = _validate.integer("num_steps", num_steps, minimum=0)
    start = self._known_step(first_step)
    num_steps = start + num_steps - self.next_step
    if num_steps <= 0:
      return
    new = Segment(self.incarnation, self.next_step, num_steps)
    last = self.segments[-1] if self.segments else None
    if last and last.incarnation == self.incarnation:
      total = last.num_steps + num_steps
      new = dataclasses.replace(last, num_steps=total)
      self.segments = (*self.segments[:-1], new)
    else:
      self.segments = (*self.segments, new)
    self.next_step += num_steps

  def begin_incarnation(self, first_step: int) -> None:
    """From ``first_step`` on, steps are new releases and will be charged again.

    To be called when a run goes on from a checkpoint and cannot be sure to
    repeat the same releases; the noise key must be another one from here on.
    """
    self.next_step = self._known_step(first_step)
    self.incarnation += 1

  def check(self, mechanism: PlannedMechanism) -> None:
    """Refuses a mechanism other than the one that this ledger is of."""
    plan = Plan.of(mechanism)
    if plan != self.plan:
      raise ValueError(
        f"the ledger was kept for {self.plan}, but this run has {plan}. Go on "
        "with the same settings, or start in another folder."
      )

  def dp_event(self, *, extra_steps: int = 0) -> dp_accounting.DpEvent:
    """The releases so far, and those of ``extra_steps`` more."""
    ledger = self
    if extra_steps:
      ledger = dataclasses.replace(self)
      ledger.charge(extra_steps)
    parts = [
      self.plan.dp_event(s.first_step, s.num_steps) for s in ledger.segments
    ]
    return _events.merge(dp_accounting.ComposedDpEvent(parts))

  def epsilon(
    self,
    delta: float,
    *,
    extra_steps: int = 0,
    discretization: float = _epsilon.DISCRETIZATION,
  ) -> float:
    """Epsilon of the executed steps at ``delta``; 0 before the first.

    Args:
      delta: inside (0, 1).
      extra_steps: as if so many further steps had been charged.
      discretization: see ``accounting.epsilon``; 1e-3 for a progress bar.
    """
    return _epsilon.epsilon(
      self.dp_event(extra_steps=extra_steps),
      self.accountant,
      self.neighboring_relation,
      delta,
      discretization=discretization,
    )

  def delta(self, epsilon: float) -> float:
    """Delta of the executed steps at ``epsilon``."""
    return _epsilon.delta(
      self.dp_event(), self.accountant, self.neighboring_relation, epsilon
    )

  def statement(
    self,
    delta: float,
    *,
    rule: str = "",
    seed_policy: str = "os",
    facts: RunFacts | None = None,
  ) -> _statement.PrivacyStatement:
    """What a reader must know of the executed steps.

    Args:
      delta: the delta of the claim.
      rule: the clipping rule, in words or as its repr.
      seed_policy: "os" if all seeds came from the operating system and
        stay in the checkpoints, "named" for a research run whose seed is known.
      facts: of the run, on which the assumptions depend; None knows little.
    """
    end = max((s.first_step + s.num_steps for s in self.segments), default=0)
    levels = self.plan.noise_multipliers(0, max(end, 1))
    noise = tuple(dict.fromkeys(levels))
    return _statement.make(
      epsilon=self.epsilon(delta),
      delta=delta,
      neighboring_relation=self.neighboring_relation,
      accountant=self.accountant,
      dp_event=self.dp_event(),
      num_steps=self.num_steps,
      num_repeated_steps=self.num_steps - end,
      noise_multiplier=noise[0] if len(noise) == 1 else noise,
      sampler=self.plan.sampler,
      rule=rule,
      seed_policy=seed_policy,
      facts=facts or RunFacts(),
    )

  def to_json(self) -> str:
    """The ledger as text; ``from_json`` gives an equal one back."""
    record = {
      "format": _FORMAT,
      "plan": self.plan.to_dict(),
      "incarnation": self.incarnation,
      "next_step": self.next_step,
      "segments": [dataclasses.asdict(segment) for segment in self.segments],
    }
    record["digest"] = _digest.of_json(record)
    return json.dumps(record, indent=2, allow_nan=False)

  @classmethod
  def from_json(cls, text: str) -> "Ledger":
    """Reads ``to_json``; raises ValueError if a single character is not so."""
    try:
      record = json.loads(text)
      if record["format"] != _FORMAT:
        raise ValueError(f"format {record['format']} is not {_FORMAT}")
      if record.pop("digest") != _digest.of_json(record):
        raise ValueError("its content does not match its digest")
      return cls(
        Plan.from_dict(record["plan"]),
        tuple(Segment(**segment) for segment in record["segments"]),
        record["incarnation"],
        record["next_step"],
      )
    except (KeyError, IndexError, TypeError, ValueError) as error:
      raise ValueError(
        f"this is not a ledger that can be read ({error}). Without its ledger "
        "the cost of a run is unknown: bring the file back, or start in "
        "another workdir. What ran in the old one has been spent all the same."
      ) from None

  def _known_step(self, step: int | None) -> int:
    if step is None:
      return self.next_step
    step = _validate.integer("first_step", step, minimum=0)
    if step > self.next_step:
      raise ValueError(
        f"first_step={step} leaves the steps from {self.next_step} on "
        f"uncharged. Charge them, or pass first_step={self.next_step}."
      )
    return step
