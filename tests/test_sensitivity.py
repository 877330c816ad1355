"""Neighbours through the whole path: loss, unit, engine, clip and sum.

`test_rule_contract.py` has every rule on norms and gradients; here three rules
(one group, several, and one with a statistic) meet every engine and every unit,
and the distance of two sums is measured in units of the noise at multiplier 1,
which is the declared sensitivity.
"""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp
from jaxdp import NeighboringRelation, audit, clipping, inner_momentum, units
from tests.rules import PARAMS
from tests.test_rule_contract import MAGNITUDES, stacked_gradients

pytestmark = pytest.mark.rounding

UNITS, RECORDS = 4, 3
KEY = jax.random.key(0)

RULES = {
  "flat": clipping.flat(0.7),
  "per_layer": clipping.per_layer(0.7, noise_allocation="weighted"),
  "adaptive_quantile": clipping.adaptive_quantile(0.7, by="layer"),
}
ENGINES = {
  "stacked": {"method": "stacked"},
  "stacked, microbatches of 3": {"method": "stacked", "microbatch_size": 3},
  "factored": {"method": "factored"},
}


def linear(params, example):
  """Its gradient is the example, whatever its size."""
  products = jax.tree.map(
    lambda p, x: jnp.sum(p.astype(jnp.float32) * x), params, example
  )
  return sum(jax.tree.leaves(products))


def flip_some(key, example):
  sign = jnp.where(jax.random.bernoulli(key), 1.0, -1.0)
  return jax.tree.map(lambda x: sign * x, example)


def past(loss_fn):
  """A window over three iterates, two of them a unit step away each."""
  offsets = jax.tree.map(
    lambda p: jnp.ones((2, *p.shape), p.dtype) * jnp.array(1, p.dtype), PARAMS
  )
  weights = jnp.array([1.0, 0.5, 0.25]) / 1.75
  return inner_momentum.over_iterates(
    loss_fn, inner_momentum.Window(offsets, weights)
  )


# By unit: its loss, whether that takes a key, and whether it holds records.
KINDS = {
  "example": (linear, False, False),
  "views": (units.mean_over_views(linear, flip_some, 3), True, False),
  "iterates": (past(linear), False, False),
  "user": (units.mean_over_records(linear), False, True),
  "bucket": (units.mean_over_records(linear), False, True),
}


@functools.cache
def compiled(rule, engine, kind):
  loss_fn, has_key, _ = KINDS[kind]
  fn = jaxdp.clipped_sum(
    loss_fn, RULES[rule], has_key=has_key, **ENGINES[engine]
  )
  state = RULES[rule].init(PARAMS)
  return jax.jit(
    lambda batch, mask: fn(
      PARAMS, batch, mask, state, KEY if has_key else None
    )[0]
  )


def distance(rule, engine, kind, relation, one, other):
  """Of two (batch, mask), in units of the declared sensitivity."""
  run = compiled(rule, engine, kind)
  a, b = (run(batch, jnp.asarray(mask)) for batch, mask in (one, other))
  sampler = (
    jaxdp.sampling.Buckets(
      num_examples=UNITS * RECORDS,
      expected_batch_size=UNITS,
      num_buckets=UNITS,
      bucket_size=RECORDS,
    )
    if kind == "bucket"
    else jaxdp.sampling.FullBatch(UNITS)
  )
  mechanism = jaxdp.Mechanism(RULES[rule], sampler, 1.0, relation)
  return audit.distance(mechanism, a, b, RULES[rule].init(PARAMS))


def neighbours(kind, relation, rows, place, padding):
  """Two batches of ``rows`` ``[UNITS * RECORDS + RECORDS]`` that differ as the
  relation says: in one record for a bucket, else in one whole unit."""
  count = UNITS * RECORDS
  unit, record = divmod(place, RECORDS)

  def batch(rows, padding):
    if not KINDS[kind][2]:
      one = jax.tree.map(lambda x: x[:count:RECORDS], rows)
      return one, padding[::RECORDS]
    shaped = jax.tree.map(
      lambda x: x[:count].reshape(UNITS, RECORDS, *x.shape[1:]), rows
    )
    mask = padding.reshape(UNITS, RECORDS)
    return units.Records(shaped, mask), mask.all(axis=1)

  where = np.zeros(count, bool)
  if kind == "bucket":
    where[unit * RECORDS + record] = True
  else:
    where[unit * RECORDS : (unit + 1) * RECORDS] = True
  present = padding & ~where
  if relation == NeighboringRelation.REPLACE_ONE:
    other = jax.tree.map(np.copy, rows)
    for x in jax.tree.leaves(other):
      x[:count][where] = x[count:][: where.sum()]
    return batch(rows, present), batch(other, present)
  return batch(rows, present), batch(rows, padding | where)


