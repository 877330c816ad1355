"""Mistakes from the literature, planted: each is caught by a general check.

The check that catches what is planted passes what is genuine, in the same test.
`docs/audits.md` says which check that is, in a table that is held equal to the
collection. (Others are planted where their check is: noise at another scale in
`test_noise.py`, a bound that is too small in `test_rule_contract.py`, a sampler
whose rate, sizes or pairs are wrong in `test_sampling.py`, consecutive buckets
in `test_units_of_privacy.py`.)
"""

import functools
import pathlib
import re

import pytest

from tests import planted, planted_accounts, planted_releases, planted_sums

ERRORS = (
  *planted_sums.ERRORS,
  *planted_releases.ERRORS,
  *planted_accounts.ERRORS,
)
MUST_BE_THERE = """
  noise at half scale
  no noise on one leaf
  same key on all leaves
  same key on all steps
  same key on all devices
  noise on the mean at sum scale
  noise on the sum at mean scale
  clipping after averaging
  per-batch instead of per-example clipping
  NaN leaking
  realised batch size as divisor
  Poisson accounting over shuffled batches
  N from the test set
  q off by one batch
  tied weights counted once
  padding rows counted
  BatchNorm coupling
  accumulation noised every microstep
  adaptive threshold from un-noised norms
  resume that replays a key on another batch
  EMA from un-noised parameters
  float32 normal noise with its bounded tails
  a weighted sum returned in bfloat16
  a Gram norm that cancels
  a key closed over into the compiled program
  a forgotten padding mask
  PSASC with noise sigma C
  quantile bits from zero
  two separately amplified releases
  factor one for buckets
  momentum scaled before the sum
  batch statistics in the result
  every layer clipped to the whole norm
  empty batches skipped
  repeated steps not charged
  noise for the clip norm of another rule
  leaves masked out of the release
  a clip norm among mutable hyperparameters
"""


@functools.cache
def measured(check, make):
  """Once for all errors that are planted into the same genuine thing."""
  return planted.CHECKS[check](make())


@pytest.mark.parametrize(
  "error",
  [
    pytest.param(
      error, id=error.name, marks=[pytest.mark.rounding] * error.rounding
    )
    for error in ERRORS
  ],
)
def test_a_planted_error_is_caught_and_the_genuine_thing_passes(error):
  assert measured(error.check, error.genuine) <= 1 + planted.ROUNDING
  assert measured(error.check, error.planted) > 1.2


def test_every_error_that_must_be_there_is_planted_once():
  names = [error.name for error in ERRORS]
  must = [line.strip() for line in MUST_BE_THERE.strip().splitlines()]
  assert sorted(names) == sorted(must)


def test_every_check_catches_something():
  assert {error.check for error in ERRORS} == set(planted.CHECKS)


def test_the_table_of_the_documents_is_the_collection():
  page = pathlib.Path(__file__).parent.parent / "docs" / "audits.md"
  section = page.read_text().split("\n## Planted errors\n")[1].split("\n## ")[0]
  header, *rows = re.findall(r"^\| (.*) \| (.*) \|$", section, re.M)
  assert header == ("planted error", "caught by")
  assert len(rows) == len(set(rows))
  assert set(rows) == {(error.name, error.check) for error in ERRORS}
