"""The sections of a survey's page: what is said, in its order."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from jaxdp.report import Section
from jaxdp.studies import _survey_curves as curves
from jaxdp.studies import _survey_figures as figures
from jaxdp.studies._laws import Choice, Factor, Sample
from jaxdp.studies._survey_findings import RANKS, Findings
from jaxdp.studies._survey_style import symbol
from jaxdp.studies.analysis._fanova import MAX_ERROR
from jaxdp.studies.analysis._verdicts import CORRELATES, FEW, MATTERS

Sets = Mapping[str, Findings]
Drawn = tuple[str, Section]  # name of the figure's file ("" without), section

_SIGNS = {"supported": "✓", "not supported": "✗", "undecided": "?"}


def sections(
  sets: Sets, *, texts: Sequence[str], planned: int | None, command: str
) -> Iterator[Drawn]:
  """All of them; figures are drawn as they are asked for."""
  yield "", _summary(sets)
  yield "", _design(sets, texts, planned)
  yield "coverage", _coverage(sets)
  yield "importances", _importances(sets)
  yield "interactions", _interactions(sets)
  if all({"lr", "C"} <= set(found.runs.columns) for found in sets.values()):
    yield "ridge", _ridge(sets)
    yield "ranks", _ranks(sets)
  yield "ice", _ice(sets)
  yield "ale", _ale(sets)
  if len({"lr", "C", "epochs"} & set(next(iter(sets.values())).numbers)) > 1:
    yield "ale_interactions", _ale_interactions(sets)
  yield "", _noise(sets)
  yield "", _evidence(sets)
  yield "", _privacy(sets)
  yield "", Section(title="Run it again", code=command)


# The runs.


def _summary(sets: Sets) -> Section:
  """Each conjecture's verdict, a column a set."""
  names = list(sets)
  told = pd.DataFrame(
    {
      name: found.verdicts.set_index("conjecture").apply(
        lambda row: f"{_SIGNS[row.verdict]} {row.verdict} ({row.confidence})",
        axis=1,
      )
      for name, found in sets.items()
      if len(found.verdicts)
    }
  )
  rows = [[str(what), *map(str, row)] for what, row in told.iterrows()]
  if told.empty:
    return Section(
      title="What the runs say", texts=[found.note for found in sets.values()]
    )
  texts = [
    "Each conjecture is a statement on a number with a 95 % interval: supported "
    "if the whole interval agrees, not supported if none of it does, undecided "
    "otherwise. In brackets, the confidence. ✓ and ✗ are findings; what is "
    "undecided is not to be told from noise by these runs.",
    *(f"{name}: {found.note}" for name, found in sets.items() if found.note),
  ]
  doubtful = [n for n, f in sets.items() if f.response.warning]
  if doubtful:
    texts.append(
      f"Confidence in verdicts on shares is lowered for {', '.join(doubtful)}: "
      f"the surrogate's hold-out error is above {MAX_ERROR}."
    )
  return Section(
    title="What the runs say",
    texts=texts,
    table=[["conjecture", *[n for n in names if n in told]], *rows],
    words=range(1, len(names) + 1),
  )


def _design(sets: Sets, texts: Sequence[str], planned: int | None) -> Section:
  total = sum(len(found.runs) for found in sets.values())
  runs = f"{total:,} runs"
  if planned is not None and planned != total:
    runs += f" of {planned:,} that are planned"
  first = next(iter(sets.values()))
  laws = "; ".join(map(_law, first.laws))
  seeds = [_seeds(found.runs) for found in sets.values()]
  lines = [
    *texts,
    f"{runs}, {', '.join(f'{len(f.runs):,} {n}' for n, f in sets.items())}. "
    f"Laws of the factors: {laws}. {seeds[0]}",
    "The response is the test accuracy, scaled to [0, 1] between the worst and "
    "the best run of its cell. Nothing was tuned: every run of the design "
    "counts, and the best of a cell, chosen on test data, is optimistic.",
  ]
  lines += [
    f"{name}: {found.num_diverged} runs diverged, and count with the least "
    "accuracy of their cell."
    for name, found in sets.items()
    if found.num_diverged
  ]
  return Section(
    title="Design",
    texts=lines,
    table=_cells(sets),
    words=(1,),
  )


