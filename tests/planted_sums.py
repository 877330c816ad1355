"""Sums that one unit moves farther than is declared.

Each subject is what `audit.sensitivity` takes: a mechanism that declares, and a
function that makes the sum of a batch.
"""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import jaxdp
from jaxdp import aggregation, clipping, inner_momentum, units
from jaxdp.clipping import _adaptive_quantile, _automatic, _rule
from jaxdp.per_example import PerExampleGrads, _norms
from jaxdp.sampling import Buckets, FullBatch
from tests.planted import Planted

GREY_BOX = "grey-box check"
FLAT = clipping.flat(1.0)
ROWS = np.array([[1.0, 0.0], [-30.0, 1.0], [0.0, 0.25], [0.5, 0.5]], np.float32)


def linear(w, x):
  return w @ x


def mechanism_of(rule=FLAT, sampler=None):
  sampler = FullBatch(len(ROWS)) if sampler is None else sampler
  return jaxdp.Mechanism(rule, sampler, 1.0)


def subject(sum_fn, rule=FLAT, batch=ROWS, params=None, sampler=None, **rest):
  return {
    "mechanism": mechanism_of(rule, sampler),
    "sum_fn": sum_fn,
    "params": jnp.ones(2) if params is None else params,
    "batch": batch,
    **rest,
  }


def genuine(loss_fn=linear, rule=FLAT, **rest):
  return lambda: subject(jaxdp.clipped_sum(loss_fn, rule), rule, **rest)


GENUINE = genuine()


def made_by_hand(make, loss_fn=linear, rule=FLAT, **rest):
  """``make(params, stacked gradients, mask)`` gives the sum's gradient."""

  def sum_fn(params, batch, mask, state, key):
    del state, key
    stacked = jax.vmap(jax.grad(loss_fn), (None, 0))(params, batch)
    return as_sum(make(params, stacked, mask), rule, mask), ()

  return lambda: subject(sum_fn, rule, **rest)


def as_sum(grads, rule, mask):
  return aggregation.ClippedSum(
    grads,
    jnp.zeros(0),
    tuple(x.dtype for x in jax.tree.leaves(grads)),
    aggregation.rule_tag(rule),
    len(mask),
    True,
  )


def changed(change):
  """The genuine sum's gradient, changed: ``change(grads, batch, mask)``."""
  fn = jaxdp.clipped_sum(linear, FLAT)

  def sum_fn(params, batch, mask, state, key):
    summed, info = fn(params, batch, mask, state, key)
    grads = change(summed.grads, batch, mask)
    return dataclasses.replace(summed, grads=grads), info

  return lambda: subject(sum_fn)


# Clipping of the wrong thing.


def to_norm(x, bound=1.0):
  return x * jnp.minimum(1.0, bound / jnp.maximum(jnp.linalg.norm(x), 1e-30))


def present(stacked, mask):
  """Rows that are there; a NaN is put away, which is not the point here."""
  return jnp.where(mask[:, None], 0.0, jnp.nan_to_num(stacked))


def clipped_after_averaging(_, stacked, mask):
  return len(mask) * to_norm(present(stacked, mask).mean(0))


def clipped_per_batch(_, stacked, mask):
  """One weight for all, of the largest norm."""
  rows = present(stacked, mask)
  largest = jnp.max(jnp.linalg.norm(rows, axis=1))
  return rows.sum(0) / jnp.maximum(1.0, largest)


def own_weights(stacked):
  stacked = jnp.nan_to_num(stacked)
  return 1 / jnp.maximum(1.0, jnp.linalg.norm(stacked, axis=1, keepdims=True))


def nan_leaks(_, stacked, mask):
  """Its weight is 0, and 0 times NaN is NaN."""
  is_bad = ~jnp.isfinite(stacked).all(axis=1) | mask
  weights = jnp.where(is_bad[:, None], 0.0, own_weights(stacked))
  rows = jnp.where(mask[:, None], 0.0, stacked)
  return jnp.sum(weights * rows, axis=0)


def padding_counts(_, stacked, mask):
  return jnp.sum(
    own_weights(stacked) * present(stacked, jnp.zeros_like(mask)), axis=0
  )


