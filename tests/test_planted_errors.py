"""Mistakes from the literature, planted: each is caught by a check.

A check takes the genuine thing and the planted one, and must tell them apart.
(Others are planted where their check is: noise at another scale in
`test_noise.py`, a bound that is too small in `test_rule_contract.py`, a sampler
whose rate, sizes or pairs are wrong in `test_sampling.py`, consecutive buckets
in `test_units_of_privacy.py`.)
"""

import math

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp
from jaxdp import accounting, clipping, inner_momentum, units
from jaxdp.clipping import _adaptive_quantile, _automatic
from jaxdp.sampling import Buckets, NeighboringRelation
from tests import toy

KEY = jax.random.key(0)


# Rules.


def worst_contribution(rule):
  """Of one unit of any norm, over its declared bound."""
  norms = jnp.concatenate([jnp.zeros(1), jnp.geomspace(1e-6, 1e9, 200)])
  norms = norms[None]
  state = rule.init({"w": jnp.zeros(3)})
  rows = [norms * rule.weights(norms, state), rule.statistic(norms, state)]
  shape = rule.noise_shape(state)[:, None]
  return float(jnp.max(jnp.linalg.norm(jnp.concatenate(rows) / shape, axis=0)))


class NoiseOfC(_automatic.PSASC):
  """PSASC with noise sigma C: its bound is C/s."""

  def noise_shape(self, state):
    del state
    return jnp.asarray(self.l2_clip_norm, jnp.float32).reshape(1)


class BitsFromZero(_adaptive_quantile.AdaptiveQuantile):
  """Quantile bits 0 and 1, which move a sum by 1, noised as if by 1/2."""

  def statistic(self, norms, state):
    return super().statistic(norms, state) + 0.5


@pytest.mark.parametrize(
  "genuine, planted",
  [
    (clipping.psasc(1.0, s=0.5), NoiseOfC(1.0, r=0.1, s=0.5)),
    (
      clipping.adaptive_quantile(1.0, budget_fraction=0.5),
      BitsFromZero(1.0, budget_fraction=0.5),
    ),
  ],
  ids=["PSASC with noise sigma C", "an un-centred quantile bit"],
)
def test_bound_of_a_rule(genuine, planted):
  assert 0.99 <= worst_contribution(genuine) <= 1 + 1e-6
  assert worst_contribution(planted) > 1.2


def test_two_separately_amplified_releases():
  """METHODS 1.6: of one sample, they are one release at the joint multiplier.

  Accounted as two, they cost less than what is released: the claim would be
  false.
  """
  z, steps, delta = 1.0, 200, 1e-5
  rule = clipping.adaptive_quantile(1.0, budget_fraction=0.5)
  sampler = toy.poisson(1000, 20, max_batch_size=None)
  mechanism = jaxdp.Mechanism(rule, sampler, z)
  release = mechanism.dp_event(steps).event
  assert release.event.noise_multiplier == z  # one, for both
  q = sampler.sampling_probability
  apart = dp_accounting.ComposedDpEvent(
    [
      dp_accounting.SelfComposedDpEvent(
        dp_accounting.PoissonSampledDpEvent(
          q, dp_accounting.GaussianDpEvent(z / math.sqrt(share))
        ),
        steps,
      )
      for share in (0.5, 0.5)
    ]
  )
  planted = accounting.epsilon(
    apart, "pld", NeighboringRelation.ADD_OR_REMOVE_ONE, delta
  )
  assert planted < 0.95 * mechanism.epsilon(steps, delta)


# Units.


class FactorOne(Buckets):
  """As if a bucket appeared or disappeared as a whole."""

  def sensitivity_factor(self, relation):
    del relation
    return 1.0


