"""What every clipping rule promises, on every row of `tests/rules.py`.

Numbers of METHODS section 5 that a test stands for are named in its docstring.
"""

import json
import math
import typing

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp
from jaxdp import NeighboringRelation, PerExampleGrads, aggregation, clipping
from tests import rules
from tests.rules import (
  PARAMS,
  every_bounded_rule,
  every_name,
  every_rule,
)

pytestmark = pytest.mark.rounding

UNITS = 6
LEAVES, TREEDEF = jax.tree.flatten(PARAMS)
EIGHT_ULP = 8 * 2.0**-23
RELATIONS = [
  NeighboringRelation.ADD_OR_REMOVE_ONE,
  NeighboringRelation.REPLACE_SPECIAL,
  NeighboringRelation.REPLACE_ONE,
]


@jax.jit
def clip(rule, squares, state):
  stacked = jax.tree.map(
    lambda s, p: jnp.zeros((s.size, *p.shape), p.dtype), squares, PARAMS
  )
  grads = PerExampleGrads(stacked, squares)
  clipped, norms = aggregation.clip(rule, grads, state)
  return norms, clipped.weights, clipped.statistic, rule.noise_shape(state)


@jax.jit
def clip_and_sum(rule, stacked, mask):
  grads = PerExampleGrads.from_stacked(stacked, mask)
  clipped, _ = aggregation.clip(rule, grads, rule.init(PARAMS))
  summed = aggregation.sum_clipped(clipped)
  return summed.grads, summed.statistic


def no_padding(units=UNITS):
  return np.zeros(units, bool)


def bytes_of(tree):
  return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def replace_row(stacked, row, value):
  """`stacked` with one row set, in every leaf, to a value or another row."""

  def change(leaf):
    leaf = leaf.copy()
    leaf[row] = value if not isinstance(value, slice) else leaf[value][0]
    return leaf

  return jax.tree.map(change, stacked)


def stacked_gradients(seed, magnitudes, aligned=False):
  """Random gradients like PARAMS; `magnitudes[unit][leaf]` are their norms."""
  rng = np.random.default_rng(seed)
  leaves = []
  for norms, like in zip(np.transpose(magnitudes), LEAVES, strict=True):
    x = rng.standard_normal((len(norms), like.size))
    x = np.broadcast_to(x[:1], x.shape) if aligned else x
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    with np.errstate(all="ignore"):
      x = (x * norms[:, None]).astype(np.float32).astype(like.dtype)
    leaves.append(x.reshape(-1, *like.shape))
  return TREEDEF.unflatten(leaves)


# Log-uniform over what a gradient may be, and the values that break formulas.
MAGNITUDES = st.one_of(
  st.floats(-12, 12).map(lambda exponent: 10.0**exponent),
  st.sampled_from([0.0, math.inf, math.nan, 1e-38, 1e-23, 1e18, 3e19]),
)


def magnitudes(units):
  unit = st.lists(MAGNITUDES, min_size=3, max_size=3)
  return st.lists(unit, min_size=units, max_size=units)


def test_every_public_rule_has_a_row():
  makers = {
    name
    for name in clipping.__all__
    if name.islower()
    and name != "rule_from_dict"
    and isinstance(
      cls := typing.get_type_hints(getattr(clipping, name)).get("return"), type
    )
    and issubclass(cls, clipping.ClippingRule)
  }
  assert {"flat", "normalized", "no_clipping"} <= makers
  assert makers == {row.name for row in rules.ROWS}


# The bound.


@every_bounded_rule
@hypothesis.given(
  norms=magnitudes(8),
  releases=st.lists(st.floats(-3, 3, width=32), max_size=3),
  public_norms=st.lists(MAGNITUDES, min_size=2, max_size=2),
)
def test_bound_holds_for_all_norms(rule, norms, releases, public_norms):
  """METHODS 5.1 for all rules: never above the bound, beyond 8 ulp."""
  with np.errstate(all="ignore"):
    squares = np.square(np.asarray(norms, np.float32))
  state = rule.init(PARAMS)
  for value in releases:  # an adaptive rule may be in any state it can reach
    state = rule.update(state, jnp.full(_statistics(rule), value))
  if rule.needs_public_norms:
    state = rule.refresh(state, jnp.asarray(public_norms, jnp.float32))
  n, w, b, gamma = map(
    np.asarray, clip(rule, TREEDEF.unflatten(list(squares.T)), state)
  )
  finite = np.isfinite(n).all(axis=0)
  assert (w[:, ~finite] == 0).all()
  assert (w >= 0).all()
  assert np.isfinite(w).all()
  assert (gamma > 0).all()
  contribution = np.where(finite, n, 0).astype(np.float64) * w
  shaped = np.concatenate([contribution, b]) / gamma[:, None]
  worst = np.linalg.norm(shaped, axis=0).max()
  assert worst <= rule.bound * (1 + EIGHT_ULP)


