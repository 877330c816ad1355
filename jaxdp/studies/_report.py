"""The page of a study: what was asked, what came out, and how sure it is."""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

from jaxdp import accounting, report
from jaxdp.studies import _figures, _psasc
from jaxdp.studies._design import Design, Overrides
from jaxdp.studies._summary import (
  Interval,
  Rows,
  interval,
  paired,
  select,
  summarize,
)


def write(
  design: Design,
  rows: Rows,
  path: pathlib.Path,
  command: str,
  num_runs: int,
) -> pathlib.Path:
  """Writes the page from these rows, of so many runs that saw the data."""
  reference = str(design.options.get("reference", next(iter(design.arms))))
  sections = [_question(design, rows, command, num_runs)]
  sections += [
    _arms(design, rows, setting, reference)
    for setting in design.settings
    if select(rows, stage="evaluation", setting=setting)
  ]
  if select(rows, stage=_psasc.MATCHED):
    sections.append(_slopes(design, rows, reference))
  if select(rows, stage="tuning"):
    sections.append(_tuning(rows))
  data = design.base["data"]
  return report.write_study(
    path,
    name=str(design.options.get("title", path.parent.name)),
    subtitle=f"{data['name']}, {design.base['model']['name']}, "
    f"{len(rows):,} trainings",
    sections=sections,
  )


def percent(value: Interval, sign: bool = False) -> str:
  """In points of accuracy, with its interval.

  Example:
    >>> percent(Interval(0.012, -0.004, 0.028, 5), sign=True)
    '+1.2 [−0.4, 2.8]'
  """
  # Adding 0.0 makes a rounded -0.0 a 0.0.
  mean, low, high = (round(100 * x, 1) + 0.0 for x in value[:3])
  text = f"{mean:{'+' if sign else ''}.1f}"
  text += " (one seed)" if value.num_seeds < 2 else f" [{low:.1f}, {high:.1f}]"
  return text.replace("-", "−")


def verdict(difference: Interval) -> str:
  """What a difference shows: no more than its interval."""
  if difference.num_seeds < 2:
    return "one seed shows nothing"
  if difference.low > 0:
    return "better"
  return "worse" if difference.high < 0 else "no difference shown"


def _seeds(values: Sequence[Any]) -> str:
  return f"seed{'s' * (len(values) > 1)} {', '.join(map(str, values))}"


def _question(
  design: Design, rows: Rows, command: str, num_runs: int
) -> report.Section:
  base = design.base
  data, training = base["data"], base["training"]
  evaluated = select(rows, stage="evaluation")
  seeds = sorted({row["seed"] for row in evaluated})
  tuned = [row["rate"] for row in select(rows, stage="tuning")]
  rates = [*design.rates, *tuned]
  texts = [
    *map(str, design.options.get("texts", ())),
    f"Every arm trains on {data['num_examples']:,} examples of "
    f"{data['name']} for {training['num_steps']:,} steps. Rates, and what else "
    f"an arm may tune, were chosen on {design.num_validation:,} other training "
    f"rows, by the mean over {_seeds(design.tuning_seeds)}, among rates from "
    f"{min(rates):g} to {max(rates):g}; what is shown is the test accuracy of "
    f"{len(seeds)} further seeds, with Student's 95 % interval. Arms with "
    "equal seeds draw the same batches and noise, and differences are taken "
    "seed by seed.",
    "ε covers the examples that train, towards those who do not know the "
    "seeds, which are named; validation rows are not covered. "
    + accounting.RunFacts(num_runs=num_runs).tuning,
  ]
  settings = [["setting", "noise multiplier", "ε", "δ"]]
  for name in design.settings:
    mine = select(evaluated, setting=name)
    if mine:
      noise = sorted({f"{row['noise_multiplier']:.4g}" for row in mine})
      worst = max(row["epsilon"] for row in mine)
      settings.append(
        [name, ", ".join(noise), f"{worst:,.4g}", f"{mine[0]['delta']:g}"]
      )
  return report.Section(
    title="What was run",
    texts=texts,
    table=settings if len(settings) > 1 else (),
    code=command,
  )


