"""Running a study in instalments, and writing its report."""

import dataclasses
import itertools
import math
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
from tqdm import tqdm

from jaxdp.studies import _psasc, _report, _workdir
from jaxdp.studies._design import Design, Run
from jaxdp.studies._precheck import check_design
from jaxdp.studies._summary import Rows, chosen, select
from jaxdp.studies._sweep import Results
from jaxdp.studies._workers import Workers

# Times that the rates of an arm grow by one where the best is at their edge.
_MOST_EXTENSIONS = 8
_DESIGN = "design.json"
_RESULTS = "results.jsonl"


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
  resume: bool = True,
) -> bool:
  """Makes the runs that are not there yet, one at a time on each local device.

  Args:
    design: the study.
    workdir: gets ``results.jsonl``, one line a run, and ``design.json``, what
      all runs share. The same design goes on where a call before was stopped.
    minutes: begin no run after so long; None for no limit.
    progress: show a progress bar.
    resume: False refuses a ``workdir`` that holds runs.

  Returns:
    Whether all runs are there.

  Raises:
    ValueError: the runs in ``workdir`` are of another base, or are there
      without ``resume``.
    BlockingIOError: another process is at work in ``workdir``.
  """
  deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
  results = Results(pathlib.Path(workdir) / _RESULTS)
  check_design(design, [r for r in design.tuning() if r not in results])
  with _workdir.alone(workdir) as folder:
    return _run(design, folder, deadline, progress, resume)


def _run(
  design: Design,
  workdir: pathlib.Path,
  deadline: float,
  progress: bool,
  resume: bool,
) -> bool:
  if not resume:
    _workdir.check_new(workdir / _RESULTS)
  _workdir.claim(workdir, _DESIGN, _shared(design))
  results = Results(workdir / _RESULTS)
  workers = Workers(design, jax.local_devices())
  for stage in stages(design, results):
    todo = [r for r in stage if r not in results]
    with tqdm(total=len(todo), disable=not progress, unit="run") as bar:

      def done(one: Run, outcome: dict[str, float], bar: tqdm = bar) -> None:
        results.add(one, outcome)
        bar.update()

      if not workers(todo, done, lambda: time.monotonic() > deadline):
        return False
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
  _workdir.check(workdir, _DESIGN, _shared(design))
  results = Results(workdir / _RESULTS)
  # Runs of a design before, or of a choice that more tuning has changed, stay
  # in the file and out of the report; but they saw the data, and count.
  rows = results.of(r for stage in stages(design, results) for r in stage)
  return _report.write(
    design, rows, workdir / "report.html", command, num_runs=len(results.rows)
  )


def _shared(design: Design) -> dict[str, Any]:
  """What every run depends on and its line in the results does not say."""
  return {**design.base, "num_validation": design.num_validation}
