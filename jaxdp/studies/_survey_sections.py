"""The sections of a survey's page: what is said, in its order."""

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from jaxdp import accounting
from jaxdp.report import Section
from jaxdp.studies import _survey_curves as curves
from jaxdp.studies import _survey_figures as figures
from jaxdp.studies import _survey_rate as rate
from jaxdp.studies import _survey_runs as runs
from jaxdp.studies import _survey_words as words
from jaxdp.studies._survey_findings import RANKS, Findings
from jaxdp.studies._survey_style import symbol
from jaxdp.studies.analysis._fanova import MAX_ERROR
from jaxdp.studies.analysis._verdicts import CORRELATES, FEW, MATTERS

Sets = Mapping[str, Findings]
Drawn = tuple[str, Section]  # name of the figure's file ("" without), section

_SIGNS = {"supported": "✓", "not supported": "✗", "undecided": "?"}


def sections(
  sets: Sets,
  *,
  texts: Sequence[str],
  planned: int | None,
  command: str,
  beside: Sequence[Section] = (),
) -> Iterator[Drawn]:
  """All of them; figures are drawn as they are asked for.

  Args:
    sets: what the runs say.
    texts: the first paragraphs on the design.
    planned: how many runs the design has.
    command: how to make the page again.
    beside: on other surveys, shown before what says how sure it is.
  """
  yield "", _summary(sets)
  yield "", runs.design(sets, texts, planned)
  yield "coverage", runs.coverage(sets)
  yield "importances", _importances(sets)
  yield "interactions", _interactions(sets)
  if all({"lr", "C"} <= set(found.runs.columns) for found in sets.values()):
    yield "ridge", _ridge(sets)
    yield "ranks", _ranks(sets)
    if all(found.explained for found in sets.values()):
      yield "rate", rate.section(sets)
  yield "ice", _ice(sets)
  yield "ale", _ale(sets)
  if len({"lr", "C", "epochs"} & set(next(iter(sets.values())).numbers)) > 1:
    yield "ale_interactions", _ale_interactions(sets)
  yield from (("", section) for section in beside)
  yield "", _noise(sets)
  yield "", _evidence(sets)
  yield "", _privacy(sets)
  yield "", Section(title="Run it again", code=command)