def over_sensitivity(sampler, loss_fn, *batches):
  """Distance of the clipped sums of neighbours, over what is declared."""
  rule = clipping.flat(1.0)
  fn = jaxdp.clipped_sum(loss_fn, rule)
  a, b = (fn(jnp.ones(2), *batch)[0].grads for batch in batches)
  declared = jaxdp.Mechanism(rule, sampler, 1.0).stddev(())[0]
  return float(jnp.linalg.norm(a - b) / declared)


def test_factor_one_for_buckets():
  """One record more turns a bucket around, as none of its size can hide."""
  bucket = jnp.array([[[1.0, 0.0], [-100.0, 0.0]]])
  batches = [
    (units.Records(bucket, jnp.array([[False, absent]])),)
    for absent in (True, False)
  ]
  ratio = [
    over_sensitivity(
      cls(num_examples=4, expected_batch_size=2, num_buckets=1),
      units.mean_over_records(lambda w, x: w @ x),
      *batches,
    )
    for cls in (Buckets, FactorOne)
  ]
  assert ratio == pytest.approx([1.0, 2.0])


def clipped_then_summed(params, example):
  """Momentum that scales at every iterate and then sums, by 1.75."""

  def one(weight):
    gradient = example * weight
    return gradient / jnp.maximum(1.0, jnp.linalg.norm(gradient))

  total = sum(decay * one(1.0) for decay in (1.0, 0.5, 0.25))
  return params @ total


def test_momentum_scaled_before_the_sum():
  """Whoever releases such a sum without clipping it again needs 1.75 C."""
  rows, mask = jnp.array([[1e3, 0.0]]), jnp.array([False])
  sampler = jaxdp.sampling.FullBatch(1)
  window = inner_momentum.Window(jnp.zeros((2, 2)), jnp.array([1.0, 0.5, 0.25]))
  genuine = inner_momentum.over_iterates(lambda w, x: w @ x, window)
  assert over_sensitivity(
    sampler, genuine, (rows, mask), (rows, ~mask)
  ) == pytest.approx(1.0)
  released = jax.grad(clipped_then_summed)(jnp.ones(2), rows[0])
  declared = jaxdp.Mechanism(clipping.flat(1.0), sampler, 1.0).stddev(())[0]
  assert float(jnp.linalg.norm(released) / declared) > 1.7


# The divisor.


def moved_mean(divide):
  """How far one unit moves the released mean, over the declared distance."""
  units_, rule = 10, clipping.flat(1.0)
  sampler = toy.poisson(100, 10, max_batch_size=16)
  mechanism = jaxdp.Mechanism(rule, sampler, 1.0)
  rows = np.zeros((16, 2), np.float32)
  rows[:units_, 0] = 1.0
  rows[0, 0] = -1.0
  mask = np.arange(16) >= units_
  fn = jaxdp.clipped_sum(lambda w, x: w @ x, rule)
  means = []
  for absent in (mask, mask | (np.arange(16) == 0)):
    summed, _ = fn(jnp.ones(2), rows, jnp.asarray(absent))
    means.append(divide(mechanism, summed, (~absent).sum()))
  declared = mechanism.noise_stddev(mechanism.init(jnp.ones(2), KEY), rows[0])
  return float(np.linalg.norm(means[0] - means[1]) / declared)


def test_realised_batch_size_as_divisor():
  """It is private itself, and moves the contribution of all other units."""

  def genuine(mechanism, summed, _):
    quiet = mechanism.replace(noise_multiplier=0.0)
    state = quiet.init(jnp.ones(2), KEY)
    return quiet.release(summed, state)[0]

  assert moved_mean(genuine) == pytest.approx(1.0)
  assert moved_mean(lambda _, summed, count: summed.grads / float(count)) > 1.9


# What leaves beside the parameters.


def test_batchnorm_statistics_in_the_result():
  def loss_fn(params, example):
    mean = example["x"] @ params["kernel"]
    return toy.loss_fn(params, example), {"batch_stats": {"mean": mean}}

  with pytest.raises(ValueError, match="without noise"):
    toy.fit(loss_fn=loss_fn, has_aux=True)
