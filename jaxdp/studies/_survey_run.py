"""Making the runs of a survey: noise first, then group by group.

A run is on disk as soon as it ends, and one that was cut short is made again,
so that a survey can be killed at any moment. Read ``_survey_plan.py``,
``_survey_groups.py`` and ``_executors.py``.
"""

import math
import os
import pathlib
import time
from typing import Any

import pandas as pd

from jaxdp.studies import _workdir
from jaxdp.studies._executors import Executor, LocalExecutor
from jaxdp.studies._journal import Journal
from jaxdp.studies._precheck import check_survey
from jaxdp.studies._progress import Runs
from jaxdp.studies._survey import Survey
from jaxdp.studies._survey_groups import chunk_size, groups
from jaxdp.studies._survey_plan import as_rows, plan

_RUNS = "runs.jsonl"


def survey_groups(
  survey: Survey, workdir: str | os.PathLike[str]
) -> pd.DataFrame:
  """What is left to run, by program: cells, chunks, and the work.

  Args:
    survey: what would run.
    workdir: that of ``run_survey``; design and plan are written to it.
  """
  workdir = pathlib.Path(workdir)
  check_survey(survey, _made(workdir))
  todo, _ = _left(survey, workdir, progress=True)
  lines = []
  for group in groups(survey, todo):
    first = group.rows[0]
    cell = {name: first[name] for name in survey.cells[0]}
    cell.pop("epsilon", None)  # a number, which a group's runs may differ in
    lines.append(
      {
        **cell,
        "chunk": chunk_size(first),
        "runs": len(group.rows),
        "steps": sum(row["num_steps"] for row in group.rows),
        "million examples": round(group.work / 1e6, 1),
      }
    )
  return pd.DataFrame(lines)


def run_survey(
  survey: Survey,
  workdir: str | os.PathLike[str],
  *,
  minutes: float | None = None,
  progress: bool = True,
  executor: Executor | None = None,
  resume: bool = True,
) -> bool:
  """Makes the runs that are not there yet.

  Args:
    survey: what to run.
    workdir: gets ``survey.json``, what all runs share, and ``design.parquet``
      before anything runs, ``plan.parquet`` with the noise, ``runs.jsonl``, a
      line as soon as a run ends, and ``runs.parquet``, all of them, in the end.
    minutes: begin no run after so long; None for no limit.
    progress: show a progress bar.
    executor: makes the runs; None for ``LocalExecutor()``.
    resume: go on where a call before was stopped; False refuses a ``workdir``
      that holds runs.

  Returns:
    Whether all runs are there.

  Raises:
    ValueError: ``workdir`` holds another survey, or runs without ``resume``.
    BlockingIOError: another process is at work in ``workdir``.
  """
  deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
  check_survey(survey, _made(pathlib.Path(workdir)))
  with _workdir.alone(workdir) as folder:
    return _run(
      survey, folder, deadline, progress, executor or LocalExecutor(), resume
    )


def _run(
  survey: Survey,
  workdir: pathlib.Path,
  deadline: float,
  progress: bool,
  executor: Executor,
  resume: bool,
) -> bool:
  if not resume:
    _workdir.check_new(workdir / _RUNS)
  todo, journal = _left(survey, workdir, progress)
  made = {row["run"] for row in journal}
  total = len(made) + len(todo)
  with Runs(total, len(made), disable=not progress) as bar:
    if todo and (seconds := deadline - time.monotonic()) > 0:
      for row in executor(groups(survey, todo), seconds):
        if row["run"] not in made:
          made.add(row["run"])
          journal.add(row)
          bar.update()
  if made:
    partial = workdir / ".runs.parquet.partial"
    read_runs(workdir).to_parquet(partial, index=False)
    partial.replace(workdir / "runs.parquet")
  return len(made) == total


def read_runs(workdir: str | os.PathLike[str]) -> pd.DataFrame:
  """The runs of a survey that are there, also while others are under way.

  Raises:
    FileNotFoundError: there is none.
  """
  path = pathlib.Path(workdir) / _RUNS
  if not (rows := list(Journal(path))):
    raise FileNotFoundError(
      f"{path} holds no run: run the survey first, with scripts/study.py."
    )
  return pd.DataFrame(rows).sort_values("run", ignore_index=True)


def _left(
  survey: Survey, workdir: pathlib.Path, progress: bool
) -> tuple[list[dict[str, Any]], Journal]:
  """The runs that are not there yet, and those that are."""
  _workdir.claim(workdir, "survey.json", survey.base)
  table = plan(survey, workdir, progress=progress)
  made = _made(workdir)
  todo = [row for row in as_rows(table) if row["run"] not in made]
  return todo, Journal(workdir / _RUNS)


def _made(workdir: pathlib.Path) -> set[int]:
  return {row["run"] for row in Journal(workdir / _RUNS)}