def _law(law: Factor | Choice | Sample) -> str:
  """A law in words.

  Example:
    >>> _law(Factor("epochs", 25, 500, step=5))
    'epochs uniform on 25, 30, .., 500'
  """
  if isinstance(law, Choice):
    return f"{law.name} one of {', '.join(map(str, law.values))}"
  if isinstance(law, Sample):
    return f"{law.name} as it came out"
  if law.step is not None:
    second = law.low + law.step
    return f"{law.name} uniform on {law.low:g}, {second:g}, .., {law.high:g}"
  scale = "log-uniform" if law.scale == "log" else "uniform"
  return f"{law.name} {scale} on ({law.low:g}, {law.high:g})"


def _seeds(runs: pd.DataFrame) -> str:
  if "point" in runs and runs["point"].duplicated().any():
    sizes = runs.groupby("point").size()
    return f"{(sizes > 1).sum()} points ran with {sizes.max()} seeds each."
  return "Every point ran once, with its own seed: no seed was repeated."


def _cells(sets: Sets) -> list[list[str]]:
  """A row a cell: its guarantee, and what its runs came to."""
  rows = [["set", "cell", "N", "ε", "δ", "δ > 1/N", "runs", "median", "best"]]
  for name, found in sets.items():
    by = list(found.context)
    groups = found.runs.groupby(by) if by else [((), found.runs)]
    for _, cell in groups:
      one = cell.iloc[0]
      size, delta = one.get("num_examples"), one.get("delta")
      leaks = None not in (size, delta) and delta > 1 / size
      words = [str(one[k]) for k in by if k != "epsilon"]
      epsilon = cell["epsilon"].max() if "epsilon" in cell else None
      rows.append(
        [
          name,
          ", ".join(words) or "all",
          "" if size is None else f"{int(size):,}",
          "" if epsilon is None else f"{epsilon:.4g}",
          "" if delta is None else f"{delta:.2g}",
          "yes" if leaks else "no" if None not in (size, delta) else "",
          f"{len(cell):,}",
          *(f"{cell['accuracy'].quantile(q):.3f}" for q in (0.5, 1)),
        ]
      )
  return rows


def _coverage(sets: Sets) -> Section:
  return Section(
    title="Coverage",
    texts=[*_realised(sets)],
    figure=figures.coverage(sets),
    caption="How many runs took which values. Where a batch size was asked "
    "for, the last column has the sampling probability that trained against "
    "the nominal one; on the dashed line they agree.",
  )


def _realised(sets: Sets) -> Iterator[str]:
  for name, found in sets.items():
    runs = found.runs
    if {"q", "batch_size", "num_examples"} <= set(runs.columns):
      ratio = runs["q"] * runs["num_examples"] / runs["batch_size"]
      half = float(np.isclose(runs["q"], 0.5).mean())
      if (ratio - 1).abs().max() > 0.05:
        yield (
          f"{name}: the sampling probability is up to {ratio.max():.2g} times "
          f"and down to {ratio.min():.2g} times its nominal value, and "
          f"{half:.0%} of the runs trained at q = 1/2. The batch size as a "
          "factor is confounded: q is analysed in its place."
        )


# What matters.


