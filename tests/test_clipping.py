"""Limits and identities of the rules there are (METHODS section 5)."""

import math
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp import clipping
from tests.rules import PARAMS


def weights(rule, norms):
  return np.asarray(rule.weights(jnp.asarray([norms], jnp.float32), ()))[0]


def test_flat_is_the_minimum_of_one_and_clip_over_norm():
  """METHODS 5.1."""
  norms = np.float32([0.0, 1e-30, 0.5, 0.7, 0.7000001, 3.0, 1e12, 1e30])
  expected = np.minimum(1, 0.7 / np.maximum(norms.astype(np.float64), 1e-300))
  got = weights(clipping.flat(0.7), norms)
  np.testing.assert_allclose(got, expected, 1e-6, 0)
  assert (got[norms <= np.float32(0.7)] == 1).all()
  assert weights(clipping.flat(0.7), [0.0]) == 1


def test_flat_with_a_clip_norm_above_all_norms_is_no_clipping():
  """METHODS 5.1: C = inf is the identity."""
  norms = [0.0, 1e-3, 1.0, 1e6]
  np.testing.assert_array_equal(
    weights(clipping.flat(1e6), norms), weights(clipping.no_clipping(), norms)
  )


def test_normalized_is_flat_over_the_clip_norm():
  """METHODS 2.2, and C is irrelevant while all norms exceed it (5.13)."""
  norms = [0.0, 0.1, 2.0, 5.0, 1e9]
  np.testing.assert_allclose(
    weights(clipping.normalized(2.0), norms),
    weights(clipping.flat(2.0), norms) / 2,
    1e-6,
  )
  np.testing.assert_array_equal(
    weights(clipping.normalized(2.0), [2.0, 7.0]),
    weights(clipping.normalized(0.1), [2.0, 7.0]),
  )


@pytest.mark.parametrize("allocation", ["global", "equal", "weighted"])
def test_one_group_is_flat(allocation):
  """METHODS 5.4 with L = 1, in weights and in noise."""
  params = {"dense": {"kernel": jnp.zeros((2, 8)), "bias": jnp.zeros(8)}}
  norms = jnp.array([[0.0, 0.5, 0.9, 4.0, 1e9]])
  flat = clipping.flat(0.9)
  for rule in (
    clipping.per_layer(0.9, noise_allocation=allocation),
    clipping.groupwise({".*": 0.9}, noise_allocation=allocation),
  ):
    state = rule.init(params)
    np.testing.assert_array_equal(
      rule.weights(norms, state), flat.weights(norms, ())
    )
    np.testing.assert_allclose(rule.noise_shape(state), [0.9], 1e-6)


def test_only_one_small_group_is_flat_on_that_leaf():
  """METHODS 5.4: the others' thresholds are never reached."""
  rule = clipping.groupwise({"head": 0.9, ".*": 1e18})
  norms = jnp.array([[1.0, 1e9, 3.0], [0.5, 2.0, 1e9]])
  weight = np.asarray(rule.weights(norms, rule.init(PARAMS)))
  head = 0  # its pattern comes first
  np.testing.assert_array_equal(
    weight[head], weights(clipping.flat(0.9), norms[head])
  )
  assert (weight[1 - head] == 1).all()


@pytest.mark.parametrize("allocation", ["global", "equal", "weighted"])
def test_noise_shapes_share_one_sensitivity(allocation):
  """METHODS 5.7: gamma_l S of 1.5, so that mu does not depend on gamma."""
  radii, dims = np.array([0.3, 0.7]), np.array([8, 4 + 12])
  rule = clipping.groupwise(
    {"head": 0.3, ".*": 0.7}, noise_allocation=allocation
  )
  gamma = {
    "global": np.ones(2),
    "equal": radii,
    "weighted": radii / np.sqrt(dims),
  }[allocation]
  total = np.sqrt(np.sum((radii / gamma) ** 2))
  shape = np.asarray(rule.noise_shape(rule.init(PARAMS)), np.float64)
  np.testing.assert_allclose(shape, gamma * total, 1e-6)
  np.testing.assert_allclose(np.sqrt(np.sum((radii / shape) ** 2)), 1, 1e-6)


def test_per_layer_splits_the_clip_norm_evenly():
  state = clipping.per_layer(0.8).init(PARAMS)
  np.testing.assert_allclose(state.l2_clip_norms, [0.8 / 2**0.5] * 2, 1e-6)
  state = clipping.per_layer(0.8, by="tensor").init(PARAMS)
  np.testing.assert_allclose(state.l2_clip_norms, [0.8 / 3**0.5] * 3, 1e-6)


def test_first_matching_pattern_names_the_group():
  rule = clipping.groupwise({"kernel": 1.0, "head": 2.0, ".*": 3.0})
  groups = clipping.assign_groups(rule, PARAMS)
  assert groups.names == (0, 2)
  assert groups.of_leaf == (1, 0, 0)
  assert groups.dims == (12 + 8, 4)


@pytest.mark.parametrize(
  "make",
  [
    lambda bad: clipping.flat(bad),
    lambda bad: clipping.normalized(bad),
    lambda bad: clipping.per_layer(bad),
    lambda bad: clipping.groupwise({".*": bad}),
  ],
)
@pytest.mark.parametrize(
  "bad", [0.0, -1.0, math.nan, math.inf, 1e-13, 1e19, np.float32(-2)]
)
def test_bad_clip_norms_are_named_at_construction(make, bad):
  with pytest.raises(ValueError, match=rf"l2_clip_norm.*{re.escape(str(bad))}"):
    make(bad)


# Untyped, since the values below are wrong on purpose.
per_layer: Any = clipping.per_layer
groupwise: Any = clipping.groupwise


@pytest.mark.parametrize(
  "make, match",
  [
    (lambda: per_layer(1.0, noise_allocation="fair"), "'fair'"),
    (lambda: groupwise({".*": 1.0}, noise_allocation="x"), "'x'"),
    (lambda: per_layer(1.0, by="block"), "by='block'"),
    (lambda: clipping.groupwise({}), "is empty"),
    (
      lambda: clipping.groupwise({"head": 1.0}).init(PARAMS),
      "'body/bias'.*catches the rest",
    ),
  ],
)
def test_bad_grouping_is_refused(make, match):
  with pytest.raises(ValueError, match=match):
    make()