def _summary(sets: Sets) -> Section:
  """Each conjecture's verdict, a column a set."""
  names, several = list(sets), len(sets) > 1
  told = pd.DataFrame(
    {
      name: found.verdicts.set_index("conjecture").apply(
        lambda row: words.whole(f"{_SIGNS[row.verdict]} {row.verdict}"),
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
    "Each conjecture is a statement on a number with a 95 % interval: "
    "supported if the whole interval agrees, not supported if none of it does, "
    "undecided otherwise. ✓ and ✗ are findings; what is undecided these runs "
    "do not tell from noise. Evidence and confidence are further down.",
    *(
      f"{words.head(name, sets)}{f.note}" for name, f in sets.items() if f.note
    ),
  ]
  doubtful = [n for n, f in sets.items() if f.response.warning]
  if doubtful:
    texts.append(
      "Confidence in verdicts on shares is lowered"
      + f" for {', '.join(doubtful)}" * several
      + f": the surrogate's hold-out error is above {MAX_ERROR}."
    )
  return Section(
    title="What the runs say",
    texts=texts,
    table=[
      ["conjecture", *([n for n in names if n in told] if several else [""])],
      *rows,
    ],
    words=range(1, len(names) + 1),
  )


# What matters.


def _importances(sets: Sets) -> Section:
  rows = [["", "points", "MAE", "R²", "lr, C, context together"]]
  for name, found in sets.items():
    fit = found.surrogate
    closed = fit.closed("lr", "C", "context")
    rows.append(
      [
        name if len(sets) > 1 else "",
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
      "the variance of the response, corrected on runs held out, with 95 % "
      "intervals for the share itself (importances_response.csv). A forest "
      "smooths, so it understates interactions: where the two differ, the "
      "circles are the finding. MAE and R² are of runs held out, in units of "
      f"the scaled response; an MAE above {MAX_ERROR} is warned of.",
      *_warnings(sets),
    ],
    table=rows,
    figure=figures.importances(sets),
    caption="Shares of main effects and interactions, with 95 % intervals."
    + _context(sets),
  )


def _context(sets: Sets) -> str:
  used = {name: None for f in sets.values() for name in f.context}
  return (
    f" Context: {', '.join(used)}; its own share says where between the worst "
    "and the best run of a cell the others lie."
    if used
    else ""
  )


def _warnings(sets: Sets) -> list[str]:
  return [
    f"⚠ {words.head(name, sets)}{found.surrogate.warning}"
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
      f"{words.head(name, sets)}Apart from 0 are {shown or 'none'}; not to be "
      f"told from 0 are {', '.join(map(symbol, noise.factors)) or 'none'}."
    )
  return Section(
    title="Interactions",
    texts=texts,
    figure=figures.interactions(sets),
    caption="Shares of the interactions of two, in percent of the variance.",
  )


# How it moves.


def _ridge(sets: Sets) -> Section:
  slopes = [found.ridge for found in sets.values()]
  by_itself = all(found.rate == "lr" for found in sets.values())
  how = "least squares" if by_itself else "orthogonal regression"
  said = (
    "The rule divides what it has clipped by C. If clipping binds for all, an "
    "update depends on lr alone, and the best runs lie on a line of slope 0."
    if by_itself
    else "If clipping binds for all, an update depends on lr·C alone, and the "
    "best runs lie on a line of slope −1."
  )
  return Section(
    title="The ridge of learning rate and clip norm",
    texts=[
      f"{said} The slope is that of {how} in each cell's best "
      "tenth, the median over cells."
    ],
    table=words.minus(
      [
        ["", *words.names(sets)],
        ["slope of log lr on log C", *map(words.interval, slopes)],
        ["best runs", *("" if s is None else f"{s.num_seeds}" for s in slopes)],
      ]
    ),
    figure=curves.heat(sets),
    caption="Mean scaled accuracy over clip norm and learning rate, on "
    "logarithmic axes without the lowest 2 % of each; cells without runs are "
    "blank. The line has the slope of the table.",
  )


def _ranks(sets: Sets) -> Section:
  rows = [["rank correlation with", *words.names(sets)]]
  for name in RANKS:
    values = [found.ranks.get(name) for found in sets.values()]
    rows.append([name, *map(words.interval, values)])
  return Section(
    title="Rank correlations",
    texts=[
      f"Medians over cells. The rate is {next(iter(sets.values())).rate}; rate "
      "small: its lowest quarter in each cell."
    ],
    table=words.minus(rows),
    figure=figures.ranks(sets),
    caption="Rank correlations with 95 % intervals; within the grey band, "
    f"±{CORRELATES}, none is counted.",
  )


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
  unknown = []
  for name, found in sets.items():
    if (noise := found.noise) is None:
      left = 1 - max(found.surrogate.r2, *found.explained.values(), 0)
      unknown.append(f"{left:.0%}{words.of(name, sets)}")
    else:
      shares = found.response.table
      less = shares[(shares.low > 0) & (shares.share < noise.share)].factors
      texts.append(
        f"{words.head(name, sets)}Between seeds the accuracy has a standard "
        f"deviation of {noise.stddev:.4f}, and {noise.share:.1%} "
        f"[{noise.low:.1%}, {noise.high:.1%}] of the scaled variance is the "
        f"seed ({noise.num_points} points, {noise.num_runs} runs). Components "
        "apart from 0 that move single runs less than their seed does: "
        f"{', '.join(map(symbol, less)) or 'none'}."
      )
  if unknown:
    texts.append(
      "No seed was repeated, so how much is the seed is not known. It is about "
      "what the best regression of this page does not predict, or less: "
      f"{', '.join(unknown)} of the variance."
    )
  return Section(title="Noise floor", texts=texts)


def _evidence(sets: Sets) -> Section:
  several = ["set"] * (len(sets) > 1)
  shown = [*several, "verdict", "confidence", "evidence"]
  rows = [["conjecture", *shown]]
  tables = [f.verdicts.assign(set=n) for n, f in sets.items()]
  told = pd.concat(tables)
  if len(told):
    told["verdict"] = told["verdict"].map(words.whole)
    for what, group in told.groupby("conjecture", sort=False):
      for number, row in enumerate(group[shown].to_numpy().tolist()):
        rows.append(["" if number else str(what), *row])
  return Section(
    title="Verdicts and their evidence",
    texts=[
      f"A share, or a gain in R², matters from {MATTERS} of the variance, a "
      f"rank correlation from {CORRELATES}. Confidence is high, less one level "
      f"each for a hold-out error above {MAX_ERROR} where shares decide and "
      f"for fewer than {FEW} points, and low for what is undecided."
    ],
    table=words.minus(rows) if len(rows) > 1 else (),
    words=range(1, len(shown) + 1),
  )


def _privacy(sets: Sets) -> Section:
  every = pd.concat([found.runs for found in sets.values()])
  texts = [
    "ε and δ are of each training alone. "
    f"{accounting.RunFacts(num_runs=len(every)).tuning} Publishing the best of "
    f"these, or this page, costs more than the ε of one of them."
  ]
  if "dataset" in every and every["dataset"].nunique() > 1:
    counts = every["dataset"].value_counts(sort=False)
    saw = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    texts.append(f"What runs saw: {saw}.")
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
  if runs.confounded(sets):
    texts.append(
      "ε holds for the sampling probability that trained, not for the nominal "
      "B/N: at B/N and as many steps it would be larger."
    )
  return Section(title="Privacy", texts=texts)
