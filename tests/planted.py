"""How planted errors are caught: general checks, each a number.

A check takes a subject and says how far it is from what is declared, in units
of what is allowed: at most 1 for what is right. None knows what was planted.
`planted_sums.py`, `planted_releases.py` and `planted_accounts.py` have the
subjects; `test_planted_errors.py` runs a genuine and a planted one each.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import dp_accounting
import jax.numpy as jnp
import numpy as np

from jaxdp import accounting, audit
from tests import test_mechanism, test_sampling

_CHUNK = 1024  # noise values of one stream
_DEVIATIONS = 5.5  # as in `test_sampling.py`
ROUNDING = 1e-4


class Planted(NamedTuple):
  """An error: both subjects are made when asked for."""

  name: str
  check: str  # in CHECKS
  genuine: Callable[[], Any]
  planted: Callable[[], Any]
  rounding: bool = False  # run once more on optimised code


def grey_box(subject):
  """Arguments of `audit.sensitivity`: how far one unit moves the sum."""
  return audit.sensitivity(**subject).ratio


def black_box(mechanism):
  """What 2,000 releases of a canary show, over what is claimed."""
  result = audit.mechanism(mechanism, delta=1e-5, trials=2000)
  return result.epsilon_lower / result.epsilon_claimed


def released_noise(streams):
  """Pairs (noise, declared stddev): scale and independence of stretches."""
  rows = []
  for values, stddev in streams:
    values = np.asarray(values, np.float64).ravel() / float(stddev)
    rows.append(values[: len(values) // _CHUNK * _CHUNK].reshape(-1, _CHUNK))
  noise = np.concatenate(rows)
  means = np.abs(noise.mean(1)) * math.sqrt(_CHUNK)
  scales = np.abs(np.mean(noise**2, axis=1) - 1) / math.sqrt(2 / _CHUNK)
  pairs = np.abs(noise @ noise.T)[np.triu_indices(len(noise), 1)]
  pairs = pairs / math.sqrt(_CHUNK)
  return max(means.max(), scales.max(), pairs.max()) / _DEVIATIONS


def tails(draw):
  """How often far values repeat: where a tail ends, few values are left.

  Of the 130 of 2^22 that lie beyond 4 standard deviations on one side, two are
  equal floats in one sample of about 60.
  """
  values = np.asarray(draw((1 << 22,)))
  far = values[np.abs(values) > 4]
  expected = len(values) * 6.334e-5  # of both tails
  assert abs(len(far) - expected) < _DEVIATIONS * math.sqrt(expected)
  return (len(far) - len(np.unique(far))) / 3


def program(subject):
  """(fun, args): how often the key SECRET stands in the program's text."""
  fun, args = subject
  return 2 * len(test_mechanism.mentions_of_the_key(fun.lower(*args).as_text()))


def refusal(subject):
  """(call, words): infinite if it raises an error that says them."""
  call, words = subject
  try:
    call()
  except (TypeError, ValueError) as error:
    return math.inf if words in str(error) else 0.0
  return 0.0


def event_and_batches(subject):
  """(event, batches, N): Poisson samples of the event's rate and number?"""
  event, batches, num_examples = subject
  release, count = _poisson(event)
  if len(batches) != count:
    return math.inf
  included = np.zeros((count, num_examples), bool)
  for step, batch in enumerate(batches):
    included[step, test_sampling.rows(batch)] = True
  q = release.sampling_probability
  if not 0 < included.mean() < 1:
    return math.inf
  scores = [
    test_sampling.rate_score(included, q),
    test_sampling.evenness_score(included, q, q * (1 - q)),
    test_sampling.size_variance_score(included, q),
  ]
  if included.any(0).all() and not included.all(0).any():
    steps = test_sampling.correlation_score(included[:-1], included[1:])
    scores.append(steps.max())
  return max(scores) / _DEVIATIONS


def _poisson(event):
  """The one kind of release in an event, and how many there are."""
  if isinstance(event, dp_accounting.ComposedDpEvent):
    (event,) = event.events
  assert isinstance(event.event, dp_accounting.PoissonSampledDpEvent)
  return event.event, event.count


def event_and_release(subject):
  """(mechanism, event): epsilon of all that a step releases, over the claim.

  The multiplier is that of the worst unit, measured in units of the noise.
  """
  mechanism, event = subject
  rule, sampler, steps, delta = mechanism.rule, mechanism.sampler, 200, 1e-5
  norms = jnp.geomspace(1e-3, 1e3, 200)[None]
  state = rule.init(jnp.zeros(3))
  parts = [norms * rule.weights(norms, state), rule.statistic(norms, state)]
  moved = jnp.concatenate(parts) / mechanism.stddev(state)[:, None]
  worst = float(jnp.max(jnp.linalg.norm(moved, axis=0)))
  released = sampler.dp_event(1 / worst, steps, mechanism.relation)
  spent, claimed = (
    accounting.epsilon(x, "pld", mechanism.relation, delta)
    for x in (released, event(steps))
  )
  return spent / claimed


CHECKS = {
  "grey-box check": grey_box,
  "black-box audit": black_box,
  "scale and independence of the released noise": released_noise,
  "tails of the noise": tails,
  "search of the program": program,
  "refusal": refusal,
  "event against batches": event_and_batches,
  "event against releases": event_and_release,
}
