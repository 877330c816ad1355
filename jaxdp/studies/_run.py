"""Running a study in instalments, and writing its report."""

import dataclasses
import itertools
import os
import pathlib
import time
from collections.abc import Iterator

from tqdm import tqdm

from jaxdp.studies import _psasc, _report
from jaxdp.studies._design import Design, Run
from jaxdp.studies._summary import Rows, chosen, select
from jaxdp.studies._sweep import Results, Sweep

# Times that the rates of an arm grow by one where the best is at their edge.
_MOST_EXTENSIONS = 8


def stages(design: Design, results: Results) -> Iterator[list[Run]]:
  """The runs of a study; each stage knows the results of those before."""
  tuning = list(design.tuning())
  yield tuning
  for _ in range(_MOST_EXTENSIONS):
    more = list(extensions(design, results.of(tuning)))
    tuning += more
    yield more
  best = chosen(results.of(tuning))
  yield [
    dataclasses.replace(run, stage="evaluation", seed=seed)
    for run, seed in itertools.product(best.values(), design.seeds)
  ]
  yield list(_psasc.slopes(design, best))


def extensions(design: Design, tuned: Rows) -> Iterator[Run]:
  """One more rate for every arm that was best at the edge of those tried."""
  if len(design.rates) < 2:
    return
  low, *_, high = sorted(design.rates)
  ratio = (high / low) ** (1 / (len(design.rates) - 1))
  for run in chosen(tuned).values():
    tried = [
      row["rate"] for row in select(tuned, setting=run.setting, arm=run.arm)
    ]
    for edge, factor in ((min(tried), 1 / ratio), (max(tried), ratio)):
      if run.rate == edge:
        rate = float(f"{run.rate * factor:.3g}")
        for seed in design.tuning_seeds:
          yield dataclasses.replace(run, rate=rate, seed=seed)


def run(
  design: Design,
  workdir: str | os.PathLike[str],
  *,
  minutes: float | None = None,
  progress: bool = True,
) -> bool:
  """Makes the runs that are not there yet.

  Args:
    design: the study.
    workdir: gets ``results.jsonl``, one line a run. The same design goes on
      where a call before was stopped.
    minutes: begin no run after so long; None for no limit.
    progress: show a progress bar.

  Returns:
    Whether all runs are there.
  """
  workdir = pathlib.Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  results, sweep = Results(workdir / "results.jsonl"), Sweep(design)
  begin = time.monotonic()
  for stage in stages(design, results):
    todo = [r for r in stage if r not in results]
    for one in tqdm(todo, disable=not progress, unit="run"):
      if minutes is not None and time.monotonic() - begin > 60 * minutes:
        return False
      results.add(one, sweep(one))
  return True


def report(
  design: Design, workdir: str | os.PathLike[str], command: str = ""
) -> pathlib.Path:
  """Writes ``report.html`` from the runs that are there.

  Args:
    design: the study.
    workdir: that of ``run``.
    command: how to run the study again, to be shown.
  """
  workdir = pathlib.Path(workdir)
  results = Results(workdir / "results.jsonl")
  # Runs of a design before, or of a choice that more tuning has changed, stay
  # in the file and out of the report.
  rows = results.of(r for stage in stages(design, results) for r in stage)
  return _report.write(design, rows, workdir / "report.html", command)
