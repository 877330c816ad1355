"""What must hold for a claim and no code here sees to, by facts of the run.

A sentence is stated where it applies, and not where the library knows that it
does not. What a sampler assumes is its own (``Sampler.assumptions``).
"""

import dataclasses
from typing import Literal

from dp_accounting import NeighboringRelation

from jaxdp.sampling import Sampler

_TUNING = "Tuning is not charged: "
_SIDE_CHANNELS = (
  "Side channels: nobody timed single steps, or read the memory, the swap or a "
  "debugger's log of the machine."
)
_FLOATING_POINT = (
  "Floating point: the proof is for real numbers. Noise is drawn with exact "
  "tails and added in float32; the gap to the reals is not charged."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFacts:
  """What is known of a run beyond its releases; the defaults know little.

  True means "it may be so", and states what must then hold. ``fit`` and
  ``jaxdp.experiment`` fill in what they saw; the rest is the caller's word.

  Attributes:
    own_loop: the steps were called by code outside of this library.
    params_given: initial parameters came from somewhere; False if they were
      drawn from a seed alone.
    preprocessed: by more than constants of the data's format.
    part_frozen: not all parameters train.
    held_out: the rows that train are part of a larger set; the others validate,
      or are public.
    rows_are_users: a row holds all records of a user (``units.Records``).
    public_batch: a rule followed a ``PublicBatch``.
    evaluated: numbers were shown that were computed from data without noise.
    diagnostics: un-noised losses and norms were written down.
    release: what leaves: the parameters after "any" step, the "last" ones, or
      an "average" over steps.
    ended_by: what ended the run, "num_steps" or "max_epsilon".
    num_runs: of the study that the run is from, on the same data.
    selection: how often the run was repeated to select one, in words; see
      ``accounting.Selection``.
  """

  own_loop: bool = True
  params_given: bool = True
  preprocessed: bool = True
  part_frozen: bool = True
  held_out: bool = False
  rows_are_users: bool = False
  public_batch: bool = False
  evaluated: bool = False
  diagnostics: bool = False
  release: Literal["any", "last", "average"] = "any"
  ended_by: Literal["num_steps", "max_epsilon"] = "num_steps"
  num_runs: int | None = None
  selection: str | None = None

  @property
  def tuning(self) -> str:
    """Whether the choice of this run among others is paid for."""
    if self.selection is not None:
      return (
        f"Selection is charged: {self.selection}, before the first. Each was "
        "charged as stated here and scored by its releases and public data "
        "alone; the best one is shown, and nothing of the others."
      )
    if self.num_runs is not None:
      runs = f"{self.num_runs:,} run{'s' * (self.num_runs != 1)}"
      return (
        f"{_TUNING}{runs} of this study saw this data, and epsilon is of one "
        "of them, not of the choice among them."
      )
    return (
      f"{_TUNING}if settings or seeds were chosen by results on this data, "
      "epsilon does not cover the choice."
    )


def assumptions(
  facts: RunFacts,
  sampler: Sampler,
  relation: NeighboringRelation,
  seed_policy: str,
) -> tuple[str, ...]:
  """One sentence for each, those of the sampler first."""
  amplified = sampler.accountant(relation) != "gdp"
  return (
    *sampler.assumptions,
    *_about_the_data(facts, sampler, relation),
    facts.tuning,
    *_about_the_run(facts),
    *_about_secrets(facts, amplified, seed_policy),
    _SIDE_CHANNELS,
    _FLOATING_POINT,
  )


def _about_the_data(
  facts: RunFacts, sampler: Sampler, relation: NeighboringRelation
) -> list[str]:
  found = []
  if relation == NeighboringRelation.ADD_OR_REMOVE_ONE:
    found.append(
      "The number of examples is public, though neighbours differ in it."
    )
  if facts.rows_are_users:
    found.append(
      "Users: a row holds all records of a user, and no user has two rows."
    )
  else:
    unit = "record" if sampler.unit_shape else "example"
    found.append(
      f"One {unit} is one row: whoever has k rows is protected as a group of k."
    )
  if facts.params_given:
    found.append("Initial parameters do not depend on the private data.")
  if facts.preprocessed:
    found.append(
      "Preprocessing is public: constants, vocabulary and class weights do not "
      "depend on the private data."
    )
  if facts.part_frozen:
    found.append(
      "Which parameters train, if not all, does not depend on the private data."
    )
  if facts.public_batch:
    found.append(
      "Public batches hold no private record: what they tell the rule is "
      "released without noise."
    )
  if facts.held_out:
    found.append(
      "Rows that do not train are not covered: they were set aside by a fixed "
      "draw, to be public or to validate."
    )
  return found


def _about_the_run(facts: RunFacts) -> list[str]:
  found = []
  if facts.ended_by == "max_epsilon":
    found.append(
      "max_epsilon ended the run, and was fixed beforehand: no result on this "
      "data chose it."
    )
  else:
    found.append(
      "The number of steps was fixed beforehand: no result on this data ended "
      "the run."
    )
  if facts.release != "any":
    what = {
      "last": "the last parameters",
      "average": "parameters averaged over the steps",
    }[facts.release]
    found.append(f"Released are {what}: no result on this data chose a step.")
  else:
    found.append("No result on this data chose which step is released.")
  if facts.own_loop:
    found += [
      "Every step ran on the batch that this sampler drew for it.",
      "Only what was noised is released: losses, norms, clip fractions and "
      "batch sizes on the private data are kept back.",
    ]
  if facts.diagnostics:
    found.append(
      'Diagnostics are kept back: what is under the key "sensitive" has no '
      "noise."
    )
  if facts.evaluated:
    found.append(
      "Evaluations are exact, so the data that they read may be shown."
    )
  return found


def _about_secrets(
  facts: RunFacts, amplified: bool, seed_policy: str
) -> list[str]:
  what = "the noise and the batches" if amplified else "the noise"
  if seed_policy == "named":
    secret = (
      f"nobody who sees the result knows the named seed of {what}, and it "
      "serves no other run"
    )
  else:
    secret = (
      f"nobody who sees the result sees the seeds of {what}, which are in "
      "checkpoints and in the training state"
    )
    # ``fit`` takes new ones for every run.
    secret += ", and they serve no other run" * facts.own_loop
  noise = "threefry, with a 64-bit key, makes the noise"
  batches = "; Philox, with a 128-bit seed, draws the batches" * amplified
  return [
    f"Seed secrecy: {secret}.",
    f"The generators are taken as random: {noise}{batches}. They are not made "
    "for cryptography.",
  ]
