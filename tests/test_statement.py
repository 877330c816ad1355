"""The assumptions of a statement: those of the run at hand, and only those."""

import dataclasses
import json

import numpy as np
import optax
import pytest

import jaxdp
from jaxdp import clipping, sampling, units
from jaxdp.accounting import PrivacyStatement, RunFacts
from tests import toy

N = 1000
RELATION = jaxdp.NeighboringRelation
POISSON = sampling.Poisson(num_examples=N, expected_batch_size=50)
WHOLE = sampling.Poisson(
  num_examples=N, expected_batch_size=50, max_batch_size=None
)
FIXED = sampling.FixedSize(num_examples=N, batch_size=50)
SHUFFLED = sampling.Shuffled(num_examples=N, batch_size=50)
FULL = sampling.FullBatch(num_examples=N)
BUCKETS = sampling.Buckets(
  num_examples=N, expected_batch_size=60, num_buckets=10
)
# By ``fit``, and nothing known beyond; ``experiment`` knows that both are so.
FIT = RunFacts(own_loop=False, part_frozen=False, release="last")
CONFIG = dataclasses.replace(FIT, params_given=False, preprocessed=False)

CHANGES: dict[str, dict] = {
  "users": {"rows_are_users": True},
  "frozen": {"part_frozen": True},
  "public": {"public_batch": True},
  "held out": {"held_out": True},
  "evaluated": {"evaluated": True},
  "diagnostics": {"diagnostics": True},
  "average": {"release": "average"},
  "budget": {"ended_by": "max_epsilon"},
  "study": {"num_runs": 1234},
  "selected": {"selection": "K was drawn from a law"},
}

# By a piece of each sentence, the runs that it applies to; see ``RUNS``.
ALWAYS = {"Side channels", "Floating point", "generators are taken as random"}
RUNS = {
  "fit": (POISSON, {}, "os", FIT),
  "uncut": (WHOLE, {}, "os", FIT),
  "config": (POISSON, {}, "os", CONFIG),
  "own loop": (POISSON, {}, "os", RunFacts()),
  "named": (POISSON, {}, "named", CONFIG),
  "replace": (
    POISSON,
    {"neighboring_relation": RELATION.REPLACE_ONE},
    "os",
    CONFIG,
  ),
  "zero-out": (
    POISSON,
    {"neighboring_relation": RELATION.REPLACE_SPECIAL},
    "os",
    CONFIG,
  ),
  "fixed size": (FIXED, {}, "os", CONFIG),
  "shuffled": (SHUFFLED, {}, "os", CONFIG),
  "full batch": (FULL, {}, "os", CONFIG),
  "buckets": (BUCKETS, {}, "os", CONFIG),
  **{
    name: (POISSON, {}, "os", dataclasses.replace(CONFIG, **changes))
    for name, changes in CHANGES.items()
  },
}
AMPLIFIED = set(RUNS) - {"shuffled", "full batch"}
APPLIES = {
  "enters every step independently with probability 0.05": AMPLIFIED
  - {"fixed size", "buckets"},
  "cut at random to at most 93": AMPLIFIED - {"fixed size", "buckets", "uncut"},
  "draws its bucket independently": {"buckets"},
  "uniformly random subset of 50 of 1000": {"fixed size"},
  "No amplification is claimed for shuffling": {"shuffled"},
  "every step uses every example": {"full batch"},
  "number of examples is public": set(RUNS)
  - {"replace", "zero-out", "fixed size", "shuffled"},
  "One example is one row": set(RUNS) - {"buckets", "users"},
  "One record is one row": {"buckets"},
  "no user has two rows": {"users"},
  "Initial parameters": {"fit", "uncut", "own loop"},
  "Preprocessing is public": {"fit", "uncut", "own loop"},
  "Which parameters train": {"own loop", "frozen"},
  "Public batches": {"public"},
  "Rows that do not train": {"held out"},
  "Tuning is not charged: if": set(RUNS) - {"study", "selected"},
  "Tuning is not charged: 1,234 runs of this study saw this data": {"study"},
  "Selection is charged: K was drawn": {"selected"},
  "number of steps was fixed": set(RUNS) - {"budget"},
  "max_epsilon ended the run": {"budget"},
  "Released are the last parameters": set(RUNS) - {"own loop", "average"},
  "averaged over the steps": {"average"},
  "chose which step is released": {"own loop"},
  "the batch that this sampler drew": {"own loop"},
  "Only what was noised": {"own loop"},
  "Diagnostics are kept back": {"diagnostics"},
  "Evaluations are exact": {"evaluated"},
  "sees the seeds of the noise and the batches": AMPLIFIED - {"named"},
  "sees the seeds of the noise, which": {"shuffled", "full batch"},
  "they serve no other run": {"own loop"},
  "knows the named seed": {"named"},
  "Philox": AMPLIFIED,
  **{text: set(RUNS) for text in ALWAYS},
}


