"""Thousands of short runs of a whole mechanism, and what they tell of a canary.

Every trial is ``make_train_step`` as it is, from a key of its own: gradients,
clip, sum, noise, rule state. Trials are one program, vmapped; batches are drawn
by the mechanism's sampler, on the host. The canary lies in gradient space: the
loss is linear, so that gradients are what the data set says, and the canary's
is larger than any clip norm. The score is the logarithm of the likelihood
ratio: nobody does better who knows all but the noise and who was sampled.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree
from scipy import special

from jaxdp import noise, units
from jaxdp.audit import _neighbours, _recorded
from jaxdp.clipping import assign_groups
from jaxdp.mechanism import Mechanism
from jaxdp.public_batch import PublicBatch
from jaxdp.sampling import Batch, NeighboringRelation, Sampler
from jaxdp.training import make_train_step

_CHUNK = 2500  # trials in memory at a time
_CANARY, _OTHERS = 1e6, 1e3
# Two layers, of which one has two tensors.
_PARAMS = {
  "body": {"bias": np.zeros(1), "kernel": np.zeros(2)},
  "head": {"kernel": np.zeros(2)},
}


class Scores(NamedTuple):
  """Of independent trials, larger where the canary is the likelier."""

  with_canary: Float[np.ndarray, " trials"]
  without_canary: Float[np.ndarray, " trials"]


def linear_loss(params: PyTree, example: PyTree) -> Float[Array, ""]:
  """The loss whose gradient is the example.

  >>> print(jax.grad(linear_loss)(jnp.zeros(2), jnp.array([3.0, 4.0])))
  [3. 4.]
  """
  products = jax.tree.map(lambda p, x: jnp.sum(p * x), params, example)
  return sum(jax.tree.leaves(products), jnp.zeros(()))


def scores(
  mechanism: Mechanism,
  *,
  num_steps: int,
  trials: int,
  seed: int,
  loss_fn: Callable | None = None,
  params: PyTree | None = None,
  with_canary: tuple[bool, bool] = (True, False),
  **options: Any,
) -> Scores:
  """Scores of trials on neighbouring data sets.

  Args:
    mechanism: any, with noise.
    num_steps: of a trial.
    trials: on each side.
    seed: of samplers and noise.
    loss_fn: made of ``linear_loss``; None for it, or for its mean over the
      records of a unit where the sampler has such units.
    params: whose gradients they are; None for five numbers in two layers.
    with_canary: of the two sides; both alike for a test that must find nothing.
    **options: of ``make_train_step``.
  """
  sampler, relation = mechanism.sampler, mechanism.relation
  params = jax.tree.map(jnp.float32, _PARAMS if params is None else params)
  run = _runner(mechanism, loss_fn, params, options)
  dataset = _dataset(sampler, params)
  seeds = np.random.SeedSequence(seed).generate_state(5, np.uint64)
  stride = _stride(sampler, num_steps)

  def batches(present: bool, seed: int, first: int, count: int) -> Batch:
    steps = [
      _neighbours.draw(sampler, relation, present, seed, i * stride, num_steps)
      for i in range(first, first + count)
    ]
    return Batch(*(np.stack(field) for field in zip(*steps, strict=True)))

  sigma = mechanism.sigma
  count = min(_CHUNK, trials)
  reference = _reference(
    sampler, relation, batches(True, int(seeds[4]), 0, count)
  )
  keys = _keys(int(seeds[4]), count)
  _, stddev = run(sigma, keys, dataset, reference)
  sums, _ = run(0.0, keys, dataset, reference)
  effects = sums[:3, 0] / stddev[0, 0]
  result = []
  for side, present in enumerate(with_canary):
    parts = []
    keys = _keys(int(seeds[2 + side]), math.ceil(trials / count) * count)
    for first in range(0, trials, count):
      chunk = batches(present, int(seeds[side]), first, count)
      where = slice(first, first + count)
      released, stddev = run(sigma, keys[where], dataset, chunk)
      parts.append(_log_ratio(sampler, released / stddev, effects))
    result.append(np.concatenate(parts)[:trials])
  return Scores(*result)


def _keys(seed: int, count: int) -> Array:
  return jax.random.split(noise.make_key(seed), count)


def _dataset(sampler: Sampler, params: PyTree) -> PyTree:
  """The canary, the others, and what replaces the canary: one row each."""
  rows = np.zeros(sampler.num_examples + 1, np.float32)
  rows[0], rows[-1] = _CANARY, -_CANARY
  if sampler.unit_shape:
    # A unit of several records: the others pull it the other way.
    rows[1:-1] = -_OTHERS
  # One coordinate a leaf, so that every group has its share.
  return jax.tree.map(lambda p: np.multiply.outer(rows, _first(p)), params)


def _first(x: Array) -> np.ndarray:
  return (np.arange(x.size) == 0).astype(np.float32).reshape(x.shape)


def _runner(
  mechanism: Mechanism,
  loss_fn: Callable | None,
  params: PyTree,
  options: dict[str, Any],
) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
  """(sigma, keys, data, batches) -> what was released, and its stddev.

  Both have axes [trial, step, coordinate].
  """
  if loss_fn is None:
    loss_fn = linear_loss
    if mechanism.sampler.unit_shape:
      loss_fn = units.mean_over_records(linear_loss)
  if mechanism.rule.needs_public_norms and "public_batch" not in options:
    # Layers of different norms, as they are in practice.
    leaves, treedef = jax.tree.flatten(params)
    rows = [(i + 1) * _first(x)[None] for i, x in enumerate(leaves)]
    public = PublicBatch(jax.tree.unflatten(treedef, rows), every=1)
    options = {**options, "public_batch": public}
  recorded = mechanism.replace(rule=_recorded.Recorded(mechanism.rule))
  num_units = mechanism.sampler.expected_num_units
  groups = assign_groups(mechanism.rule, params).of_leaf
  of_coordinate = np.repeat(groups, [x.size for x in jax.tree.leaves(params)])

  def released(state: Any) -> tuple[Array, Array]:
    stddev = state.mechanism_state.stddev
    statistic = state.mechanism_state.rule_state.statistic
    mean = [x.ravel() for x in jax.tree.leaves(state.opt_state)]
    last = stddev[len(stddev) - len(statistic) :]
    return (
      jnp.concatenate([*mean, statistic]) * num_units,
      jnp.concatenate([stddev[of_coordinate], last]),
    )

  def trial(
    sigma: Array, key: Array, data: PyTree, rows: Any, mask: Any
  ) -> Any:
    step = make_train_step(
      loss_fn,
      recorded.replace(noise_multiplier=sigma),
      _recorded.record_mean(),
      **options,
    )

    def body(state: Any, batch: Any) -> Any:
      state, _ = step.run(state, data, *batch)
      return state, released(state)

    return jax.lax.scan(body, step.init(params, key), (rows, mask))[1]

  many = jax.jit(jax.vmap(trial, (None, 0, None, 0, 0)))

  def run(sigma: float, keys: Array, data: PyTree, batch: Batch) -> Any:
    result = many(jnp.float32(sigma), keys, data, *map(jnp.asarray, batch))
    return jax.tree.map(lambda x: np.asarray(x, np.float64), result)

  return run


def _reference(
  sampler: Sampler, relation: NeighboringRelation, probe: Batch
) -> Batch:
  """Batches that begin with three cases of one batch that has the canary.

  Without the canary, with it, and with what its neighbour has in its place.
  """
  there = (probe.indices == 0) & ~probe.is_padding_example
  found = np.argwhere(there.any(axis=tuple(range(2, there.ndim))))
  if not len(found):
    raise ValueError(
      f"The canary was in none of {len(there)} trials' batches. Sample it more "
      "often: fewer num_examples, or a larger batch."
    )
  trial, step = found[0]
  with_canary = Batch(*(field[trial, step] for field in probe))
  without = Batch(
    with_canary.indices,
    with_canary.is_padding_example | there[trial, step],
  )
  neighbour = without
  if relation == NeighboringRelation.REPLACE_ONE:
    indices = _neighbours.replaced(sampler, with_canary)
    neighbour = with_canary._replace(indices=indices)
  result = Batch(*(np.array(field) for field in probe))
  for case, rows in enumerate((without, with_canary, neighbour)):
    for field, row in zip(result, rows, strict=True):
      field[case, 0] = row
  return result


def _log_ratio(
  sampler: Sampler, released: np.ndarray, effects: np.ndarray
) -> np.ndarray:
  """Log likelihood, with the canary over with its neighbour; all by stddev."""
  without, canary, neighbour = effects

  def log_likelihood(present: np.ndarray) -> np.ndarray:
    shift = present - without
    gain = (released - without) @ shift - shift @ shift / 2
    return _sampled(sampler, gain)

  return log_likelihood(canary) - log_likelihood(neighbour)


def _sampled(sampler: Sampler, gain: np.ndarray) -> np.ndarray:
  """Log likelihood of [trial, step], from its gain in steps that have a row."""
  epoch = getattr(sampler, "batches_per_epoch", None)
  if epoch is not None:
    # In one step of every epoch; those that did not run tell nothing.
    rest = _stride(sampler, gain.shape[1]) - gain.shape[1]
    gain = np.pad(gain, ((0, 0), (0, rest))).reshape(len(gain), -1, epoch)
    return np.sum(special.logsumexp(gain, axis=2) - math.log(epoch), axis=1)
  rate = sampler.expected_num_examples / sampler.num_examples
  absent = math.log1p(-rate) if rate < 1 else -math.inf
  return np.sum(np.logaddexp(absent, math.log(rate) + gain), axis=1)


def _stride(sampler: Sampler, num_steps: int) -> int:
  """Steps from one trial to the next: whole epochs."""
  epoch = getattr(sampler, "batches_per_epoch", 1)
  return epoch * math.ceil(num_steps / epoch)