@every_bounded_rule
def test_bound_is_attained(rule):
  """A bound that is too loose costs noise: some unit is within 1 % of it."""
  squares = np.full(3, np.square(np.float32(1e9)))
  state = rule.init(PARAMS)
  n, w, b, gamma = map(
    np.asarray, clip(rule, TREEDEF.unflatten(list(squares[:, None])), state)
  )
  shaped = np.concatenate([n * w, b]) / gamma[:, None]
  assert np.linalg.norm(shaped) >= 0.99 * rule.bound


@every_bounded_rule
@pytest.mark.parametrize("relation", RELATIONS, ids=lambda r: r.name)
@hypothesis.settings(max_examples=30)
@hypothesis.given(
  seed=st.integers(0, 2**32 - 1),
  norms=magnitudes(UNITS + 1),
  row=st.integers(0, UNITS - 1),
  aligned=st.booleans(),
)
@hypothesis.example(seed=0, norms=[[1.0] * 3] * 7, row=0, aligned=True)
@hypothesis.example(seed=0, norms=[[1e-38] * 3] * 7, row=0, aligned=True)
@hypothesis.example(
  seed=0,
  norms=[[math.nan, 1.0, 1.0]] + [[1e9, 1e-9, 1.0]] * 6,
  row=0,
  aligned=True,
)
def test_neighbouring_sums_differ_by_at_most_the_sensitivity(
  rule, relation, seed, norms, row, aligned
):
  """METHODS 5.15, on sums of real gradients with leaves of two widths."""
  drawn = stacked_gradients(seed, norms, aligned)
  batch = jax.tree.map(lambda x: x[:UNITS], drawn)
  mask = no_padding()
  if relation == NeighboringRelation.REPLACE_ONE:
    other = jax.tree.map(
      lambda x, d: np.concatenate([x[:row], d[-1:], x[row + 1 :]]), batch, drawn
    )
    other_mask = mask
  elif relation == NeighboringRelation.REPLACE_SPECIAL:
    other = replace_row(batch, row, 0)
    other_mask = np.arange(UNITS) == row
  else:
    # One record less: the rows after it move up, garbage pads the end.
    order = [*range(row), *range(row + 1, UNITS), UNITS]
    other = jax.tree.map(lambda x: x[order], drawn)
    other_mask = np.arange(UNITS) == UNITS - 1
  a, b = clip_and_sum(rule, batch, mask), clip_and_sum(rule, other, other_mask)
  difference = jax.tree.map(
    lambda x, y: np.asarray(x, np.float64) - np.asarray(y, np.float64), a, b
  )
  # With noise_multiplier=1 the noise's scale is the sensitivity, by group.
  mechanism = jaxdp.Mechanism(
    rule, jaxdp.sampling.FullBatch(UNITS), 1.0, relation
  )
  sensitivity = mechanism.stddev(rule.init(PARAMS))
  assert rules.shaped_norm(rule, sensitivity, *difference) <= 1 + 1e-5


def test_sensitivity_test_sees_a_rule_with_a_bound_too_small():
  """Control: calibrated to half the clip norm, the worst pair is too far."""
  batch = stacked_gradients(0, [[1.0] * 3] * UNITS)
  rule = clipping.flat(1.0)
  a = clip_and_sum(rule, batch, no_padding())
  b = clip_and_sum(rule, batch, np.arange(UNITS) == 2)
  difference = jax.tree.map(lambda x, y: np.asarray(x) - np.asarray(y), a, b)
  sensitivity = jnp.array([0.5])
  assert rules.shaped_norm(rule, sensitivity, *difference) > 1.9


