"""Planning: what a training run will cost, or what it takes to meet a target.

``plan`` answers before anything is trained. Of noise, steps and batch size, one
may be left open; it is then found for a target epsilon.

>>> from jaxdp import budget
>>> found = budget.plan(
...   sampler="FullBatch",
...   num_examples=1000,
...   num_steps=100,
...   delta=1e-5,
...   target_epsilon=2.0,
... )
>>> found.found, round(found.noise_multiplier, 2)
('noise_multiplier', 19.94)
"""

import dataclasses
import json
import math
from typing import Any, Literal

from dp_accounting import NeighboringRelation

from jaxdp import accounting, clipping, sampling
from jaxdp.mechanism import Mechanism

# Those whose batches one number describes. A step of Buckets costs what one of
# Poisson without a cap costs.
SAMPLERS = ("Poisson", "FixedSize", "Shuffled", "FullBatch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
  """A plan of training and what it costs; ``print`` shows it as a table.

  Attributes:
    epsilon: inf if the plan is not private.
    delta: of the same claim.
    neighboring_relation: name of the ``NeighboringRelation``.
    accountant: "pld", "rdp" or "gdp".
    sampler: name of the class in ``jaxdp.sampling``.
    num_examples: rows of the data set.
    batch_size: expected units a step, by which the sum is divided.
    rows_per_batch: the static shape, padding included.
    noise_multiplier: noise over sensitivity.
    num_steps: releases.
    epochs: passes over the data, in expectation.
    found: which of these was found for the target; None if none was open.
    warnings: what weakens the claim, one sentence each.
    selection: how a run will be selected among several; None if it is not.
    selected_epsilon: of the selected run, at the same delta.
  """

  epsilon: float
  delta: float
  neighboring_relation: str
  accountant: str
  sampler: str
  num_examples: int
  batch_size: float
  rows_per_batch: int
  noise_multiplier: float
  num_steps: int
  epochs: float
  found: str | None = None
  warnings: tuple[str, ...] = ()
  selection: str | None = None
  selected_epsilon: float | None = None

  @classmethod
  def of(
    cls,
    mechanism: Mechanism,
    num_steps: int,
    delta: float,
    found: str | None = None,
    selection: accounting.Selection | None = None,
  ) -> "Budget":
    """What so many steps of a mechanism cost, and what selection adds."""
    statement = mechanism.privacy(num_steps, delta)
    sampler = mechanism.sampler
    units = sampler.expected_num_units
    return cls(
      epsilon=statement.epsilon,
      delta=delta,
      neighboring_relation=statement.neighboring_relation,
      accountant=statement.accountant,
      sampler=type(sampler).__name__,
      num_examples=sampler.num_examples,
      batch_size=units,
      rows_per_batch=sampler.batch_size,
      noise_multiplier=mechanism.sigma,
      num_steps=num_steps,
      epochs=num_steps * units / sampler.num_examples,
      found=found,
      warnings=statement.warnings,
      selection=None if selection is None else str(selection),
      selected_epsilon=None
      if selection is None
      else selection.epsilon(mechanism, num_steps, delta),
    )

  def to_json(self) -> str:
    """The plan as strict JSON; an infinite epsilon is null."""
    fields = dataclasses.asdict(self)
    for name in ("epsilon", "selected_epsilon"):
      if not math.isfinite(fields[name] or 0.0):
        fields[name] = None
    return json.dumps(fields, indent=2, allow_nan=False)

  def __str__(self) -> str:
    rows = {
      "epsilon": _round_up(self.epsilon),
      "delta": f"{self.delta:g}",
      "neighboring_relation": self.neighboring_relation,
      "accountant": self.accountant,
      "sampler": self.sampler,
      "num_examples": f"{self.num_examples:,}",
      "batch_size": f"{self.batch_size:,g}",
      "rows_per_batch": f"{self.rows_per_batch:,}",
      "noise_multiplier": f"{self.noise_multiplier:.6g}",
      "num_steps": f"{self.num_steps:,}",
      "epochs": f"{self.epochs:.4g}",
    }
    if self.selected_epsilon is not None:
      rows["selected epsilon"] = _round_up(self.selected_epsilon)
    lines = [
      f"{name.replace('_', ' '):<22}{value}"
      + ("   <- found" if name == self.found else "")
      for name, value in rows.items()
    ]
    return "\n".join([*lines, *(f"! {text}" for text in self.warnings)])


def _round_up(epsilon: float) -> str:
  if not math.isfinite(epsilon):
    return "inf"
  return f"{math.ceil(epsilon * 1e4) / 1e4:.4f}"


def plan(
  *,
  num_examples: int,
  delta: float,
  batch_size: float | None = None,
  noise_multiplier: float | None = None,
  num_steps: int | None = None,
  target_epsilon: float | None = None,
  sampler: str = "Poisson",
  max_batch_size: int | Literal["auto"] | None = "auto",
  neighboring_relation: NeighboringRelation | None = None,
  selection: accounting.Selection | None = None,
) -> Budget:
  """The cost of a plan; with a target, finds the one value that is left open.

  Args:
    num_examples: rows of the data set.
    delta: inside (0, 1).
    batch_size: expected one for "Poisson", exact for others; none for
      "FullBatch".
    noise_multiplier: noise over sensitivity, under the relation.
    num_steps: releases.
    target_epsilon: None if nothing is open.
    sampler: name of a class in ``jaxdp.sampling``.
    max_batch_size: cap of "Poisson".
    neighboring_relation: None for the sampler's own.
    selection: also say what the best of a random number of runs costs. A target
      is that of one run.

  Guarantees:
    With a target, epsilon is at most the target; see ``calibrate_noise``,
    ``calibrate_steps`` and ``calibrate_batch_size``.

  Raises:
    ValueError: more or less is open than can be found, or nothing meets the
      target.
  """
  given = {
    "noise_multiplier": noise_multiplier,
    "num_steps": num_steps,
    "batch_size": batch_size,
  }
  if sampler == "FullBatch":
    if batch_size not in (None, num_examples):
      raise ValueError(
        f"FullBatch takes all num_examples={num_examples} at every step, got "
        f"batch_size={batch_size}. Leave it out, or use another sampler."
      )
    del given["batch_size"]
  if num_steps is not None and num_steps < 1:
    raise ValueError(f"num_steps must be >= 1, got num_steps={num_steps}.")
  missing = [name for name, value in given.items() if value is None]
  if target_epsilon is None and missing:
    raise ValueError(
      f"{', '.join(missing)} not given. Give all of {', '.join(given)}, or "
      "target_epsilon and all but one of them."
    )
  if target_epsilon is not None and len(missing) != 1:
    raise ValueError(
      f"With target_epsilon={target_epsilon}, leave exactly one of "
      f"{', '.join(given)} open; open are: {', '.join(missing) or 'none'}."
    )
  mechanism = Mechanism(
    clipping.flat(l2_clip_norm=1.0),  # epsilon does not depend on it
    _sampler(sampler, num_examples, batch_size or 1, max_batch_size),
    noise_multiplier,
    neighboring_relation,
  )
  found = missing[0] if missing else None
  if found is None:
    assert num_steps is not None
    return Budget.of(mechanism, num_steps, delta, None, selection)
  assert target_epsilon is not None
  target: Any = {"target_epsilon": target_epsilon, "target_delta": delta}
  if found == "num_steps":
    num_steps = accounting.calibrate_steps(mechanism, **target)
    return Budget.of(mechanism, num_steps, delta, found, selection)
  assert num_steps is not None
  calibrate: Any = (
    accounting.calibrate_noise
    if found == "noise_multiplier"
    else accounting.calibrate_batch_size
  )
  mechanism = calibrate(mechanism, num_steps=num_steps, **target)
  return Budget.of(mechanism, num_steps, delta, found, selection)


def _sampler(
  name: str,
  num_examples: int,
  batch_size: float,
  max_batch_size: int | Literal["auto"] | None,
) -> sampling.Sampler:
  if name == "Poisson":
    return sampling.Poisson(
      num_examples=num_examples,
      expected_batch_size=batch_size,
      max_batch_size=max_batch_size,
    )
  if name == "FullBatch":
    return sampling.FullBatch(num_examples=num_examples)
  if name not in SAMPLERS:
    raise ValueError(f"sampler must be one of {SAMPLERS}, got {name!r}.")
  if batch_size != int(batch_size):
    raise ValueError(
      f"{name} takes batches of a whole number of rows, got "
      f"batch_size={batch_size}."
    )
  make: Any = getattr(sampling, name)
  sampler: sampling.Sampler = make(
    num_examples=num_examples, batch_size=int(batch_size)
  )
  return sampler
