"""Measures how far one unit moves a sum, to hold against what is declared.

A grey box: the sum before the noise is looked at, nothing within it. Data sets
that differ in one unit go through one compiled program, with the same
parameters and the same randomness, so that what differs is the unit's doing.
What is found is exact: it must stay with whoever may see the rows. Public or
made-up ones do as well.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from jaxdp import noise, per_example
from jaxdp.aggregation import ClippedSum
from jaxdp.clipping import assign_groups
from jaxdp.mechanism import Mechanism
from jaxdp.sampling import NeighboringRelation
from jaxdp.schedule import CONSTANT
from jaxdp.training import _step

_ROUNDING = 1e-4
_UNTRACEABLE = (
  jax.errors.ConcretizationTypeError,
  jax.errors.NonConcreteBooleanIndexError,
  jax.errors.TracerArrayConversionError,
  jax.errors.TracerIntegerConversionError,
  IndexError,  # slices of a length that depends on values
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sensitivity:
  """The farthest neighbours that were met.

  Attributes:
    ratio: their distance over the declared sensitivity; inf if a sum was not
      finite.
    change: how they differ, in words.
    place: of the unit, or (unit, record).
    neighboring_relation: of the claim.
    pairs: neighbours that were compared.
  """

  ratio: float
  change: str
  place: tuple[int, ...]
  neighboring_relation: str
  pairs: int

  @property
  def exceeds(self) -> bool:
    """Whether it is beyond what is declared, by more than rounding (1e-4)."""
    return self.ratio > 1 + _ROUNDING

  def check(self) -> "Sensitivity":
    """Itself; raises if ``exceeds``.

    Raises:
      ValueError: with the worst change.
    """
    if self.exceeds:
      raise ValueError(
        f"{self} So no noise of this mechanism hides it. Each unit must be "
        "clipped as a whole, alone and before the sum; see docs/pitfalls.md."
      )
    return self

  def __str__(self) -> str:
    where = "unit " + ", record ".join(map(str, self.place))
    return (
      f"{where} ({self.change}): the sum moves by {self.ratio:.4g} of the "
      f"declared sensitivity ({self.neighboring_relation}, {self.pairs} pairs)."
    )


class _Side(NamedTuple):
  """One of two neighbours: rows, and which of them are no units."""

  batch: PyTree
  is_padding_example: Bool[np.ndarray, "..."]


def distance(
  mechanism: Mechanism,
  one: ClippedSum,
  other: ClippedSum,
  rule_state: Any = (),
) -> float:
  """Of two sums and their statistics, in units of the declared sensitivity.

  Args:
    mechanism: its rule, sampler and relation declare; its noise does not
      matter.
    one: from ``clipped_sum`` or ``sum_examples``.
    other: of a neighbour.
    rule_state: with which both were clipped.

  Returns:
    At most 1, but for rounding, for neighbours; inf where one is not finite.

  Example:
    >>> import jaxdp
    >>> mechanism = jaxdp.Mechanism(
    ...   jaxdp.clipping.flat(0.5), jaxdp.sampling.FullBatch(1)
    ... )
    >>> fn = jaxdp.clipped_sum(lambda w, x: w @ x, mechanism.rule)
    >>> unit, absent = jnp.array([[3.0, 4.0]]), jnp.array([True])
    >>> one, _ = fn(jnp.ones(2), unit)
    >>> other, _ = fn(jnp.ones(2), unit, absent)
    >>> round(distance(mechanism, one, other), 6)
    1.0
  """
  if math.isinf(mechanism.rule.bound):
    raise ValueError(
      f"{type(mechanism.rule).__name__} bounds nothing, so there is no "
      "sensitivity to compare with. Use clipping.flat(l2_clip_norm=...)."
    )
  unit_noise = mechanism.replace(noise_multiplier=1.0, noise_schedule=CONSTANT)
  declared = np.asarray(unit_noise.stddev(rule_state), np.float64)
  groups = assign_groups(mechanism.rule, one.grads)
  scales = [declared[group] for group in groups.of_leaf]
  scales.append(declared[len(groups.names) :])
  pairs = zip(
    jax.tree.leaves((one.grads, one.statistic)),
    jax.tree.leaves((other.grads, other.statistic)),
    scales,
    strict=True,
  )
  total = 0.0
  with np.errstate(invalid="ignore", over="ignore"):
    for x, y, scale in pairs:
      moved = np.asarray(x, np.float64) - np.asarray(y, np.float64)
      total += float(np.sum((moved / scale) ** 2))
  return math.sqrt(total) if math.isfinite(total) else math.inf


def sensitivity(
  mechanism: Mechanism,
  sum_fn: Callable,
  params: PyTree,
  batch: PyTree,
  is_padding_example: Bool[np.ndarray, "..."] | None = None,
  *,
  replacement: PyTree | None = None,
  trainable: per_example.Trainable = None,
  rule_state: Any = None,
  key: Array | None = None,
) -> Sensitivity:
  """Changes one unit after the other, and measures what that does to the sum.

  Neighbours are those of ``mechanism.neighboring_relation``: a unit is there or
  is not (its row is then padding, with whatever it holds), or is replaced. A
  unit may also hold NaN, or be far larger than the others.

  Args:
    mechanism: what declares.
    sum_fn: what ``jaxdp.clipped_sum(loss_fn, mechanism.rule, ...)`` returns for
      your loss, or your own function of the same arguments and results:
      ``(params, batch, is_padding_example, rule_state, key) -> (ClippedSum,
      info)``. It is compiled once.
    params: where to look; not all zero.
    batch: leaves ``[units, ...]``, or ``[units, records, ...]`` where the
      sampler's units hold several records. At least two units.
    is_padding_example: as the sampler gives it; None for no padding.
    replacement: one row (or record) that others are replaced with, the further
      from them the better; None for the next row, and its negative.
    trainable: as for ``clipped_sum``: which leaves train.
    rule_state: None for the state before the first step.
    key: for losses that take one: the same for all neighbours.

  Returns:
    The worst of all pairs. It has seen these rows and this state alone, so that
    ``exceeds`` is a proof and its absence is none. How often a ``while_loop``
    turns is not looked at.

  Raises:
    ValueError: the sum cannot be traced: its shapes or steps depend on values.

  Example:
    A sum that is scaled after it was clipped:

    >>> import jaxdp
    >>> mechanism = jaxdp.Mechanism(
    ...   jaxdp.clipping.flat(1.0), jaxdp.sampling.FullBatch(3)
    ... )
    >>> fn = jaxdp.clipped_sum(lambda w, x: w @ x, mechanism.rule)
    >>> xs = 9 * jnp.eye(3)
    >>> sensitivity(mechanism, fn, jnp.ones(3), xs).exceeds
    False
    >>> def faulty(params, batch, mask, state, key):
    ...   summed, info = fn(params, batch, mask, state, key)
    ...   return dataclasses.replace(summed, grads=3 * summed.grads), info
    >>> sensitivity(mechanism, faulty, jnp.ones(3), xs).check()
    Traceback (most recent call last):
    ...
    ValueError: unit 0 (is removed): the sum moves by 3 of the declared ...

  References:
    Re:cord-play, arXiv:2602.17454, which found 13 violations in 12 libraries.
  """
  batch = jax.tree.map(np.asarray, batch)
  shape = (per_example.num_units(batch), *mechanism.sampler.unit_shape)
  if shape[0] < 2:
    raise ValueError(f"batch must hold at least two units, got {shape[0]}.")
  mask = np.zeros(shape, bool)
  if is_padding_example is not None:
    mask = np.asarray(is_padding_example)
  if mask.shape != shape:
    raise ValueError(
      f"is_padding_example has shape {mask.shape}, but batches of "
      f"{mechanism.sampler} here have {shape}. Pass what the sampler gave."
    )
  key = noise.make_key(0) if key is None else key
  if rule_state is None:
    trained, _ = per_example.partition_params(params, trainable)
    rule_state = mechanism.rule.init(trained)
  compiled = jax.jit(sum_fn)

  def run(side: _Side) -> ClippedSum:
    rows, absent = _step.fetch(None, side.batch, side.is_padding_example)
    try:
      return compiled(params, rows, jnp.asarray(absent), rule_state, key)[0]
    except _UNTRACEABLE as error:
      raise ValueError(
        "The sum cannot be compiled for all data alike: its shapes or steps "
        "depend on values, and tell about them. Use jnp.where and lax.cond."
      ) from error

  worst = Sensitivity(
    ratio=0.0,
    change="is left alone",
    place=(0,),
    neighboring_relation=mechanism.relation.name,
    pairs=0,
  )
  pairs = 0
  for place in map(tuple, np.argwhere(~mask)):
    others = _replacements(batch, mask, place, replacement)
    for change, one, other in _pairs(
      _Side(batch, mask), place, others, mechanism.relation
    ):
      pairs += 1
      ratio = distance(mechanism, run(one), run(other), rule_state)
      if ratio > worst.ratio:
        worst = dataclasses.replace(
          worst, ratio=ratio, change=change, place=tuple(map(int, place))
        )
  return dataclasses.replace(worst, pairs=pairs)


def _pairs(
  side: _Side,
  place: tuple[int, ...],
  others: dict[str, PyTree],
  relation: NeighboringRelation,
) -> Iterator[tuple[str, _Side, _Side]]:
  """Neighbours that differ in one place: (in words, one, other)."""
  absent = side.is_padding_example.copy()
  absent[place] = True
  if relation == NeighboringRelation.REPLACE_ONE:
    for name, row in others.items():
      yield f"replaced by {name}", side, _with(side, place, row)
    return
  yield "is removed", side, side._replace(is_padding_example=absent)
  for name, row in others.items():
    changed = _with(side, place, row)
    removed = changed._replace(is_padding_example=absent)
    yield f"is removed, where {name} is left", side, removed
    yield f"is {name} and removed", changed, removed


def _with(side: _Side, place: tuple[int, ...], row: PyTree) -> _Side:
  def put(x: np.ndarray, value: np.ndarray) -> np.ndarray:
    x = x.copy()
    x[place] = value
    return x

  return side._replace(batch=jax.tree.map(put, side.batch, row))


def _replacements(
  batch: PyTree,
  mask: Bool[np.ndarray, "..."],
  place: tuple[int, ...],
  replacement: PyTree | None,
) -> dict[str, PyTree]:
  """Rows that may stand in this place, by what they are."""
  present = [tuple(p) for p in np.argwhere(~mask)]
  following = present[(present.index(place) + 1) % len(present)]
  own = jax.tree.map(lambda x: x[place], batch)
  rows = {
    "the next one": jax.tree.map(lambda x: x[following], batch),
    "its negative": _floats(lambda x: -x, own),
    "NaN": _floats(lambda x: np.full_like(x, np.nan), own),
    "a million times as large": _floats(lambda x: 1e6 * x, own),
  }
  if replacement is not None:
    rows["the replacement"] = jax.tree.map(np.asarray, replacement)
  return rows


def _floats(change: Callable, row: PyTree) -> PyTree:
  """A row whose floating-point leaves are changed."""
  return jax.tree.map(
    lambda x: (
      change(x).astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
    ),
    row,
  )
