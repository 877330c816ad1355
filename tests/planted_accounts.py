"""Batches and releases that are not what is charged, and what is refused.

What a subject is, its check in `planted.py` says.
"""

import functools
import math

import dp_accounting
import jax
import jax.numpy as jnp
import optax

import jaxdp
from jaxdp import clipping, sampling
from tests import toy
from tests.planted import Planted
from tests.planted_releases import FLAT, KEY, MECHANISM, UNITS, linear

EVENT = "event against batches"
REFUSAL = "refusal"

# Events and batches.

STEPS, N, B = 2000, 80, 20
POISSON = sampling.Poisson(
  num_examples=N, expected_batch_size=B, max_batch_size=None
)


def executed(sampler, said):
  """The sampler's batches, and the event of the one that they are said of."""

  def make():
    batches = [sampler.sample(7, step) for step in range(STEPS)]
    claimed = jaxdp.Mechanism(FLAT, said, 1.0).dp_event(STEPS)
    return claimed, batches, N

  return make


POISSON_BATCHES = executed(POISSON, POISSON)


class WithoutEmpty(sampling.Poisson):
  """An empty batch is skipped, and another takes its place."""

  def sample(self, seed, step):
    batches = (
      super(WithoutEmpty, self).sample(seed + i, step) for i in range(100)
    )
    return next(b for b in batches if not b.is_padding_example.all())


RARE, NEVER_EMPTY = (
  kind(num_examples=N, expected_batch_size=2, max_batch_size=None)
  for kind in (sampling.Poisson, WithoutEmpty)
)


def resumed_ledger(forgets):
  """1,200 steps, of which the last 800 ran again: other keys and batches."""

  def make():
    ledger = jaxdp.Mechanism(FLAT, POISSON, 1.0).ledger()
    ledger.charge(1200)
    if not forgets:
      ledger.begin_incarnation(first_step=400)
    ledger.charge(800, first_step=400)
    batches = [POISSON.sample(7, step) for step in range(1200)]
    batches += [POISSON.sample(8, step) for step in range(800)]
    return ledger.dp_event(), batches, N

  return make


QUANTILE = jaxdp.Mechanism(
  clipping.adaptive_quantile(1.0, budget_fraction=0.5),
  sampling.Poisson(
    num_examples=1000, expected_batch_size=20, max_batch_size=None
  ),
  1.0,
)


def amplified_apart(num_steps):
  """Gradient and bits each as a release of its own sample."""
  parts = [
    QUANTILE.sampler.dp_event(
      QUANTILE.sigma / math.sqrt(share), num_steps, QUANTILE.relation
    )
    for share in (0.5, 0.5)
  ]
  return dp_accounting.ComposedDpEvent(parts)


# Refusals.

STACKED = {"a": jnp.zeros((UNITS, 3))}
POISSON_OF_FOUR = MECHANISM.replace(
  sampler=sampling.Poisson(
    num_examples=8, expected_batch_size=2, max_batch_size=UNITS
  )
)


def release(mechanism, rule=FLAT, mask=None):
  def call():
    params = {"a": jnp.zeros(3)}
    rows = jnp.zeros((UNITS, 3))
    fn = jax.jit(jaxdp.clipped_sum(linear, rule))
    summed, _ = fn(params, rows, mask)
    jax.jit(mechanism.release)(summed, mechanism.init(params, KEY))

  return call


def update(make):
  """One update by an optax chain on stacked gradients."""

  def call():
    tx = make()
    jax.jit(tx.update)(STACKED, tx.init({"a": jnp.zeros(3)}))

  return call


@functools.cache
def plain_fit():
  toy.fit()


def with_statistics(params, example):
  mean = example["x"] @ params["kernel"]
  return toy.loss_fn(params, example), {"batch_stats": {"mean": mean}}


def injected():
  return optax.inject_hyperparams(jaxdp.clip_per_example)(rule=FLAT)


def refused(genuine, planted, words):
  return (lambda: (genuine, words)), (lambda: (planted, words))


ERRORS = (
  Planted(
    "Poisson accounting over shuffled batches",
    EVENT,
    POISSON_BATCHES,
    executed(sampling.Shuffled(num_examples=N, batch_size=B), POISSON),
  ),
  Planted(
    "q off by one batch",
    EVENT,
    POISSON_BATCHES,
    executed(
      POISSON,
      sampling.Poisson(
        num_examples=N + B, expected_batch_size=B, max_batch_size=None
      ),
    ),
  ),
  Planted(
    "empty batches skipped",
    EVENT,
    executed(RARE, RARE),
    executed(NEVER_EMPTY, RARE),
  ),
  Planted(
    "repeated steps not charged",
    EVENT,
    resumed_ledger(forgets=False),
    resumed_ledger(forgets=True),
  ),
  Planted(
    "two separately amplified releases",
    "event against releases",
    lambda: (QUANTILE, QUANTILE.dp_event),
    lambda: (QUANTILE, amplified_apart),
  ),
  Planted(
    "N from the test set",
    REFUSAL,
    *refused(
      plain_fit,
      lambda: toy.fit(mechanism=toy.mechanism(toy.full_batch(10))),
      "Make the sampler with num_examples=48",
    ),
  ),
  Planted(
    "a forgotten padding mask",
    REFUSAL,
    *refused(
      release(POISSON_OF_FOUR, mask=jnp.zeros(UNITS, bool)),
      release(POISSON_OF_FOUR),
      "Pass is_padding_example=",
    ),
  ),
  Planted(
    "noise for the clip norm of another rule",
    REFUSAL,
    *refused(
      release(MECHANISM),
      release(MECHANISM, clipping.flat(5.0)),
      "Use one rule for both",
    ),
  ),
  Planted(
    "leaves masked out of the release",
    REFUSAL,
    *refused(
      update(lambda: MECHANISM.aggregate(KEY)),
      update(lambda: optax.masked(MECHANISM.aggregate(KEY), {"a": False})),
      "mask after the release",
    ),
  ),
  Planted(
    "a clip norm among mutable hyperparameters",
    REFUSAL,
    *refused(
      update(lambda: jaxdp.clip_per_example(FLAT)),
      injected,
      "Inject after the release",
    ),
  ),
  Planted(
    "batch statistics in the result",
    REFUSAL,
    *refused(
      plain_fit,
      lambda: toy.fit(loss_fn=with_statistics, has_aux=True),
      "take the statistics for evaluation from public examples",
    ),
  ),
)
