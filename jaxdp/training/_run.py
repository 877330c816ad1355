"""One run of ``fit``: resume, then for every call charge, run, report, save."""

import concurrent.futures
import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from jaxdp import accounting, per_example
from jaxdp.sampling import Sampler
from jaxdp.training import (
  _budget,
  _checkpoint,
  _faults,
  _feed,
  _files,
  _metrics,
  _program,
  _release,
  _resume,
  _sharding,
)
from jaxdp.training._seeds import Seeds
from jaxdp.training._step import StepInfo, TrainState, TrainStep

# Bins of the accountant for rows in between: some ten times faster than those
# of the last row, and epsilon comes out at most 0.5 % larger, never smaller.
_FINE, _COARSE = 1e-4, 1e-3
# Names in rows that are not of an evaluation.
_OWN = {"step", "examples_per_second", "epsilon", "update_norm", "sensitive"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerformanceFlags:
  """Knobs that move time and memory, and never epsilon or a result.

  Attributes:
    method: engine of the per-example gradients.
    microbatch_size: see ``jaxdp.clipped_sum``.
    steps_per_call: steps in one compiled ``lax.scan``; "auto" chooses.
    data_on_device: keep the data set on the device; "auto" if it fits and the
      device is not the CPU.
    mesh: devices to share every batch among, see ``data_mesh``.
  """

  method: per_example.Method = "auto"
  microbatch_size: int | Literal["auto"] | None = None
  steps_per_call: int | Literal["auto"] = "auto"
  data_on_device: bool | Literal["auto"] = "auto"
  mesh: Mesh | None = None


@dataclasses.dataclass(frozen=True)
class History:
  """What a run reported.

  Attributes:
    metrics: rows of numbers by step, as in ``metrics.jsonl``.
    ledger: the executed steps; None without a mechanism.
    statement: what may be claimed; None without a mechanism.
    stopped_by_budget: whether ``max_epsilon`` ended the run early.
  """

  metrics: list[dict[str, Any]]
  ledger: accounting.Ledger | None
  statement: accounting.PrivacyStatement | None
  stopped_by_budget: bool


@dataclasses.dataclass
class Run:
  """One call of ``fit``, with everything checked; call it once."""

  step: TrainStep
  sampler: Sampler
  num_steps: int
  delta: float | None
  max_epsilon: float | None
  workdir: pathlib.Path | None
  config: dict[str, Any] | None
  eval_fn: Callable[[PyTree], dict[str, float]] | None
  every: dict[str, int]  # steps between "log", "eval" and "save"
  keep_checkpoints: int
  progress: bool
  performance: PerformanceFlags
  facts: accounting.RunFacts

  def __call__(
    self, params: PyTree, feed: _feed.Feed, seeds: Seeds
  ) -> tuple[TrainState, History]:
    with (
      _release.alone(self.workdir),
      _faults.grace() as self._grace,
      _faults.explained_losses(),
    ):
      return self._train(params, feed, seeds)

  def _train(
    self, params: PyTree, feed: _feed.Feed, seeds: Seeds
  ) -> tuple[TrainState, History]:
    mechanism, mesh = self.step.mechanism, self.performance.mesh
    size = self._steps_per_call(feed)
    state = self.step.init(params, seeds.noise_key(0))
    state = _sharding.place(state, mesh)
    ledger = None if mechanism is None else mechanism.ledger()
    start = _resume.Start(0, state, seeds, ledger)
    program = functools.cache(
      lambda: _program.Program(self.step, start.state, feed, size)
    )
    self._fingerprint = functools.cache(
      lambda: _resume.fingerprint(
        program=program().digest,
        dataset=_feed.digest(feed.dataset),
        # A call of another length is another program.
        calls=[size, self.num_steps, self.every],
      )
    )
    self._is_main = jax.process_index() == 0
    self._checkpoints: _checkpoint.Checkpoints | None = None
    if self.workdir is not None:
      start = self._open(self.workdir, start, params)
    self._seeds, self._ledger = start.seeds, start.ledger
    incarnation = 0 if self._ledger is None else self._ledger.incarnation
    state = start.state
    if not start.is_replay:
      key = self._seeds.noise_key(incarnation)
      state = _resume.reseed(state, key, self.step.init)
    self._end = _budget.affordable_end(
      self._ledger, start.step, self.num_steps, self.delta, self.max_epsilon
    )
    if start.step == 0:
      # The seeds must outlive a crash of the first steps.
      self._write_ledger()
      self._save(state, _metrics.NO_ROWS)
    self._since_row = [0, 0.0]  # steps and seconds
    with (
      _metrics.Metrics(
        self.workdir if self._is_main else None,
        first_step=start.step,
        num_steps=self.num_steps,
        progress=self.progress and self._is_main,
        digest=start.rows_digest,
      ) as metrics,
      concurrent.futures.ThreadPoolExecutor(1) as self._accountant,
    ):
      plan = self._plan(start.step, size)
      for call in feed.calls(plan, self._seeds.sampler_seed(incarnation)):
        if self._grace.is_over():
          self._save(state, metrics.digest)
          self._grace.end(int(state.step), saved=self.workdir is not None)
        state = self._do(call, state, program(), metrics)
    history = self._finish(state, metrics.rows)
    if self._grace.signalled:
      self._grace.end(int(state.step), saved=self.workdir is not None)
    return state, history

  def _do(
    self,
    call: _feed.Call,
    state: TrainState,
    program: _program.Program,
    metrics: _metrics.Metrics,
  ) -> TrainState:
    """Charges, runs, reports and saves the steps of one call."""
    last = call.first_step + call.num_steps
    due = {
      name: last % every == 0 or last == self._end
      for name, every in self.every.items()
    }
    program.compile(state, call)
    if self._ledger is not None:
      self._ledger.charge(call.num_steps, first_step=call.first_step)
      self._write_ledger()
    # The accountant works while the device does.
    epsilon = None
    if due["log"] or due["eval"]:
      epsilon = self._accountant.submit(self._epsilon, last)
    begin = time.perf_counter()
    state, info = program(state, call)
    jax.block_until_ready(state)
    self._since_row[0] += call.num_steps
    self._since_row[1] += time.perf_counter() - begin
    metrics.advance(call.num_steps)
    if epsilon is not None:
      row = self._row(last, state, info, due["eval"], epsilon.result())
      metrics.write(row)
    if due["save"]:
      self._save(state, metrics.digest)
    return state

  def _epsilon(self, step: int) -> float | None:
    """Of all that is charged, which ends with this step."""
    if self._ledger is None or self.delta is None:
      return None
    discretization = _FINE if step == self._end else _COARSE
    return self._ledger.epsilon(self.delta, discretization=discretization)

  def _row(
    self,
    step: int,
    state: TrainState,
    info: StepInfo,
    evaluate: bool,
    epsilon: float | None,
  ) -> dict[str, Any]:
    """What may be shown of a step, and apart from it what is sensitive."""
    num_steps, seconds = self._since_row
    self._since_row = [0, 0.0]
    rate = num_steps * self.sampler.expected_num_examples / seconds
    row: dict[str, Any] = {"step": step, "examples_per_second": rate}
    if epsilon is not None:
      row["epsilon"] = epsilon
    if evaluate and self.eval_fn is not None:
      row.update(self.eval_fn(released_params(state)))
    row["update_norm"] = float(info.update_norm[-1])
    if info.sensitive is not None:
      row["sensitive"] = {
        name: np.mean(np.asarray(value), axis=0)
        for name, value in info.sensitive._asdict().items()
      }
    return row

  def _steps_per_call(self, feed: _feed.Feed) -> int:
    asked = self.performance.steps_per_call
    if asked != "auto":
      return min(asked, self.num_steps)
    # A divisor of every mark, so that one program serves nearly all calls.
    marks = self._marks()
    size = math.gcd(*marks) if marks else self.num_steps
    limit = min(256, feed.max_steps_per_call())
    return max(d for d in range(1, limit + 1) if size % d == 0)

  def _marks(self) -> list[int]:
    return [every for every in self.every.values() if every < self.num_steps]

  def _plan(self, first: int, size: int) -> list[tuple[int, int]]:
    """(first_step, num_steps) of every call: whole ones, cut where due."""
    plan = []
    while first < self._end:
      cuts = [every - first % every for every in self._marks()]
      plan.append((first, min(size, self._end - first, *cuts)))
      first += plan[-1][1]
    return plan

  # The run directory.

  def check_workdir(self, params: PyTree) -> None:
    """Raises if the run directory is that of another run."""
    if self.workdir is not None:
      _release.check_run_directory(self.workdir, self._record(params))

  def _record(self, params: PyTree) -> dict[str, Any]:
    """What ``config.json`` says."""
    config, mechanism = self.config, self.step.mechanism
    if config is None:
      shapes = jax.tree.map(
        lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}", params
      )
      config = {
        "mechanism": None if mechanism is None else mechanism.to_dict(),
        "sampler": self.sampler.to_dict(),
        "num_steps": self.num_steps,
        "delta": self.delta,
        "params": shapes,
      }
    return config

  def _open(
    self, workdir: pathlib.Path, start: _resume.Start, params: PyTree
  ) -> _resume.Start:
    """Checks that it is new, or holds this very run, and goes on with that."""
    config = self._record(params)
    _release.open_run_directory(workdir, config, write=self._is_main)
    self._checkpoints = _checkpoint.Checkpoints(
      workdir / "checkpoints", self.keep_checkpoints
    )
    return _resume.resume(
      start,
      self._checkpoints,
      workdir / "ledger.json",
      self.step.mechanism,
      self.num_steps,
      self._fingerprint,
    )

  def _write_ledger(self) -> None:
    if self._ledger is None or self.workdir is None or not self._is_main:
      return
    text = self._ledger.to_json() + "\n"
    _files.write_atomic(self.workdir / "ledger.json", text)

  def _save(self, state: TrainState, rows_digest: str) -> None:
    if self._checkpoints is None:
      return
    meta = {
      "fingerprint": self._fingerprint(),
      "incarnation": self._ledger.incarnation if self._ledger else 0,
      "seeds": self._seeds.to_json(),
      "ledger": None if self._ledger is None else self._ledger.to_json(),
      "rows": rows_digest,
    }
    self._checkpoints.save(int(state.step), state, meta)

  def _finish(self, state: TrainState, rows: list[dict[str, Any]]) -> History:
    statement = None
    mechanism = self.step.mechanism
    if self._ledger is not None and mechanism is not None:
      assert self.delta is not None
      statement = self._ledger.statement(
        self.delta,
        rule=repr(mechanism.rule),
        seed_policy="os" if self._seeds.named is None else "named",
        facts=self._facts(state, rows),
      )
    if self._checkpoints is not None:
      assert self.workdir is not None
      self._checkpoints.close()
      _release.write_release(
        self.workdir,
        released_params(state),
        statement,
        None if self._ledger is None else self._ledger.dp_event(),
        is_main=self._is_main,
      )
    return History(rows, self._ledger, statement, self._stopped)

  def _facts(
    self, state: TrainState, rows: list[dict[str, Any]]
  ) -> accounting.RunFacts:
    """Of all calls of the run: what an earlier one showed is in its rows."""
    shown = {name for row in rows for name in row}
    return dataclasses.replace(
      self.facts,
      evaluated=self.facts.evaluated or bool(shown - _OWN),
      diagnostics=self.facts.diagnostics or "sensitive" in shown,
      ended_by="max_epsilon" if self._stopped else "num_steps",
      release="last" if state.ema_params == () else "average",
    )

  @property
  def _stopped(self) -> bool:
    """Whether the budget allows fewer steps than were asked for."""
    return self._end < self.num_steps


def released_params(state: TrainState) -> PyTree:
  """The averaged parameters if there are any, else the last ones."""
  return state.params if state.ema_params == () else state.ema_params