def _importances(sets: Sets) -> Section:
  rows = [["set", "runs", "MAE", "R²", "lr and C, with context"]]
  for name, found in sets.items():
    fit = found.surrogate
    closed = fit.closed("lr", "C", "context")
    rows.append(
      [
        name,
        f"{fit.num_runs:,}",
        f"{fit.mae:.3f}",
        f"{fit.r2:.2f}",
        f"{closed:.0%}",
      ]
    )
  return Section(
    title="Importances",
    texts=[
      "Functional ANOVA on extremely randomised trees. Bars: shares of the "
      "variance of the surrogate, as in the published protocol, with 95 % "
      "intervals over half-samples, which say how they move with the runs and "
      "not whether the forest is right (importances.csv). Circles: shares of "
      "the variance of the response, corrected on runs held out, with intervals "
      "that cover the share itself (importances_response.csv). A forest "
      "smooths, so it understates interactions: where the two differ, the "
      "circles are the finding.",
      *_warnings(sets),
    ],
    table=rows,
    figure=figures.importances(sets),
    caption="Shares of main effects and interactions, with 95 % intervals. "
    "Context is the combination of dataset, model and ε.",
  )


def _warnings(sets: Sets) -> list[str]:
  return [
    f"⚠ {name}: {found.surrogate.warning}"
    for name, found in sets.items()
    if found.surrogate.warning
  ]


def _interactions(sets: Sets) -> Section:
  texts = []
  for name, found in sets.items():
    pairs = found.response.table
    pairs = pairs[pairs.factors.str.count(r"\*") == 1]
    real = pairs[pairs.low > 0].sort_values("share", ascending=False)
    noise = pairs[pairs.low <= 0]
    shown = ", ".join(
      f"{symbol(row.factors)} {row.share:.1%}" for row in real.itertuples()
    )
    texts.append(
      f"{name}: apart from 0 are {shown or 'none'}; not to be told from 0 are "
      f"{', '.join(map(symbol, noise.factors)) or 'none'}."
    )
  return Section(
    title="Interactions",
    texts=texts,
    figure=figures.interactions(sets),
    caption="Shares of the interactions of two, in percent of the variance.",
  )


# How it moves.


def _ridge(sets: Sets) -> Section:
  rows = [["set", "slope", "95 % interval", "best runs"]]
  names = list(next(iter(sets.values())).explained)
  rows[0] += [f"R²: {name}" for name in names]
  for name, found in sets.items():
    slope = found.ridge
    rows.append(
      [
        name,
        "" if slope is None else f"{slope.mean:.2f}",
        "" if slope is None else f"[{slope.low:.2f}, {slope.high:.2f}]",
        "" if slope is None else f"{slope.num_seeds}",
        *(f"{found.explained[key]:.2f}" for key in names),
      ]
    )
  return Section(
    title="The ridge of learning rate and clip norm",
    texts=[
      "If clipping binds for all, an update depends on lr C alone, and the best "
      "runs lie on a line of slope −1. The slope is that of orthogonal "
      "regression in each cell's best tenth, the median over cells. R² is "
      "cross-validated: as far as lr C explains what lr and C do, only their "
      "product matters."
    ],
    table=_minus(rows),
    figure=curves.heat(sets),
    caption="Mean scaled accuracy over clip norm and learning rate, on "
    "logarithmic axes without the lowest 2 % of each; cells without runs are "
    "blank. The line has the slope of the table.",
  )


def _ranks(sets: Sets) -> Section:
  rows = [["rank correlation with", *sets]]
  for name in RANKS:
    values = [found.ranks.get(name) for found in sets.values()]
    cells = [
      "" if v is None else f"{v.mean:.2f} [{v.low:.2f}, {v.high:.2f}]"
      for v in values
    ]
    rows.append([name, *cells])
  return Section(
    title="Rank correlations",
    texts=[
      "Medians over cells. lr C small: the lowest quarter of lr C in each cell, "
      "where training does not diverge."
    ],
    table=_minus(rows),
    figure=figures.ranks(sets),
    caption="Rank correlations with 95 % intervals; within the grey band, "
    f"±{CORRELATES}, none is counted.",
  )


def _minus(rows: list[list[str]]) -> list[list[str]]:
  """With a true minus sign in numbers."""
  return [
    rows[0],
    *(
      [row[0], *(cell.replace("-", "−") for cell in row[1:])]
      for row in rows[1:]
    ),
  ]


