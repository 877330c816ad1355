"""One run of ``fit``: resume, then for every call charge, run, report, save."""

import bisect
import dataclasses
import logging
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from jaxdp import accounting, per_example
from jaxdp.sampling import Sampler
from jaxdp.training import (
  _checkpoint,
  _feed,
  _files,
  _metrics,
  _release,
  _sharding,
)
from jaxdp.training._seeds import Seeds
from jaxdp.training._step import TrainState, TrainStep

_LOG = logging.getLogger("jaxdp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerformanceFlags:
  """Knobs that move time and memory, and never epsilon or a result.

  Attributes:
    method: engine of the per-example gradients.
    microbatch_size: see ``jaxdp.clipped_sum``.
    steps_per_call: steps in one compiled ``lax.scan``; "auto" chooses.
    data_on_device: keep the data set on the device; "auto" if it fits.
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
  every: dict[str, int]
  keep_checkpoints: int
  progress: bool
  performance: PerformanceFlags

  def __call__(
    self, params: PyTree, dataset: PyTree, seeds: Seeds
  ) -> tuple[TrainState, History]:
    mechanism = self.step.mechanism
    self._ledger = None if mechanism is None else mechanism.ledger()
    self._is_main = jax.process_index() == 0
    self._checkpoints = None
    self._fingerprint = _checkpoint.fingerprint(
      microbatch_size=self.performance.microbatch_size,
      method=self.performance.method,
      mesh=str(self.performance.mesh),
    )
    mesh = self.performance.mesh
    state = self.step.init(params, seeds.noise_key(0))
    state = _sharding.place(state, mesh)
    if self.workdir is not None:
      self._open_workdir(params)
      directory = self.workdir / "checkpoints"
      self._checkpoints = _checkpoint.Checkpoints(
        directory, self.keep_checkpoints
      )
      state, seeds = self._resume(state, seeds)
    self._seeds = seeds
    first = int(state.step)
    end = self._affordable_end(first)
    feed = _feed.Feed(
      dataset,
      self.sampler,
      seeds.sampler_seed(self._ledger.incarnation if self._ledger else 0),
      mesh,
      None
      if self.performance.data_on_device == "auto"
      else self.performance.data_on_device,
    )
    if self._checkpoints is not None and first == 0:
      self._save(state)  # the seeds must outlive a crash of the first steps
    with _metrics.Metrics(
      self.workdir if self._is_main else None,
      first_step=first,
      num_steps=self.num_steps,
      progress=self.progress and self._is_main,
    ) as metrics:
      for call in feed.calls(self._plan(first, end, feed)):
        state = self._do(call, state, feed.data, metrics)
      rows = metrics.rows
    return state, self._finish(state, rows, end < self.num_steps)

  def _do(
    self, call: _feed.Call, state: TrainState, data: PyTree, metrics: Any
  ) -> TrainState:
    """Charges, runs and reports the steps of one call."""
    last = call.first_step + call.num_steps
    self._charge(call)
    start = time.perf_counter()
    state, info = self._scan(state, data, call.rows, call.mask)
    jax.block_until_ready(state)
    seconds = time.perf_counter() - start
    metrics.advance(call.num_steps)
    due = {
      name: last % every == 0 or last == self.num_steps
      for name, every in self.every.items()
    }
    if due["log"] or due["eval"]:
      rate = call.num_steps * self.sampler.expected_num_units / seconds
      row: dict[str, Any] = {"step": last, "examples_per_second": rate}
      if self._ledger is not None and self.delta is not None:
        row["epsilon"] = self._ledger.epsilon(self.delta)
      if due["eval"] and self.eval_fn is not None:
        row.update(self.eval_fn(released_params(state)))
      row["update_norm"] = float(info.update_norm[-1])
      if info.sensitive is not None:
        row["sensitive"] = {
          name: np.mean(np.asarray(value), axis=0)
          for name, value in info.sensitive._asdict().items()
        }
      metrics.write(row)
      metrics.show(
        **{
          name: f"{row[name]:.3g}"
          for name in ("epsilon", "test_accuracy", "examples_per_second")
          if isinstance(row.get(name), float)
        }
      )
    if due["save"] and self._checkpoints is not None:
      self._save(state)
    return state

  @property
  def _scan(self) -> Callable:
    """Several steps in one program; compiled once a length."""
    if not hasattr(self, "_compiled"):

      def scan(state: TrainState, data: PyTree, rows: PyTree, mask: Any) -> Any:
        return jax.lax.scan(
          lambda s, x: self.step.run(s, data, *x), state, (rows, mask)
        )

      self._compiled = jax.jit(scan, donate_argnums=0)
    return self._compiled

  def _plan(
    self, first: int, end: int, feed: _feed.Feed
  ) -> list[tuple[int, int]]:
    """(first_step, num_steps) of every call: whole ones, cut where due."""
    marks = [every for every in self.every.values() if every < self.num_steps]
    asked = self.performance.steps_per_call
    if asked == "auto":
      # A divisor of every mark, so that one program serves nearly all calls.
      size = math.gcd(*marks) if marks else self.num_steps
      limit = min(128, feed.max_steps_per_call())
      size = max(d for d in range(1, limit + 1) if size % d == 0)
    else:
      size = asked
    plan = []
    while first < end:
      cuts = [every - first % every for every in marks]
      plan.append((first, min(size, end - first, *cuts)))
      first += plan[-1][1]
    return plan

  # The budget.

  def _charge(self, call: _feed.Call) -> None:
    """Charges the steps of a call, on disk, before they run."""
    if self._ledger is None:
      return
    self._ledger.charge(call.num_steps, first_step=call.first_step)
    if self.workdir is not None and self._is_main:
      text = self._ledger.to_json() + "\n"
      _files.write_atomic(self.workdir / "ledger.json", text)

  def _affordable_end(self, first: int) -> int:
    """The last step that ``max_epsilon`` allows."""
    ledger, limit, delta = self._ledger, self.max_epsilon, self.delta
    if ledger is None or limit is None or delta is None:
      return self.num_steps
    free = max(ledger.next_step, first)  # charged already

    def fits(more: int) -> bool:
      return ledger.epsilon(delta, extra_steps=more) <= limit

    if fits(self.num_steps - free):
      return self.num_steps
    # bisect finds the first number of further steps that does not fit.
    more = bisect.bisect_left(
      range(self.num_steps - free + 1), True, key=lambda n: not fits(n)
    )
    end = free + max(more - 1, 0)
    if end == 0:
      raise ValueError(
        f"Not one step fits max_epsilon={self.max_epsilon} at delta="
        f"{self.delta}. Use more noise: jaxdp.calibrate_noise(mechanism, "
        f"target_epsilon={self.max_epsilon}, target_delta={self.delta}, "
        f"num_steps={self.num_steps})."
      )
    _LOG.warning(
      "max_epsilon=%g is reached after step %d of %d: the run stops there.",
      self.max_epsilon,
      end,
      self.num_steps,
    )
    return end

  # The run directory.

  def _open_workdir(self, params: PyTree) -> None:
    """Checks that the workdir is new, or holds this very run."""
    assert self.workdir is not None
    config = self.config
    if config is None:
      shapes = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", params)
      mechanism = self.step.mechanism
      config = {
        "mechanism": None if mechanism is None else mechanism.to_dict(),
        "sampler": self.sampler.to_dict(),
        "num_steps": self.num_steps,
        "delta": self.delta,
        "params": shapes,
      }
    _release.open_run_directory(self.workdir, config, write=self._is_main)

  def _resume(
    self, state: TrainState, seeds: Seeds
  ) -> tuple[TrainState, Seeds]:
    """State and seeds of the last checkpoint; decides if it is a replay."""
    assert self.workdir is not None
    assert self._checkpoints is not None
    restored = self._checkpoints.restore(state)
    path = self.workdir / "ledger.json"
    ledger = self._ledger
    mechanism = self.step.mechanism
    if ledger is not None and mechanism is not None and path.exists():
      ledger = type(ledger).from_json(path.read_text())
      ledger.check(mechanism)
      self._ledger = ledger
    if restored is None:
      if ledger is not None and ledger.num_steps:
        raise ValueError(
          f"{self.workdir} has a ledger of {ledger.num_steps} charged steps "
          "and no checkpoint. Those steps have been spent; start anew in "
          "another workdir."
        )
      return state, seeds
    step, state, meta = restored
    seeds = Seeds.from_json(meta["seeds"])
    if ledger is None:
      return state, seeds
    same = (
      meta["fingerprint"] == _files.plain(self._fingerprint)
      and meta["incarnation"] == ledger.incarnation
    )
    lost = ledger.next_step - step
    if same or lost <= 0:
      _LOG.info("Resuming at step %d, as a replay.", step)
      return state, seeds
    # Other rounding would make the lost steps a second release of the same
    # noise: fresh keys, fresh batches, and another charge.
    ledger.begin_incarnation(step)
    _LOG.warning(
      "Resuming at step %d in another environment: %d lost steps are made with "
      "fresh randomness and charged again.",
      step,
      lost,
    )
    return self._reseed(state, seeds, ledger.incarnation), seeds

  def _reseed(
    self, state: TrainState, seeds: Seeds, incarnation: int
  ) -> TrainState:
    fresh = self.step.init(state.params, seeds.noise_key(incarnation))
    keys = _sharding.place(
      (fresh.mechanism_state.key, fresh.example_key), self.performance.mesh
    )
    mechanism_state = state.mechanism_state._replace(key=keys[0])
    return state._replace(mechanism_state=mechanism_state, example_key=keys[1])

  def _save(self, state: TrainState) -> None:
    assert self._checkpoints is not None
    self._checkpoints.save(
      int(state.step),
      state,
      {
        "fingerprint": _files.plain(self._fingerprint),
        "incarnation": self._ledger.incarnation if self._ledger else 0,
        "seeds": self._seeds.to_json(),
        "ledger": None if self._ledger is None else self._ledger.to_json(),
      },
    )

  def _finish(
    self, state: TrainState, rows: list[dict[str, Any]], stopped: bool
  ) -> History:
    statement = None
    mechanism = self.step.mechanism
    if self._ledger is not None and mechanism is not None:
      assert self.delta is not None
      statement = self._ledger.statement(
        self.delta,
        rule=repr(mechanism.rule),
        seed_policy="os" if self._seeds.named is None else "named",
      )
    if self._checkpoints is not None:
      assert self.workdir is not None
      if int(state.step) % self.every["save"] and stopped:
        self._save(state)
      self._checkpoints.close()
      _release.write_release(
        self.workdir,
        released_params(state),
        statement,
        None if self._ledger is None else self._ledger.dp_event(),
        is_main=self._is_main,
      )
    return History(rows, self._ledger, statement, stopped)


def released_params(state: TrainState) -> PyTree:
  """The averaged parameters if there are any, else the last ones."""
  return state.params if state.ema_params == () else state.ema_params
