"""The compiled program of a run: several steps in one ``lax.scan``.

Or one step a program, where a scan would be slower (``_slow_in_a_loop``).
"""

import functools
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jaxdp.training import _feed
from jaxdp.training._step import StepInfo, TrainState, TrainStep


class Program:
  """Runs the calls of a feed; compiled once for every number of steps.

  Args:
    step: what one step is.
    state: of the run's structure, shapes, dtypes and sharding.
    feed: the data, and the shapes of calls.
    num_steps: of the usual call.
  """

  def __init__(
    self, step: TrainStep, state: TrainState, feed: _feed.Feed, num_steps: int
  ):
    def scan(state: TrainState, data: PyTree, rows: PyTree, mask: Any) -> Any:
      return jax.lax.scan(
        lambda state, x: step.run(state, data, *x), state, (rows, mask)
      )

    def single(
      state: TrainState, data: PyTree, rows: PyTree, mask: Any, i: Any
    ) -> Any:
      rows, mask = jax.tree.map(lambda x: x[i], (rows, mask))
      return step.run(state, data, rows, mask)

    mesh = feed.mesh
    kept = None if mesh is None else jax.tree.map(lambda x: x.sharding, state)

    def lower(fun: Callable, *args: Any) -> tuple[Any, Any]:
      jitted = jax.jit(fun, donate_argnums=0, out_shardings=(kept, None))
      return jitted, jitted.lower(state, feed.data, *args)

    shapes = feed.shapes(num_steps)
    self._data = feed.data
    self._num_steps = num_steps
    self._jitted, self._lowered = lower(scan, *shapes)
    self._scans = not _slow_in_a_loop(self._lowered)
    if not self._scans:
      self._jitted, self._lowered = lower(single, *shapes, np.int32(0))
    self._compiled: dict[int, Any] = {}

  @functools.cached_property
  def digest(self) -> str:
    """Of the program's text: the loss, the optimizer and all their numbers."""
    return hashlib.sha256(self._lowered.as_text().encode()).hexdigest()

  def compile(self, state: TrainState, call: _feed.Call) -> None:
    """Makes the program for calls of this length, if it was not yet made."""
    if call.num_steps in self._compiled:
      return
    lowered = self._lowered
    if call.num_steps != self._num_steps:
      more = () if self._scans else (np.int32(0),)
      lowered = self._jitted.lower(
        state, self._data, call.rows, call.mask, *more
      )
    self._compiled[call.num_steps] = lowered.compile()

  def __call__(
    self, state: TrainState, call: _feed.Call
  ) -> tuple[TrainState, StepInfo]:
    """The state after a call, and what its steps report; ``state`` is gone."""
    self.compile(state, call)
    compiled = self._compiled[call.num_steps]
    args = (self._data, call.rows, call.mask)
    if self._scans:
      result: tuple[TrainState, StepInfo] = compiled(state, *args)
      return result
    infos = []
    for i in range(call.num_steps):
      state, info = compiled(state, *args, np.int32(i))
      infos.append(info)
    return state, jax.tree.map(lambda *x: np.stack(x), *infos)


def _slow_in_a_loop(lowered: Any) -> bool:
  """Whether a program's steps run faster one by one than in a loop.

  On a CPU XLA prepares convolutions for its fast library in a program's outer
  computation only. Those of a backward pass take 5 to 15 times as long in the
  body of a loop.
  """
  on_cpu = jax.default_backend() == "cpu"
  return on_cpu and "stablehlo.convolution" in lowered.as_text()
