"""Runs that share a program, and what is kept of each.

See ``_stream.py`` for the program and ``_lanes.py`` for its use.
"""

import itertools
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jaxtyping import PyTree

from jaxdp import experiment
from jaxdp.studies import _noise
from jaxdp.studies._lanes import Job, Lanes, best
from jaxdp.studies._stream import Program, RunState
from jaxdp.studies._survey import Survey

# Batches of 16, 64, 256 and 1024, and two standard deviations more.
_CHUNKS = (24, 80, 288, 1088)
_OVERHEAD = 16  # rows that a chunk costs beyond its own


class Group:
  """Runs that share a program, its data and its model.

  Args:
    survey: of the runs.
    rows: the runs, of a planned table.
  """

  def __init__(self, survey: Survey, rows: Sequence[Mapping[str, Any]]):
    self.survey = survey
    # Longest first, so that none is left alone at the end.
    self.rows = sorted(rows, key=lambda row: -row["num_steps"] * row["q"])

  def __call__(self, seconds: float = math.inf) -> Iterator[dict[str, Any]]:
    """Makes the runs; what is kept of each, as it ends.

    After so many seconds no run begins; those begun are finished.
    """
    if seconds <= 0:
      return
    deadline = time.monotonic() + seconds
    config = self.survey.config(self.rows[0])
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
      mine = self.survey.config(job.name)
      return experiment.make_task(mine, data, None).params

    def lanes(width: int) -> Lanes:
      return Lanes(program, on_device, make_params, size, width)

    jobs = [self._job(row) for row in self.rows]
    chosen = best(lanes, jobs)
    in_time = itertools.takewhile(lambda _: time.monotonic() < deadline, jobs)
    for job, state in chosen(in_time):
      steps = executed_steps(job, state)
      result = task.evaluate(state.params, test)
      yield {
        **job.name,
        "executed_steps": steps,
        "executed_epsilon": _noise.epsilon(job.mechanism, steps, delta),
        "delta": delta,
        "accuracy": result["accuracy"],
        "test_loss": result["loss"],
        "diverged": not math.isfinite(result["loss"]),
      }

  @property
  def work(self) -> float:
    """Examples that the runs take, about."""
    return sum(
      row["num_steps"] * row["q"] * row["num_examples"] for row in self.rows
    )

  def halves(self) -> list["Group"]:
    """Two groups of about the same work."""
    return [Group(self.survey, self.rows[i::2]) for i in range(2)]

  def without(self, run: Any) -> "Group":
    """The other runs."""
    return Group(self.survey, [r for r in self.rows if r["run"] != run])

  def _job(self, row: Mapping[str, Any]) -> Job:
    config = self.survey.config(row)
    mechanism = config.make_mechanism(int(row["num_examples"]))
    assert mechanism is not None
    rate = config.optimizer["learning_rate"]
    return Job(row, mechanism, rate, int(row["num_steps"]), int(row["seed"]))


def executed_steps(job: Job, state: RunState) -> int:
  """The releases that the program itself counted.

  Raises:
    RuntimeError: they are not as many as were planned.
  """
  steps = int(state.mechanism_state.count)
  if steps != job.num_steps:
    raise RuntimeError(
      f"A run of {job.num_steps} steps made {steps} releases: {job.name}. "
      "Its epsilon is not the planned one, so it is not kept. This is an error "
      "of jaxdp: please report it."
    )
  return steps


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


def spread(groups: Iterable[Group], places: int) -> list[Group]:
  """The same runs for so many workers at once, most work first.

  Where there are fewer groups than places, the largest are split.
  """
  parts = list(groups)
  while len(parts) < places:
    many = [group for group in parts if len(group.rows) > 1]
    if not many:
      break
    largest = max(many, key=lambda group: group.work)
    parts.remove(largest)
    parts += largest.halves()
  return sorted(parts, key=lambda group: -group.work)
