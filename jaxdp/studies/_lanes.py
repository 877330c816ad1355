"""Runs of one program side by side; where one ends, the next begins.

How many lie side by side is measured: a tiny model gains an order of magnitude,
one that fills the device gains nothing.
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jaxtyping import PyTree

from jaxdp import microbatch, noise
from jaxdp.mechanism import Mechanism
from jaxdp.studies._stream import Chunks, Numbers, Program, Reader, RunState

_SEGMENT = 32  # chunks a call; runs begin and end between calls
_WIDTHS = (1, 4, 16, 64, 256)
_WORTH = 1.15  # times the runs an hour; for less, fewer lanes do


class Job(NamedTuple):
  """A run, as a program takes it."""

  name: Any
  mechanism: Mechanism
  learning_rate: float
  num_steps: int
  seed: int  # of sampling and noise


class _Segment(NamedTuple):
  """A call of the program; jobs by lane."""

  begins: dict[int, Job]
  chunks: Chunks
  ends: dict[int, Job]


class Lanes:
  """Makes runs.

  Args:
    program: of all of them.
    data: arrays with a row an example; they stay on the device.
    make_params: initial parameters of a job.
    size: rows of a chunk.
    width: how many runs lie side by side.
  """

  def __init__(
    self,
    program: Program,
    data: PyTree,
    make_params: Callable[[Job], PyTree],
    size: int,
    width: int,
  ):
    self._data, self._make_params = data, make_params
    self._size, self.width = size, width
    self._init = jax.jit(program.init)
    self._advance = jax.jit(_side_by_side(program, width), donate_argnums=0)
    self._put = jax.jit(
      lambda every, i, one: jax.tree.map(
        lambda x, y: x.at[i].set(y), every, one
      ),
      donate_argnums=0,
    )

  def __call__(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, RunState]]:
    """Each job with its last state, as they end."""
    state: Any = None
    numbers: Any = None
    for segment in _ahead(self._segments(iter(jobs))):
      for lane, job in segment.begins.items():
        mine, one = self._begin(job)
        if state is None:
          state, numbers = jax.tree.map(
            lambda x: np.stack([x] * self.width), (one, mine)
          )
        numbers = jax.tree.map(functools.partial(_with, lane), numbers, mine)
        state = self._put(state, lane, one)
      state = self._advance(state, numbers, self._data, segment.chunks)
      for lane, job in segment.ends.items():
        yield job, _take(state, lane)

  def _segments(self, jobs: Iterator[Job]) -> Iterator["_Segment"]:
    """Which job lies where, and when: known before anything runs."""
    lanes: list[tuple[Job, Reader] | None] = [None] * self.width
    while True:
      begins = {}
      for lane, place in enumerate(lanes):
        if place is None and (job := next(jobs, None)) is not None:
          begins[lane] = job
          lanes[lane] = job, self._reader(job)
      if not any(lanes):
        return
      chunks = self._read(lanes)
      ends = {
        lane: place[0]
        for lane, place in enumerate(lanes)
        if place is not None and place[1].done
      }
      for lane in ends:
        lanes[lane] = None
      yield _Segment(begins, chunks, ends)

  def seconds(self, jobs: Sequence[Job]) -> float:
    """How long a segment takes, all lanes at work; inf if it does not fit."""
    jobs = list(itertools.islice(itertools.cycle(jobs), self.width))
    begun = [self._begin(job) for job in jobs]
    numbers, state = jax.tree.map(lambda *x: np.stack(x), *begun)
    chunks = self._read([(job, self._reader(job)) for job in jobs])
    args = (state, numbers, self._data, chunks)
    memory = self._advance.lower(*args).compile().memory_analysis()
    if memory is not None:
      needed = memory.temp_size_in_bytes + memory.output_size_in_bytes
      if needed > microbatch.memory_budget():
        return float("inf")
    state = jax.block_until_ready(self._advance(*args))
    times = []
    for _ in range(3):
      start = time.perf_counter()
      state = jax.block_until_ready(self._advance(state, *args[1:]))
      times.append(time.perf_counter() - start)
    return float(np.median(times))

  def _begin(self, job: Job) -> tuple[Numbers, RunState]:
    numbers = Numbers.of(job.mechanism, job.learning_rate, self._size)
    key = noise.make_key(job.seed)
    return numbers, self._init(numbers, self._make_params(job), key)

  def _reader(self, job: Job) -> Reader:
    return Reader(job.mechanism.sampler, job.seed, job.num_steps, self._size)

  def _read(self, lanes: Sequence[tuple[Job, Reader] | None]) -> Chunks:
    """A segment of every lane."""
    idle = Chunks.idle(_SEGMENT, self._size)
    parts = [idle if lane is None else lane[1].read(_SEGMENT) for lane in lanes]
    return Chunks(*map(np.stack, zip(*parts, strict=True)))


def best(make: Callable[[int], Lanes], jobs: Sequence[Job]) -> Lanes:
  """The lanes that make most runs an hour, of as many as there are jobs.

  Args:
    make: lanes of a width.
    jobs: some that they would make.
  """
  rates: dict[int, float] = {}
  for width in _WIDTHS:
    if width > max(len(jobs), 1):
      break
    rates[width] = width / make(width).seconds(jobs)
    logging.info("%d runs side by side: %.4g segments/s", width, rates[width])
    if rates[width] < max(rates.values()) / _WORTH:
      break
  enough = max(rates.values()) / _WORTH
  return make(min(width for width, rate in rates.items() if rate >= enough))


def _side_by_side(program: Program, width: int) -> Callable[..., RunState]:
  """One run alone is no batch of one: a release is then no mere selection."""
  if width > 1:
    return jax.vmap(program.advance, in_axes=(0, 0, None, 0))

  def alone(state: Any, numbers: Any, data: PyTree, chunks: Any) -> RunState:
    state, numbers, chunks = _take((state, numbers, chunks), 0)
    state = program.advance(state, numbers, data, chunks)
    return jax.tree.map(lambda x: x[None], state)

  return alone


def _ahead(segments: Iterator[_Segment]) -> Iterator[_Segment]:
  """The same, each drawn by a thread while the one before runs."""
  with ThreadPoolExecutor(1) as thread:
    future = thread.submit(next, segments, None)
    while (segment := future.result()) is not None:
      future = thread.submit(next, segments, None)
      yield segment


def _take(tree: Any, place: int) -> Any:
  return jax.tree.map(lambda x: x[place], tree)


def _with(place: int, values: np.ndarray, value: Any) -> np.ndarray:
  values = values.copy()
  values[place] = value
  return values