def threshold_of_the_batch(_, stacked, mask):
  """The median of the norms, without noise, and noise in units of it."""
  rows = present(stacked, mask)
  norms = jnp.linalg.norm(rows, axis=1)
  median = jnp.nanmedian(jnp.where(mask, jnp.nan, norms))
  return jnp.sum(rows / jnp.maximum(norms, median)[:, None], axis=0)


def each_layer_to_the_whole_norm(params, stacked, mask):
  """Two layers clipped to C each have a norm of 1.41 C together."""
  del params
  return jax.tree.map(
    lambda g: jnp.sum(own_weights(g) * present(g, mask), axis=0), stacked
  )


def of_two_layers(params, x):
  return params["body"] @ x + params["head"] @ x


LAYERS = {"body": jnp.ones(2), "head": jnp.ones(2)}


def realised_divisor(grads, batch, mask):
  del batch
  return grads * len(mask) / jnp.sum(~mask).astype(grads.dtype)


# Gradients that are not of one unit, or not all of one.


def tied(w, x):
  """Used as an embedding and as the last layer, which pull the same way."""
  return w @ x + 2 * (w @ x)


def tied_uses_counted_once(_, stacked, mask):
  """The norm is that of one use of the two; the sum has both."""
  return jnp.sum(own_weights(stacked / 3) * present(stacked, mask), axis=0)


def batch_losses(normalise):
  def fun(w, xs):
    return jnp.square(normalise(jnp.nan_to_num(xs)) @ w)

  return fun


def of_batch(losses):
  """Gradients of each loss of a batch, then the library's clip and sum."""

  def sum_fn(params, batch, mask, state, key):
    del key
    stacked = jax.jacrev(losses)(params, batch)
    grads = PerExampleGrads.from_stacked(stacked, mask)
    clipped, _ = aggregation.clip(FLAT, grads, state)
    return aggregation.sum_clipped(clipped), ()

  return lambda: subject(sum_fn)


def batch_norm(xs):
  centred = xs - xs.mean(0, keepdims=True)
  return centred / (xs.std(0, keepdims=True) + 1e-3)


def layer_norm(xs):
  deviation = xs.std(1, keepdims=True)
  return (xs + 1 - xs.mean(1, keepdims=True)) / (deviation + 1e-3)


def clipped_at_every_iterate(_, stacked, mask):
  """Momentum that scales at every iterate and then sums."""
  rows = own_weights(stacked) * present(stacked, mask)
  return sum(decay * rows.sum(0) for decay in (1.0, 0.5, 0.25))


WINDOW = inner_momentum.Window(jnp.zeros((2, 2)), jnp.array([1.0, 0.5, 0.25]))


# Bounds of rules and samplers.


@_rule.rule()
class NoiseOfC(_automatic.PSASC):
  """PSASC with noise sigma C: its bound is C/s."""

  def noise_shape(self, state):
    del state
    return jnp.asarray(self.l2_clip_norm, jnp.float32).reshape(1)


@_rule.rule("by", "noise_allocation")
class BitsFromZero(_adaptive_quantile.AdaptiveQuantile):
  """Quantile bits 0 and 1, which move a sum by 1, noised as if by 1/2."""

  def statistic(self, norms, state):
    return super().statistic(norms, state) + 0.5


class FactorOne(Buckets):
  """As if a bucket appeared or disappeared as a whole."""

  def sensitivity_factor(self, relation):
    del relation
    return 1.0


def in_buckets(sampler):
  bucket = np.array([[1.0, 0.0], [-100.0, 0.0]], np.float32)
  return lambda: subject(
    jaxdp.clipped_sum(units.mean_over_records(linear), FLAT),
    batch=np.stack([bucket, bucket]),
    sampler=sampler(
      num_examples=4, expected_batch_size=2, num_buckets=2, bucket_size=2
    ),
  )


# Rounding.