@every_bounded_rule
def test_bound_holds_where_squares_underflow(rule):
  """METHODS 2.0: true norm 1e-20, while the computed one is 85 times less."""
  tiny = np.full((1, 1_000_000), 1e-23, np.float32)
  tiny[0, 0] = 1.2e-22
  grads = {"body": {"kernel": tiny}, "head": {"kernel": np.zeros((1, 2))}}
  grads = jax.tree.map(lambda x: np.asarray(x, np.float32), grads)
  params = jax.tree.map(lambda x: x[0], grads)
  assert np.linalg.norm(tiny.astype(np.float64)) > 0.99e-20
  clipped, _ = aggregation.clip(
    rule, PerExampleGrads.from_stacked(grads), rule.init(params)
  )
  summed = aggregation.sum_clipped(clipped)
  gamma = rule.noise_shape(rule.init(params))
  worst = rules.shaped_norm(rule, gamma, summed.grads, summed.statistic)
  assert worst <= rule.bound * (1 + EIGHT_ULP)


# Edge cases.


@every_rule
def test_zero_gradients_sum_to_zero(rule):
  zeros = stacked_gradients(0, np.zeros((UNITS, 3)))
  grads, _ = clip_and_sum(rule, zeros, no_padding())
  assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(grads))


@every_rule
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("leaf", range(3))
def test_non_finite_units_contribute_exactly_zero(rule, bad, leaf):
  """One bad coordinate drops all of the unit; 3e38 overflows when squared."""
  batch = stacked_gradients(1, [[0.5, 2.0, 3.0]] * UNITS)
  leaves = jax.tree.leaves(batch)
  leaves[leaf].reshape(UNITS, -1)[2, 1] = bad
  grads, _ = clip_and_sum(rule, TREEDEF.unflatten(leaves), no_padding())
  expected, _ = clip_and_sum(rule, replace_row(batch, 2, 0), no_padding())
  assert bytes_of(grads) == bytes_of(expected)


@every_rule
@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30, -1e-3, -7.0])
def test_garbage_in_padding_changes_no_bit(rule, garbage):
  """METHODS 5.14, in the sum and in the statistic."""
  batch = stacked_gradients(2, [[0.5, 2.0, 3.0]] * UNITS)
  for mask in ([0, 1, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1]):
    mask = np.asarray(mask, bool)
    clean, dirty = (
      replace_row(batch, mask, 0),
      replace_row(batch, mask, garbage),
    )
    assert bytes_of(clip_and_sum(rule, clean, mask)) == bytes_of(
      clip_and_sum(rule, dirty, mask)
    )


@every_rule
def test_order_of_units_changes_rounding_only(rule):
  """METHODS 5.14."""
  batch = stacked_gradients(3, [[0.5, 2.0, 0.1]] * 3 + [[1e-9, 5.0, 1e3]] * 3)
  turned = jax.tree.map(lambda x: x[::-1], batch)
  a = clip_and_sum(rule, batch, no_padding())
  b = clip_and_sum(rule, turned, no_padding())
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 2e-5, 1e-9), a, b)


@every_name
def test_jit_changes_rounding_only(rule):
  batch = stacked_gradients(5, [[0.5, 2.0, 3.0]] * UNITS)
  with jax.disable_jit():
    eager = clip_and_sum(rule, batch, no_padding())
  jitted = clip_and_sum(rule, batch, no_padding())
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, 1e-5, 1e-6), jitted, eager
  )


# A rule as a value.


@every_rule
def test_rule_survives_json(rule):
  written = json.loads(json.dumps(rule.to_dict()))
  assert clipping.rule_from_dict(written) == rule


@every_rule
def test_rule_prints_as_itself(rule):
  assert type(rule).__name__ in repr(rule)
  assert hash(rule) == hash(clipping.rule_from_dict(rule.to_dict()))


@every_name
def test_other_numbers_need_no_other_compile(rule):
  """Numbers are data: one program serves all clip norms, alone or stacked."""
  other = jax.tree.map(lambda x: 1.5 * x, rule)
  batch = stacked_gradients(4, [[0.5, 2.0, 3.0]] * UNITS)
  traces = []

  @jax.jit
  def run(rule, batch):
    traces.append(1)
    return clip_and_sum(rule, batch, no_padding())

  alone = [run(r, batch) for r in (rule, other)]
  assert len(traces) == 1
  stacked = jax.tree.map(
    lambda *x: jnp.stack([*map(jnp.float32, x)]), rule, other
  )
  both = jax.vmap(
    run, in_axes=(0 if jax.tree.leaves(rule) else None, None), axis_size=2
  )(stacked, batch)
  for i, single in enumerate(alone):
    jax.tree.map(
      lambda x, y, i=i: np.testing.assert_allclose(x[i], y, 1e-5, 1e-6),
      both,
      single,
    )


def _statistics(rule):
  groups = len(clipping.assign_groups(rule, PARAMS).names)
  return rule.noise_shape(rule.init(PARAMS)).shape[0] - groups