def _arms(
  design: Design, rows: Rows, setting: str, reference: str
) -> report.Section:
  table = {
    arm: summary
    for arm in design.arms
    if (summary := summarize(rows, setting, arm, reference))
  }
  cells = [["arm", "rate", "accuracy", f"− {reference}", "verdict"]]
  if design.grids:
    cells[0].insert(2, "tuned")
  verdicts: dict[str, list[str]] = {}
  for arm, one in table.items():
    difference = one.difference
    row = [
      arm,
      f"{one.rate:g}",
      percent(one.accuracy),
      "" if difference is None else percent(difference, sign=True),
      "" if difference is None else verdict(difference),
    ]
    if design.grids:
      row.insert(2, _tuned(one.overrides))
    cells.append(row)
    if difference is not None:
      verdicts.setdefault(verdict(difference), []).append(arm)
  texts = [
    f"Against {reference}, {word}: {'; '.join(arms)}."
    for word, arms in verdicts.items()
  ]
  return report.Section(
    title=f"Accuracy of the arms, {setting}",
    texts=[
      *texts,
      "Intervals are for one comparison each: of twenty arms that do not "
      "differ, one is expected to look as if it did.",
    ],
    table=cells,
    figure=_figures.by_arm(
      {arm: one.accuracy for arm, one in table.items()}, "test accuracy, %"
    ),
    caption="Test accuracy with 95 % intervals over seeds.",
  )


def _tuned(overrides: Overrides) -> str:
  """The values of a grid: dotted paths into the rule."""
  values = {
    path.removeprefix("rule."): value
    for path, value in overrides.items()
    if path.startswith("rule.")
  }
  return ", ".join(f"{k}={v:g}" for k, v in values.items()) or "rate alone"


def _slopes(design: Design, rows: Rows, reference: str) -> report.Section:
  panels: dict[str, dict[str, list[tuple[float, Interval]]]] = {}
  bands, texts = {}, []
  cells = [["s", "setting", "lr C/s held", f"− {reference}", "lr held"]]
  low, high = design.options.get("published_gain", (0.03, 0.05))
  for setting in design.settings:
    theirs = select(rows, stage="evaluation", setting=setting, arm=reference)
    if not theirs or not select(rows, stage=_psasc.MATCHED, setting=setting):
      continue
    bands[setting] = (reference, interval(r["test_accuracy"] for r in theirs))
    gains = []
    panel = panels.setdefault(setting, {})
    for s in design.options["slopes"]:
      row = [f"{s:g}", setting, "", "", ""]
      for stage in (_psasc.MATCHED, _psasc.UNMATCHED):
        mine = [
          r
          for r in select(rows, stage=stage, setting=setting)
          if r["overrides"]["rule.s"] == s
        ]
        if not mine:
          continue
        value = interval(r["test_accuracy"] for r in mine)
        panel.setdefault(stage, []).append((s, value))
        if stage == _psasc.MATCHED:
          gain = paired(mine, theirs)
          gains.append((s, gain))
          row[2], row[3] = percent(value), percent(gain, sign=True)
        else:
          row[4] = percent(value)
      cells.append(row)
    texts.append(_gain(setting, gains, reference, low, high))
  return report.Section(
    title="The slope s, at matched and at fixed learning rate",
    texts=texts,
    table=cells,
    figure=_figures.lines(panels, "s", "test accuracy, %", bands),
    caption="PSASC over s. With lr C/s held, only the shape of the weights "
    "moves; with lr held, s is a learning rate too.",
  )


def _gain(
  setting: str,
  gains: list[tuple[float, Interval]],
  reference: str,
  low: float,
  high: float,
) -> str:
  """Whether the published gain is there once the learning rate is matched."""
  s, best = max(gains, key=lambda pair: pair[1].mean)
  head = (
    f"{setting}: at matched lr C/s the best of {len(gains)} slopes is s = {s:g}"
    f", {percent(best, sign=True)} points over {reference}. The published gain "
    f"of {100 * low:g} to {100 * high:g} points "
  )
  if best.low >= low:
    return f"{head}is there."
  if best.high < low:
    return (
      f"{head}does not survive: it lies outside of the interval, even of the "
      "best slope, which was chosen by this very result."
    )
  return f"{head}is neither shown nor excluded by these seeds."


def _tuning(rows: Rows) -> report.Section:
  panels: dict[str, dict[str, list[tuple[float, Interval]]]] = {}
  tuned = select(rows, stage="tuning")
  for row in tuned:
    arms = panels.setdefault(row["setting"], {})
    arms.setdefault(row["arm"], [])
  for setting, arms in panels.items():
    for arm, points in arms.items():
      mine = select(tuned, setting=setting, arm=arm)
      for rate in sorted({row["rate"] for row in mine}):
        best: dict[str, list[float]] = {}
        for row in select(mine, rate=rate):
          place = str(sorted(row["overrides"].items()))
          best.setdefault(place, []).append(row["validation_accuracy"])
        top = max(sum(values) / len(values) for values in best.values())
        # The mean alone: an interval of so few seeds would hide the others.
        points.append((rate, Interval(top, -math.inf, math.inf, 1)))
  return report.Section(
    title="Tuning",
    texts=[
      "Validation accuracy over the rate lr C/s; of an arm's other values, the "
      "best at each rate."
    ],
    figure=_figures.lines(panels, "rate lr C/s", "validation accuracy, %"),
    caption="What tuning saw: means over its seeds.",
  )
