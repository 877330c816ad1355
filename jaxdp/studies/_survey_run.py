"""Making the runs of a survey: noise first, then group by group.

Runs that share a program are a group. A run is on disk as soon as it ends, and
one that was cut short is made again, so that a survey can be killed at any
moment. See ``_stream.py`` for the program and ``_lanes.py`` for its use.
"""

import functools
import json
import math
import multiprocessing
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax
import numpy as np
import pandas as pd
from jaxtyping import PyTree
from tqdm import tqdm

from jaxdp import experiment
from jaxdp.experiment import ExperimentConfig
from jaxdp.mechanism import Mechanism
from jaxdp.studies import _noise, _workdir, design
from jaxdp.studies._journal import Journal
from jaxdp.studies._lanes import Job, Lanes, best
from jaxdp.studies._stream import Program
from jaxdp.studies._survey import Survey

# Batches of 16, 64, 256 and 1024, and two standard deviations more.
_CHUNKS = (24, 80, 288, 1088)
_OVERHEAD = 16  # rows that a chunk costs beyond its own
_MANY = 16  # searches for noise, which other processes are started for


class Group:
  """Runs that share a program, its data and its model.

  Args:
    survey: of the runs.
    rows: the runs, of a planned table.
  """

  def __init__(self, survey: Survey, rows: Sequence[Mapping[str, Any]]):
    self._survey = survey
    # Longest first, so that none is left alone at the end.
    self.rows = sorted(rows, key=lambda row: -row["num_steps"] * row["q"])

  def __call__(self) -> Iterator[dict[str, Any]]:
    """Makes the runs; what is kept of each, as it ends."""
    config = self._survey.config(self.rows[0])
    data, _, _ = experiment.load_train(config)
    test = experiment.load(config, "test")
    task = experiment.make_task(config, data, None)
    on_device = jax.device_put(dict(data))
    size, delta = chunk_size(self.rows[0]), config.privacy["delta"]
    program = Program(
      task.loss_fn,
      config.make_optimizer,
      config.performance.get("method", "auto"),
    )

    def make_params(job: Job) -> PyTree:
      mine = self._survey.config(job.name)
      return experiment.make_task(mine, data, None).params

    def lanes(width: int) -> Lanes:
      return Lanes(program, on_device, make_params, size, width)

    jobs = [self._job(row) for row in self.rows]
    chosen = best(lanes, jobs)
    for job, params in chosen(jobs):
      result = task.evaluate(params, test)
      yield {
        **job.name,
        "executed_epsilon": _noise.epsilon(job.mechanism, job.num_steps, delta),
        "delta": delta,
        "accuracy": result["accuracy"],
        "test_loss": result["loss"],
        "diverged": not math.isfinite(result["loss"]),
      }

  def _job(self, row: Mapping[str, Any]) -> Job:
    config = self._survey.config(row)
    mechanism = config.make_mechanism(int(row["num_examples"]))
    assert mechanism is not None
    rate = config.optimizer["learning_rate"]
    return Job(row, mechanism, rate, int(row["num_steps"]), int(row["seed"]))


def chunk_size(row: Mapping[str, Any]) -> int:
  """The chunks that a run's batches are cut into at least cost."""
  expected = row["q"] * row["num_examples"]
  most = expected + 2 * math.sqrt(expected * (1 - row["q"]))
  return min(
    _CHUNKS, key=lambda size: math.ceil(most / size) * (size + _OVERHEAD)
  )


def groups(survey: Survey, rows: Sequence[Mapping[str, Any]]) -> list[Group]:
  """The runs by program: what they differ in beyond numbers, and chunks."""
  by_program: dict[str, list[Mapping[str, Any]]] = {}
  for row in rows:
    config = survey.config(row)
    structure = {
      "data": config.data,
      "model": {**config.model, "seed": 0},
      "rule": {k: v for k, v in config.rule.items() if isinstance(v, str)},
      "optimizer": {**config.optimizer, "learning_rate": 0.0},
      "chunk": chunk_size(row),
    }
    key = json.dumps(structure, sort_keys=True, default=str)
    by_program.setdefault(key, []).append(row)
  return [Group(survey, rows) for rows in by_program.values()]


