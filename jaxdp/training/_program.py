"""The compiled program of a run: several steps in one ``lax.scan``."""

import functools
import hashlib
from typing import Any

import jax
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

    mesh = feed.mesh
    kept = None if mesh is None else jax.tree.map(lambda x: x.sharding, state)
    jitted = jax.jit(scan, donate_argnums=0, out_shardings=(kept, None))
    self._data = feed.data
    self._lowered = jitted.lower(state, feed.data, *feed.shapes(num_steps))
    self._jitted = jitted
    self._compiled: dict[int, Any] = {}
    self._num_steps = num_steps

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
      lowered = self._jitted.lower(state, self._data, call.rows, call.mask)
    self._compiled[call.num_steps] = lowered.compile()

  def __call__(
    self, state: TrainState, call: _feed.Call
  ) -> tuple[TrainState, StepInfo]:
    """The state after a call, and what its steps report; ``state`` is gone."""
    self.compile(state, call)
    compiled = self._compiled[call.num_steps]
    result: tuple[TrainState, StepInfo] = compiled(
      state, self._data, call.rows, call.mask
    )
    return result