def _ice(sets: Sets) -> Section:
  return Section(
    title="Single runs: centred ICE",
    texts=[
      "What the surrogate says of single runs when one factor moves and the "
      "rest stays. Colour is the rank of the factor that it interacts with "
      "most; where colours fan out, the two interact."
    ],
    figure=curves.ice(sets),
    caption="Individual conditional expectations, less their first value; "
    "black: their mean.",
  )


def _ale(sets: Sets) -> Section:
  return Section(
    title="Accumulated local effects",
    texts=[
      "Effects of one factor that stay where runs are, of mean 0, of the "
      "surrogate, with 95 % intervals over the runs."
    ],
    figure=curves.ale(sets),
    caption="First-order accumulated local effects.",
  )


def _ale_interactions(sets: Sets) -> Section:
  return Section(
    title="Accumulated local effects of two factors",
    texts=["What two factors do together beyond the sum of their effects."],
    figure=curves.ale_interactions(sets),
    caption="Second-order accumulated local effects, blue where accuracy is "
    "higher than the two main effects say. Cells without runs are blank.",
  )


# How sure it is.


def _noise(sets: Sets) -> Section:
  texts = []
  for name, found in sets.items():
    noise = found.noise
    if noise is None:
      texts.append(
        f"{name}: no seed was repeated, so the share of the seed is not known; "
        f"it is at most the {1 - found.surrogate.r2:.0%} of the variance that "
        "the surrogate does not predict."
      )
    else:
      texts.append(
        f"{name}: between seeds the accuracy has a standard deviation of "
        f"{noise.stddev:.4f}, and {noise.share:.1%} [{noise.low:.1%}, "
        f"{noise.high:.1%}] of the scaled variance is the seed "
        f"({noise.num_points} points, {noise.num_runs} runs)."
      )
  return Section(title="Noise floor", texts=texts)


def _evidence(sets: Sets) -> Section:
  rows = [["conjecture", "set", "verdict", "confidence", "evidence"]]
  tables = [f.verdicts.assign(set=n) for n, f in sets.items()]
  told = pd.concat(tables)
  if len(told):
    order = {text: i for i, text in enumerate(told.conjecture.unique())}
    for row in told.sort_values(
      "conjecture", key=lambda c: c.map(order), kind="stable"
    ).itertuples():
      what = "" if rows[-1][0] == row.conjecture else row.conjecture
      again = next((r[0] for r in reversed(rows) if r[0]), "")
      rows.append(
        [
          "" if again == row.conjecture else what,
          row.set,
          row.verdict,
          row.confidence,
          row.evidence,
        ]
      )
  return Section(
    title="Verdicts and their evidence",
    texts=[
      f"A share matters from {MATTERS} of the variance, a rank correlation from "
      f"{CORRELATES}. Confidence is high, less one level each for a hold-out "
      f"error above {MAX_ERROR} where shares decide and for fewer than {FEW} "
      "runs, and low for what is undecided."
    ],
    table=_minus(rows) if len(rows) > 1 else (),
    words=(1, 2, 3, 4),
  )


def _privacy(sets: Sets) -> Section:
  total = sum(len(found.runs) for found in sets.values())
  texts = [
    "ε and δ are of each training alone. The choice among runs is not charged: "
    f"publishing the best of {total:,} runs, or this page, costs more than the "
    "ε of one of them."
  ]
  loose = sorted(
    {
      str(name)
      for found in sets.values()
      if {"delta", "num_examples", "dataset"} <= set(found.runs.columns)
      for name in found.runs[
        found.runs["delta"] * found.runs["num_examples"] > 1
      ]["dataset"]
    }
  )
  if loose:
    texts.append(
      f"On {', '.join(loose)} δ is above 1/N: a mechanism that publishes one "
      "example at random would pass."
    )
  if list(_realised(sets)):
    texts.append(
      "ε holds for the sampling probability that trained, not for the nominal "
      "B/N: at B/N and as many steps it would be larger."
    )
  return Section(title="Privacy", texts=texts)
