"""What a survey's page says of its runs: which they are, and where."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from jaxdp.report import Section
from jaxdp.studies import _survey_figures as figures
from jaxdp.studies import _survey_words as words
from jaxdp.studies._laws import Choice, Factor, Sample
from jaxdp.studies._survey_findings import Findings

Sets = Mapping[str, Findings]


def design(sets: Sets, texts: Sequence[str], planned: int | None) -> Section:
  """The laws, the runs, and a row a cell."""
  total = sum(len(found.runs) for found in sets.values())
  runs = f"{total:,} runs"
  if planned is not None and planned != total:
    runs += f" of {planned:,} that are planned"
  first = next(iter(sets.values()))
  laws = "; ".join(map(_law, first.laws))
  seeds = _seeds(pd.concat([found.runs for found in sets.values()]))
  lines = [
    *texts,
    f"{runs}{_each(sets)}. Laws of the factors: {laws}. {seeds}",
    "The response is the test accuracy, scaled to [0, 1] between the worst and "
    "the best run of its cell. Nothing was tuned: every run of the design "
    "counts, and the best of a cell, chosen on test data, is optimistic.",
  ]
  lines += [
    f"{found.num_diverged} runs{words.of(name, sets)} diverged, and count with "
    "the least accuracy of their cell."
    for name, found in sets.items()
    if found.num_diverged
  ] or ["No run diverged to values that are not finite."]
  return Section(
    title="Design",
    texts=lines,
    table=_cells(sets),
    words=(1,),
  )


def _each(sets: Sets) -> str:
  if len(sets) == 1:
    return ""
  return "".join(f", {len(f.runs):,} {n}" for n, f in sets.items())


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
  return f"{law.name} {scale} on ({law.low:.3g}, {law.high:.3g})"


def _seeds(runs: pd.DataFrame) -> str:
  if "point" in runs and runs["point"].duplicated().any():
    sizes = runs.groupby("point").size()
    return (
      f"{(sizes > 1).sum()} of {len(sizes):,} points ran with {sizes.max()} "
      "seeds each, for the noise floor; all else is of the first seed of every "
      "point, as the law draws points."
    )
  return "Every point ran once: no seed was repeated."


def _cells(sets: Sets) -> list[list[str]]:
  """A row a cell: its guarantee, and what its runs came to."""
  rows = [["", "cell", "N", "ε", "δ", "δ > 1/N", "runs", "median", "best"]]
  for name, found in sets.items():
    by = [*found.constant, *found.context]
    groups = found.runs.groupby(by) if by else [((), found.runs)]
    for number, (_, cell) in enumerate(groups):
      one = cell.iloc[0]
      size, delta = one.get("num_examples"), one.get("delta")
      leaks = None not in (size, delta) and delta > 1 / size
      words = [str(one[k]) for k in by if k != "epsilon"]
      spent = [c for c in ("executed_epsilon", "epsilon") if c in cell]
      epsilon = cell[spent[0]].max() if spent else None
      rows.append(
        [
          "" if number or len(sets) == 1 else name,
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


def coverage(sets: Sets) -> Section:
  """Histograms, and what trained against what was asked for."""
  return Section(
    title="Coverage",
    texts=realised(sets),
    figure=figures.coverage(sets),
    caption="How many points took which values."
    + " The last column has the sampling probability that trained against the "
    "nominal one; on the dashed line they agree." * bool(confounded(sets)),
  )


def confounded(sets: Sets) -> bool:
  """Whether other batches trained than those that were asked for."""
  return bool(np.abs(figures.ratios(sets) - 1).max() > 0.05)


def realised(sets: Sets) -> list[str]:
  """What batches trained, in words."""
  ratio = figures.ratios(sets)
  if len(ratio) == 1:
    return []
  if not confounded(sets):
    return ["The sampling probability that trained is the one that was stated."]
  halves = [
    f"{np.isclose(found.points['q'], 0.5).mean():.0%}{words.of(name, sets)}"
    for name, found in sets.items()
  ]
  return [
    f"The sampling probability that trained is between {ratio.min():.2g} and "
    f"{ratio.max():.2g} times the nominal one, B/N. Points at q = 1/2: "
    f"{', '.join(halves)}. So the nominal batch size is confounded, and nearly "
    "without effect where many of its values share one q; the analyses use q."
  ]