def among_many(dtype):
  """Two units, in a sum of a thousand others that is returned in a dtype."""
  others = jnp.tile(jnp.array([1.0, 0.0]), (1023, 1))

  def sum_fn(params, batch, mask, state, key):
    rows = jnp.concatenate([others, batch])
    mask = jnp.concatenate([jnp.zeros(len(others), bool), mask])
    summed, info = jaxdp.clipped_sum(linear, FLAT)(
      params, rows, mask, state, key
    )
    grads = summed.grads.astype(dtype).astype(jnp.float32)
    return dataclasses.replace(summed, grads=grads), info

  return lambda: subject(sum_fn, batch=ROWS[:2] * 4, sampler=FullBatch(2))


def unguarded(gram_x, gram_y, lost=0.0):
  """A Gram form as it is, without what rounding may have taken."""
  del lost
  return jnp.maximum(jnp.sum(gram_x * gram_y, axis=(1, 2, 3)), 0)


def products(guard):
  """The factored engine on inputs and cotangents that cancel."""
  rng = np.random.default_rng(0)
  x = 1 + 1e-5 * rng.standard_normal((4, 10, 30), np.float32)
  y = rng.standard_normal((4, 10, 30), np.float32)
  y -= y.mean(1, keepdims=True)
  rule = clipping.flat(1e-4)
  fn = jaxdp.clipped_sum(
    lambda w, e: jnp.sum((e["x"] @ w) * e["y"]), rule, "factored"
  )

  def sum_fn(*args):
    with mock.patch.object(_norms, "_guarded", guard):  # while it is traced
      return fn(*args)

  return lambda: subject(
    sum_fn,
    rule,
    batch={"x": x, "y": y},
    params=jnp.zeros((30, 30)),
  )


ERRORS = (
  Planted(
    "clipping after averaging",
    GREY_BOX,
    GENUINE,
    made_by_hand(clipped_after_averaging),
  ),
  Planted(
    "per-batch instead of per-example clipping",
    GREY_BOX,
    GENUINE,
    made_by_hand(clipped_per_batch),
  ),
  Planted("NaN leaking", GREY_BOX, GENUINE, made_by_hand(nan_leaks)),
  Planted(
    "realised batch size as divisor",
    GREY_BOX,
    GENUINE,
    changed(realised_divisor),
  ),
  Planted(
    "tied weights counted once",
    GREY_BOX,
    genuine(tied),
    made_by_hand(tied_uses_counted_once, tied),
  ),
  Planted(
    "padding rows counted", GREY_BOX, GENUINE, made_by_hand(padding_counts)
  ),
  Planted(
    "BatchNorm coupling",
    GREY_BOX,
    of_batch(batch_losses(layer_norm)),
    of_batch(batch_losses(batch_norm)),
  ),
  Planted(
    "adaptive threshold from un-noised norms",
    GREY_BOX,
    genuine(rule=clipping.adaptive_quantile(1.0)),
    made_by_hand(threshold_of_the_batch),
  ),
  Planted(
    "every layer clipped to the whole norm",
    GREY_BOX,
    genuine(of_two_layers, clipping.per_layer(1.0), params=LAYERS),
    made_by_hand(
      each_layer_to_the_whole_norm,
      of_two_layers,
      clipping.per_layer(1.0),
      params=LAYERS,
    ),
  ),
  Planted(
    "momentum scaled before the sum",
    GREY_BOX,
    genuine(inner_momentum.over_iterates(linear, WINDOW)),
    made_by_hand(clipped_at_every_iterate),
  ),
  Planted(
    "PSASC with noise sigma C",
    GREY_BOX,
    genuine(rule=clipping.psasc(1.0, s=0.5)),
    genuine(rule=NoiseOfC(1.0, r=0.1, s=0.5)),
  ),
  Planted(
    "quantile bits from zero",
    GREY_BOX,
    genuine(rule=clipping.adaptive_quantile(1.0, budget_fraction=0.5)),
    genuine(rule=BitsFromZero(1.0, budget_fraction=0.5)),
  ),
  Planted(
    "factor one for buckets",
    GREY_BOX,
    in_buckets(Buckets),
    in_buckets(FactorOne),
  ),
  Planted(
    "a weighted sum returned in bfloat16",
    GREY_BOX,
    among_many(jnp.float32),
    among_many(jnp.bfloat16),
    rounding=True,
  ),
  Planted(
    "a Gram norm that cancels",
    GREY_BOX,
    products(_norms._guarded),
    products(unguarded),
    rounding=True,
  ),
)