def statement_of(run):
  sampler, options, seed_policy, facts = RUNS[run]
  mechanism = jaxdp.Mechanism(clipping.flat(1.0), sampler, 5.0, **options)
  return mechanism.privacy(3, 1e-5, seed_policy=seed_policy, facts=facts)


@pytest.mark.parametrize("run", RUNS)
def test_a_statement_has_the_assumptions_of_its_run_and_no_others(run):
  sentences = statement_of(run).assumptions
  stated = {text for text in APPLIES if any(text in s for s in sentences)}
  assert stated == {text for text, runs in APPLIES.items() if run in runs}
  # No sentence is unknown to the table.
  assert all(any(text in s for text in stated) for s in sentences)
  assert max(map(len, sentences)) < 260


def test_every_fact_moves_a_statement():
  """So that a new fact without a sentence, or without a row here, fails."""
  base = statement_of("own loop").assumptions
  values = {"release": "last", "ended_by": "max_epsilon", "num_runs": 2}
  values["selection"] = "by chance"
  for field in dataclasses.fields(RunFacts):
    value = values.get(field.name, not field.default)
    facts = RunFacts(**{field.name: value})
    mechanism = jaxdp.Mechanism(clipping.flat(1.0), POISSON, 5.0)
    assert mechanism.privacy(3, 1e-5, facts=facts).assumptions != base


def test_what_claims_nothing_assumes_nothing():
  statement = jaxdp.Mechanism(clipping.no_clipping(), POISSON, 0.0).privacy(
    3, 1e-5
  )
  assert statement.assumptions == ()
  assert "Assumptions" not in str(statement)


def test_a_rule_that_follows_public_data_says_so_by_itself():
  rule = clipping.adaptive_layerwise(1.0)
  statement = jaxdp.Mechanism(rule, POISSON, 5.0).privacy(3, 1e-5)
  assert "Public batches" in str(statement)


def test_statements_written_before_are_read():
  """Sentences are text, and what is read is what was written."""
  fields = json.loads(statement_of("fit").to_json())
  fields["assumptions"] = ["The number of examples is public."]
  old = PrivacyStatement.from_json(json.dumps(fields))
  assert old.assumptions == ("The number of examples is public.",)
  assert PrivacyStatement.from_json(old.to_json()) == old


# What ``fit`` sees.


def fit(dataset=None, loss_fn=toy.loss_fn, **options):
  sampler = toy.full_batch()
  _, history = jaxdp.fit(
    loss_fn,
    toy.params(),
    toy.dataset() if dataset is None else dataset,
    toy.mechanism(sampler),
    optax.sgd(0.1),
    num_steps=4,
    delta=toy.DELTA,
    progress=False,
    **options,
  )
  return " ".join(history.statement.assumptions)


PLAIN = [
  "Initial parameters",
  "Preprocessing is public",
  "number of steps was fixed",
  "the last parameters",
]
SPECIAL = [
  "Which parameters train",
  "Evaluations are exact",
  "Diagnostics are kept back",
  "averaged over the steps",
  "max_epsilon ended the run",
  "no user has two rows",
  "knows the named seed",
  "Only what was noised",
  "Rows that do not train",
]


@pytest.mark.slow
def test_fit_states_what_it_saw():
  plain = fit()
  assert all(text in plain for text in PLAIN)
  assert not [text for text in SPECIAL if text in plain]
  cost = toy.mechanism(toy.full_batch()).epsilon(2, toy.DELTA)
  special = fit(
    trainable=lambda name, leaf: True,
    eval_fn=lambda params: {},
    diagnostics=True,
    ema_decay=0.9,
    max_epsilon=cost,
    seed=1,
    facts=RunFacts(params_given=False, preprocessed=False, held_out=True),
  )
  missing = [text for text in SPECIAL if text not in special]
  assert missing == ["no user has two rows", "Only what was noised"]
  assert not [text for text in PLAIN if text in special]


def test_fit_sees_rows_that_are_users():
  data = toy.dataset()
  records = units.Records(
    {name: np.stack([x, x], axis=1) for name, x in data.items()},
    np.zeros((toy.NUM_EXAMPLES, 2), bool),
  )
  text = fit(records, units.mean_over_records(toy.loss_fn))
  assert "no user has two rows" in text
  assert "One example is one row" not in text