CASES = [
  pytest.param(kind, relation, id=f"{kind}-{relation.name}")
  for kind in KINDS
  for relation in (
    NeighboringRelation.ADD_OR_REMOVE_ONE,
    NeighboringRelation.REPLACE_ONE,
  )
  if (kind, relation) != ("bucket", NeighboringRelation.REPLACE_ONE)  # refused
]
every_path = pytest.mark.parametrize(
  "engine",
  [
    pytest.param(name, marks=pytest.mark.slow) if "micro" in name else name
    for name in ENGINES
  ],
)
every_rule = pytest.mark.parametrize("rule", RULES)


@every_rule
@every_path
@pytest.mark.parametrize("kind, relation", CASES)
@hypothesis.settings(max_examples=15)
@hypothesis.given(
  seed=st.integers(0, 2**32 - 1),
  magnitudes=st.lists(
    st.lists(MAGNITUDES, min_size=3, max_size=3),
    min_size=(UNITS + 1) * RECORDS,
    max_size=(UNITS + 1) * RECORDS,
  ),
  place=st.integers(0, UNITS * RECORDS - 1),
  padding=st.lists(
    st.booleans(), min_size=UNITS * RECORDS, max_size=UNITS * RECORDS
  ),
)
def test_no_neighbour_is_farther_than_declared(
  rule, engine, kind, relation, seed, magnitudes, place, padding
):
  """METHODS 5.15, for the units and engines."""
  with np.errstate(all="ignore"):
    rows = stacked_gradients(seed, magnitudes)
    rows = jax.tree.map(lambda x: np.array(x, np.float32), rows)
  one, other = neighbours(kind, relation, rows, place, np.array(padding))
  assert distance(rule, engine, kind, relation, one, other) <= 1 + 1e-5


@every_rule
@every_path
@pytest.mark.parametrize("kind, relation", CASES)
def test_some_neighbour_is_as_far_as_declared(rule, engine, kind, relation):
  """Else the noise is more than it need be: within 1 % of the sensitivity."""
  norms = np.full(((UNITS + 1) * RECORDS, 3), 1e6)
  rows = stacked_gradients(0, norms, aligned=True)
  rows = jax.tree.map(lambda x: np.array(x, np.float32), rows)
  for x in jax.tree.leaves(rows):
    x[-RECORDS:] *= -1  # what a unit is replaced with
    x[1] *= -100  # what turns the first bucket around
  padding = np.zeros(UNITS * RECORDS, bool)
  padding[2] = True
  place = 1 if kind == "bucket" else RECORDS
  one, other = neighbours(kind, relation, rows, place, padding)
  assert distance(rule, engine, kind, relation, one, other) >= 0.99


def releases(rows, absent, mechanism):
  """From seeds to what a release says of the first coordinate."""
  fn = jaxdp.clipped_sum(lambda w, x: w @ x, mechanism.rule)
  summed, _ = fn(jnp.ones(2), rows, jnp.asarray(absent))

  @jax.jit
  @jax.vmap
  def run(seed):
    state = mechanism.init(jnp.ones(2), jax.random.key(seed))
    return mechanism.release(summed, state)[0][0]

  return run


def test_a_canary_shows_as_much_as_is_claimed_and_no_more():
  """METHODS 5.16: norm 1e6 along one coordinate, in every batch."""
  mechanism = jaxdp.Mechanism(
    clipping.flat(1.0), jaxdp.sampling.FullBatch(4), noise_multiplier=1.25
  )
  rows = jnp.zeros((4, 2)).at[0, 0].set(1e6)
  absent = np.zeros(4, bool)
  out, canary = (
    np.asarray(releases(rows, mask, mechanism)(seeds))
    for mask, seeds in (
      (absent | (np.arange(4) == 0), jnp.arange(4000)),
      (absent, jnp.arange(4000, 8000)),
    )
  )
  claimed = 1 / 1.25
  assert claimed * 0.8 <= lower_bound(out, canary) <= claimed
  null = np.array_split(out, 2)
  assert abs(lower_bound(*null)) <= 0.2


def lower_bound(out, canary):
  """Of mu, at 99.9 %: from the difference of means of two normal samples."""
  spread = np.sqrt(np.var(out) + np.var(canary)) / np.sqrt(2)
  error = np.sqrt(1 / len(out) + 1 / len(canary))
  return (canary.mean() - out.mean()) / spread - 3.1 * error
