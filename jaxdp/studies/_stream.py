"""Training as a stream of chunks, in which batch size and length are data.

The batches of a run are cut into chunks of one size, and the last of each batch
says so. A program that takes chunks adds up clipped sums, and releases where a
batch ends. So runs of any batch size, any number of steps, any learning rate,
noise and clip norm share one program, and lie side by side under ``vmap``;
chunks that hold nothing change nothing. Each step is that of ``jaxdp.fit``, to
rounding: the same rows, the same noise.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from jaxdp import per_example
from jaxdp.aggregation import ClippedSum, clipped_sum
from jaxdp.clipping import assign_groups
from jaxdp.mechanism import Mechanism, MechanismState
from jaxdp.sampling import Poisson, Sampler


class Chunks(NamedTuple):
  """Some consecutive chunks of a run."""

  rows: Any  # int32 [chunks, size]; padding holds 0
  is_padding_example: Any  # bool [chunks, size]
  ends_batch: Any  # bool [chunks]

  @classmethod
  def of_batch(cls, rows: np.ndarray, size: int) -> "Chunks":
    """One batch; an empty one is a chunk of padding."""
    count = max(1, -(-len(rows) // size))
    padded = np.zeros(count * size, np.int32)
    padded[: len(rows)] = rows
    return cls(
      padded.reshape(count, size),
      (np.arange(count * size) >= len(rows)).reshape(count, size),
      np.arange(count) == count - 1,
    )

  @classmethod
  def idle(cls, count: int, size: int) -> "Chunks":
    """Chunks that change nothing."""
    return cls(
      np.zeros((count, size), np.int32),
      np.ones((count, size), bool),
      np.zeros(count, bool),
    )


class Reader:
  """The chunks of a run, in order.

  Args:
    sampler: draws the batches.
    seed: of the draws.
    num_steps: how many batches.
    size: rows of a chunk.
  """

  def __init__(self, sampler: Sampler, seed: int, num_steps: int, size: int):
    self._sampler, self._seed, self._size = sampler, seed, size
    self._left = range(num_steps)
    self._parts: list[Chunks] = []
    self._drawn = 0

  @property
  def done(self) -> bool:
    """Whether all chunks were read."""
    return not self._left and not self._drawn

  def read(self, count: int) -> Chunks:
    """The next ``count`` chunks; idle ones after the last."""
    while self._drawn < count:
      more = (
        self._draw()
        if self._left
        else Chunks.idle(count - self._drawn, self._size)
      )
      self._parts.append(more)
      self._drawn += len(more.ends_batch)
    every = Chunks(*map(np.concatenate, zip(*self._parts, strict=True)))
    self._drawn -= count
    self._parts = [Chunks(*(x[count:] for x in every))] if self._drawn else []
    return Chunks(*(x[:count] for x in every))

  def _draw(self) -> Chunks:
    step, self._left = self._left[0], self._left[1:]
    batch = self._sampler.sample(self._seed, step)
    rows = batch.indices[~batch.is_padding_example]
    return Chunks.of_batch(rows, self._size)


class Numbers(NamedTuple):
  """What runs of one program may differ in. Leaves are arrays."""

  mechanism: Mechanism  # as ``shared`` makes it
  expected_num_units: Array  # the public divisor
  learning_rate: Array

  @classmethod
  def of(
    cls, mechanism: Mechanism, learning_rate: float, size: int
  ) -> "Numbers":
    """Those of a run, for chunks of ``size``."""
    numbers = cls(
      shared(mechanism, size),
      mechanism.sampler.expected_num_units,  # type: ignore[arg-type]
      learning_rate,  # type: ignore[arg-type]
    )
    return jax.tree.map(lambda x: np.asarray(x, np.float32), numbers)


def shared(mechanism: Mechanism, size: int) -> Mechanism:
  """The mechanism with a sampler that is the same for all batch sizes.

  The sensitivity of a Poisson sampler depends on the relation alone; what does
  depend on the batch size, ``Numbers.expected_num_units`` states.

  Raises:
    ValueError: of a sampler that is not ``Poisson``.
  """
  sampler = mechanism.sampler
  if not isinstance(sampler, Poisson):
    raise ValueError(
      f"Runs of many batch sizes are drawn by Poisson sampling, got {sampler}. "
      'Use config.sampler.name = "Poisson".'
    )
  if mechanism.rule.needs_public_norms:
    raise ValueError(
      f"{type(mechanism.rule).__name__} follows public data, which a survey "
      "has not. Compare it as an arm (configs/studies/batch_clipping.py)."
    )
  return mechanism.replace(
    sampler=Poisson(
      num_examples=max(sampler.num_examples, size),
      expected_batch_size=1,
      max_batch_size=size,
    )
  )


class RunState(NamedTuple):
  """Where a run is. *Sensitive*: the key, and what is not released yet."""

  params: PyTree
  opt_state: optax.OptState
  mechanism_state: MechanismState
  partial: Any  # (grads, statistic): the clipped sum so far of the batch


@dataclasses.dataclass(frozen=True)
class Program:
  """One training program for all runs that differ in ``Numbers`` alone.

  Attributes:
    loss_fn: for one example.
    make_optimizer: from a learning rate.
    method: engine, see ``jaxdp.per_example_grads``.
  """

  loss_fn: Callable
  make_optimizer: Callable[[Any], optax.GradientTransformation]
  method: per_example.Method = "auto"

  def init(self, numbers: Numbers, params: PyTree, key: Array) -> RunState:
    """A run before its first step; ``key`` is for its noise alone."""
    optimizer = self.make_optimizer(numbers.learning_rate)
    mechanism_state = numbers.mechanism.init(params, key)
    groups = assign_groups(numbers.mechanism.rule, params).names
    num_statistics = len(mechanism_state.stddev) - len(groups)
    partial = (
      jax.tree.map(
        lambda x: jnp.zeros(x.shape, jnp.promote_types(x, jnp.float32)), params
      ),
      jnp.zeros(num_statistics, jnp.float32),
    )
    return RunState(params, optimizer.init(params), mechanism_state, partial)

  def advance(
    self, state: RunState, numbers: Numbers, data: PyTree, chunks: Chunks
  ) -> RunState:
    """Takes some chunks."""
    clip = clipped_sum(self.loss_fn, numbers.mechanism.rule, self.method)

    def body(state: RunState, chunk: Chunks) -> tuple[RunState, None]:
      batch = jax.tree.map(lambda x: x[chunk.rows], data)
      summed, _ = clip(
        state.params,
        batch,
        chunk.is_padding_example,
        state.mechanism_state.rule_state,
      )
      grads, statistic = jax.tree.map(
        jnp.add, state.partial, (summed.grads, summed.statistic)
      )
      summed = dataclasses.replace(summed, grads=grads, statistic=statistic)
      state = state._replace(partial=(grads, statistic))
      return jax.lax.cond(
        chunk.ends_batch,
        lambda: self._release(state, numbers, summed),
        lambda: state,
      ), None

    return jax.lax.scan(body, state, chunks)[0]

  def _release(
    self, state: RunState, numbers: Numbers, summed: ClippedSum
  ) -> RunState:
    mechanism, units = numbers.mechanism, numbers.expected_num_units
    mean, mechanism_state = mechanism.release(
      summed, state.mechanism_state, expected_num_units=units
    )
    stddev = jax.tree.map(
      lambda x: x / units,  # the shared sampler expects one unit
      mechanism.noise_stddev(mechanism_state, state.params),
    )
    optimizer = optax.with_extra_args_support(
      self.make_optimizer(numbers.learning_rate)
    )
    updates, opt_state = optimizer.update(
      mean, state.opt_state, state.params, noise_stddev=stddev
    )
    return RunState(
      optax.apply_updates(state.params, updates),
      opt_state,
      mechanism_state,
      jax.tree.map(jnp.zeros_like, state.partial),
    )