def plan(
  survey: Survey, workdir: pathlib.Path, *, progress: bool = True
) -> pd.DataFrame:
  """The table of the survey with every run's noise; both files are written.

  Noise that meets a target is searched for in several processes.
  """
  table = survey.table()
  design.save(table, workdir / "design.parquet")
  path = workdir / "plan.parquet"
  if path.exists():
    return design.load(path)
  targets = [_target(survey.config(row)) for row in _rows(table)]
  unique = list(dict.fromkeys(targets))
  noise = dict(zip(unique, _searched(unique, progress), strict=True))
  table = table.assign(noise_multiplier=[noise[t] for t in targets])
  design.save(table, path)
  return table


_Target = tuple[Mechanism, float | None, float, int]


def _target(config: ExperimentConfig) -> _Target:
  """What the noise of a run depends on; with noise given, no epsilon."""
  mechanism = _noise.without_rule(config, config.data["num_examples"])
  privacy = config.privacy
  if (sigma := privacy["noise_multiplier"]) is not None:
    mechanism = mechanism.replace(noise_multiplier=sigma)
  return (
    mechanism,
    privacy["target_epsilon"],
    privacy["delta"],
    config.training["num_steps"],
  )


def _search(target: _Target) -> float:
  mechanism, epsilon, delta, num_steps = target
  if epsilon is None:
    return mechanism.sigma
  return _noise.calibrated(mechanism, epsilon, delta, num_steps)


def _searched(targets: Sequence[_Target], progress: bool) -> list[float]:
  """The noise of each, by several processes if they are many."""
  bar = functools.partial(
    tqdm, total=len(targets), desc="noise", disable=not progress
  )
  if len(targets) < _MANY:
    return list(bar(map(_search, targets)))
  context = multiprocessing.get_context("spawn")
  with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
    return list(bar(pool.map(_search, targets)))


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
  rows = table.to_dict("records")
  return [
    {
      str(k): v.item() if isinstance(v, np.generic) else v
      for k, v in row.items()
    }
    for row in rows
  ]


def survey_groups(
  survey: Survey, workdir: str | os.PathLike[str]
) -> pd.DataFrame:
  """What is left to run, by program: cells, chunks, and the work.

  Args:
    survey: what would run.
    workdir: that of ``run_survey``; design and plan are written to it.
  """
  workdir = pathlib.Path(workdir)
  todo, _ = _left(survey, workdir, progress=True)
  lines = []
  for group in groups(survey, todo):
    first = group.rows[0]
    rows = [row["num_steps"] * row["q"] * row["num_examples"]
            for row in group.rows]  # fmt: skip
    cell = {name: first[name] for name in survey.cells[0]}
    cell.pop("epsilon", None)  # a number, which a group's runs may differ in
    lines.append(
      {
        **cell,
        "chunk": chunk_size(first),
        "runs": len(group.rows),
        "steps": sum(row["num_steps"] for row in group.rows),
        "million examples": round(sum(rows) / 1e6, 1),
      }
    )
  return pd.DataFrame(lines)


def run_survey(
  survey: Survey,
  workdir: str | os.PathLike[str],
  *,
  minutes: float | None = None,
  progress: bool = True,
) -> bool:
  """Makes the runs that are not there yet.

  Args:
    survey: what to run.
    workdir: gets ``survey.json``, what all runs share, and ``design.parquet``
      before anything runs, ``plan.parquet`` with the noise, ``runs.jsonl``, a
      line as soon as a run ends, and ``runs.parquet``, all of them, in the end.
    minutes: begin nothing after so long; None for no limit.
    progress: show a progress bar.

  Returns:
    Whether all runs are there.

  Raises:
    ValueError: ``workdir`` holds another survey.
  """
  workdir = pathlib.Path(workdir)
  todo, journal = _left(survey, workdir, progress)
  num_made = len(list(journal))
  deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
  complete = True
  with tqdm(
    total=num_made + len(todo),
    initial=num_made,
    unit="run",
    disable=not progress,
  ) as bar:
    for group in groups(survey, todo):
      for row in group():
        journal.add(row)
        bar.update()
        if time.monotonic() > deadline:
          complete = False
          break
      if not complete:
        break
  partial = workdir / f"runs.parquet.{os.getpid()}"
  read_runs(workdir).to_parquet(partial, index=False)
  partial.replace(workdir / "runs.parquet")
  return complete


def read_runs(workdir: str | os.PathLike[str]) -> pd.DataFrame:
  """The runs of a survey that are there, also while others are under way.

  Raises:
    FileNotFoundError: there is none.
  """
  path = pathlib.Path(workdir) / "runs.jsonl"
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
  journal = Journal(workdir / "runs.jsonl")
  made = {row["run"] for row in journal}
  return [row for row in _rows(table) if row["run"] not in made], journal
