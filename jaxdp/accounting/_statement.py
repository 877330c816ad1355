"""The privacy statement: what a reader of a result must know.

An epsilon alone says nothing. With it belong delta, what counts as a
neighbour, what one record stands for, how it was computed, and what was
assumed. ``print(statement)`` is meant for people, ``to_json`` for files.
"""

import dataclasses
import json
import math
import textwrap
from typing import Any

import dp_accounting
from dp_accounting import NeighboringRelation

from jaxdp.accounting._assumptions import RunFacts, assumptions
from jaxdp.sampling import Sampler

SEED_POLICIES = ("os", "named")

_RELATIONS = {
  NeighboringRelation.ADD_OR_REMOVE_ONE.name: "add or remove one {unit}",
  NeighboringRelation.REPLACE_ONE.name: "replace one {unit} by any other",
  NeighboringRelation.REPLACE_SPECIAL.name: (
    "zero out one {unit} (its contribution becomes 0)"
  ),
}
_ACCOUNTANTS = {
  "pld": "privacy loss distributions (dp-accounting, bins of 1e-4, rounded up)",
  "rdp": "Renyi differential privacy (dp-accounting)",
  "gdp": "Gaussian differential privacy, exact, in closed form",
}
_SEEDS = {
  "os": "from the operating system; in checkpoints, not in a release",
  "named": "named by the user: research run",
}


@dataclasses.dataclass(frozen=True)
class PrivacyStatement:
  """What a run guarantees, under which relation and assumptions.

  Attributes:
    epsilon: inf if the run is not private.
    delta: of the same claim.
    neighboring_relation: name of the ``NeighboringRelation``.
    privacy_unit: what one record stands for.
    accountant: "pld", "rdp" or "gdp".
    dp_event: repr of the releases, for any accountant.
    num_steps: releases charged.
    noise_multiplier: noise over sensitivity; several if it was scheduled.
    sampler: ``Sampler.to_dict()``.
    rule: the clipping rule.
    seed_policy: "os" or "named".
    assumptions: what must hold for the claim, one sentence each: those of this
      run and no others. None if nothing is claimed.
    warnings: what weakens the claim, one sentence each.
  """

  epsilon: float
  delta: float
  neighboring_relation: str
  privacy_unit: str
  accountant: str
  dp_event: str
  num_steps: int
  noise_multiplier: float | tuple[float, ...]
  sampler: dict[str, Any] = dataclasses.field(hash=False)
  rule: str
  seed_policy: str
  assumptions: tuple[str, ...]
  warnings: tuple[str, ...]

  def to_json(self) -> str:
    """The statement as strict JSON; an infinite epsilon is null."""
    fields = dataclasses.asdict(self)
    if not math.isfinite(self.epsilon):
      fields["epsilon"] = None
    return json.dumps(fields, indent=2, allow_nan=False)

  @classmethod
  def from_json(cls, text: str) -> "PrivacyStatement":
    """Reads ``to_json``, exactly."""
    fields = json.loads(text)
    if fields["epsilon"] is None:
      fields["epsilon"] = math.inf
    for name, value in fields.items():
      if isinstance(value, list):
        fields[name] = tuple(value)
    return cls(**fields)

  def __str__(self) -> str:
    if math.isfinite(self.epsilon):
      claim = f"(ε = {_round_up(self.epsilon)}, δ = {self.delta:g})"
      head = f"This training is {claim}-differentially private."
    else:
      head = "This training is NOT private: ε = ∞."
    relation = _RELATIONS.get(
      self.neighboring_relation, self.neighboring_relation
    )
    settings = dict(self.sampler)
    name = settings.pop("sampler", "")
    settings_text = ", ".join(f"{k}={v!r}" for k, v in settings.items())
    noise = self.noise_multiplier
    values = noise if isinstance(noise, tuple) else (noise,)
    rows = {
      "neighbours": relation.format(unit=self.privacy_unit),
      "accountant": _ACCOUNTANTS.get(self.accountant, self.accountant),
      "releases": f"{self.num_steps:,} steps",
      "noise multiplier": ", ".join(f"{value:.6g}" for value in values),
      "clipping": self.rule or "not stated",
      "sampler": f"{name}({settings_text})",
      "seeds": _SEEDS.get(self.seed_policy, self.seed_policy),
      "event": self.dp_event.replace("DpEvent(", "("),
    }
    if not math.isfinite(self.epsilon):
      del rows["accountant"]
    lines = [head, ""]
    for label, text in rows.items():
      lines += _hanging(f"  {label:<18}", text)
    if self.warnings:
      lines += ["", "Warnings"]
      for text in self.warnings:
        lines += _hanging("  ! ", text)
    if self.assumptions:
      lines += ["", "Assumptions"]
      for text in self.assumptions:
        lines += _hanging("  - ", text)
    return "\n".join(lines)


def make(
  *,
  epsilon: float,
  delta: float,
  neighboring_relation: NeighboringRelation,
  accountant: str,
  dp_event: dp_accounting.DpEvent,
  num_steps: int,
  num_repeated_steps: int,
  noise_multiplier: float | tuple[float, ...],
  sampler: Sampler,
  rule: str,
  seed_policy: str,
  facts: RunFacts,
) -> PrivacyStatement:
  """The statement of these releases, with its assumptions and warnings."""
  if seed_policy not in SEED_POLICIES:
    raise ValueError(
      f"seed_policy must be one of {SEED_POLICIES}, got {seed_policy!r}. Use "
      '"os" for seeds from the operating system, "named" if anybody knows them.'
    )
  warnings = []
  needed: tuple[str, ...] = ()
  if math.isfinite(epsilon):
    needed = assumptions(facts, sampler, neighboring_relation, seed_policy)
  else:
    warnings.append(
      "Not private: there is no noise or no clipping bound, so no epsilon."
    )
  if delta >= 1 / sampler.num_examples:
    warnings.append(
      f"delta = {delta:g} is at least 1/N = {1 / sampler.num_examples:.3g}: "
      "it would allow to publish one record of the data. Choose a smaller one."
    )
  if accountant == "pld" and delta < 1e-12:
    warnings.append(
      f"delta = {delta:g} is near the rounding of the accountant, and epsilon "
      "may be wrong. Choose delta of at least 1e-12."
    )
  if seed_policy == "named":
    warnings.append(
      "Research run: the seed is named, and whoever knows the seed can "
      "subtract the noise. Epsilon holds only towards those who do not."
    )
  if num_repeated_steps > 0:
    warnings.append(
      f"{num_repeated_steps} steps ran again with new noise after a resume; "
      "they are charged twice."
    )
  return PrivacyStatement(
    epsilon=epsilon,
    delta=delta,
    neighboring_relation=neighboring_relation.name,
    privacy_unit=sampler.privacy_unit,
    accountant=accountant,
    dp_event=repr(dp_event),
    num_steps=num_steps,
    noise_multiplier=noise_multiplier,
    sampler=sampler.to_dict(),
    rule=rule,
    seed_policy=seed_policy,
    assumptions=needed,
    warnings=tuple(warnings),
  )


def _round_up(epsilon: float) -> str:
  """Four significant digits or decimals, whichever is finer, never less."""
  digits = (
    4 if epsilon >= 1 or epsilon == 0 else 3 - math.floor(math.log10(epsilon))
  )
  scale = 10.0**digits
  return f"{math.ceil(epsilon * scale) / scale:.{digits}f}"


def _hanging(label: str, text: str) -> list[str]:
  return textwrap.wrap(
    text,
    width=80,
    initial_indent=label,
    subsequent_indent=" " * len(label),
    break_long_words=False,
    break_on_hyphens=False,
  )
