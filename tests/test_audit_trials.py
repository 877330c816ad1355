"""Trials with a canary: who is in which batch, and every shipped mechanism."""

import pathlib
import re

import numpy as np
import pytest
from scipy import stats

import jaxdp
from configs.audit import mechanisms
from jaxdp import NeighboringRelation, audit, clipping, experiment, sampling
from jaxdp.audit import _neighbours, _recorded
from tests import toy

NAMES = list(mechanisms.MECHANISMS)
DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs" / "audits.md"
SAMPLERS = {
  "FullBatch": sampling.FullBatch(5),
  "Poisson": sampling.Poisson(num_examples=5, expected_batch_size=2),
  "cut": sampling.Poisson(
    num_examples=5, expected_batch_size=2, max_batch_size=3
  ),
  "FixedSize": sampling.FixedSize(num_examples=5, batch_size=2),
  "Shuffled": sampling.Shuffled(num_examples=5, batch_size=2),
  "Buckets": sampling.Buckets(5, 3, 2),
}
PAIRS = [
  pytest.param(sampler, relation, id=f"{name}-{relation.name}")
  for name, sampler in SAMPLERS.items()
  for relation in sampler.relations
]


def real_rows(batch):
  return batch.indices[~batch.is_padding_example]


@pytest.mark.parametrize("sampler, relation", PAIRS)
def test_neighbours_differ_in_the_canary_alone(sampler, relation):
  """As often as anybody with it, never without; nobody else is touched."""
  steps = 900
  both = [
    _neighbours.draw(sampler, relation, present, 3, 0, steps)
    for present in (True, False)
  ]
  shape = (steps, sampler.batch_size, *sampler.unit_shape)
  assert all(batch.indices.shape == shape for batch in both)
  assert all(batch.indices.dtype == np.int32 for batch in both)
  size = sampler.num_examples + 1
  with_canary, without = (
    np.bincount(real_rows(batch), minlength=size) for batch in both
  )
  share = with_canary[1:-1].mean()
  assert abs(with_canary[0] - share) < 5 * np.sqrt(share)
  assert with_canary[-1] == 0
  assert without[0] == 0
  if relation == NeighboringRelation.REPLACE_ONE:
    assert without[-1] == with_canary[0]
  else:
    assert without[-1] == 0
  if relation != NeighboringRelation.ADD_OR_REMOVE_ONE:
    np.testing.assert_array_equal(with_canary[1:-1], without[1:-1])
  elif sampler != SAMPLERS["cut"]:
    # In a batch that is cut, the others take the canary's place.
    others = without[1:-1].mean()
    assert abs(others - share) < 5 * np.sqrt(share)
  else:
    assert without[1:-1].mean() > share


def test_one_row_less_leaves_everybody_as_likely_as_before():
  for name in ("Poisson", "cut", "Buckets"):
    before = SAMPLERS[name]
    after = _neighbours.without_one(before)
    assert after.num_examples == before.num_examples - 1
    assert after.sampling_probability == pytest.approx(
      before.sampling_probability
    )
    assert after.unit_shape == before.unit_shape
    assert after.batch_size == before.batch_size


def test_recording_changes_no_bit_of_a_step():
  rule = clipping.adaptive_quantile(0.5)
  mechanism = toy.mechanism(rule=rule)
  batch = toy.batch(mechanism.sampler)
  states = []
  for recorded in (mechanism, mechanism.replace(rule=_recorded.Recorded(rule))):
    step = jaxdp.make_train_step(toy.loss_fn, recorded, _recorded.record_mean())
    state, _ = step(step.init(toy.params(), toy.key()), *batch)
    states.append(state)
  plain, kept = states
  toy.assert_same(kept.opt_state, plain.opt_state)
  toy.assert_same(kept.params, toy.params())
  kept_rule = kept.mechanism_state.rule_state
  toy.assert_same(kept_rule.base, plain.mechanism_state.rule_state)
  # The statistic that the rule was told is the one that was kept.
  before = mechanism.init(toy.params(), toy.key()).rule_state
  after = rule.update(before, kept_rule.statistic)
  toy.assert_close(after, kept_rule.base)


def test_trials_are_independent_and_repeatable():
  mechanism = toy.mechanism(sampling.FullBatch(3), 1.0)
  twice = [
    audit.scores(mechanism, num_steps=1, trials=150, seed=0) for _ in range(2)
  ]
  np.testing.assert_array_equal(*twice)
  assert np.shape(twice[0]) == (2, 150)
  assert len(np.unique(twice[0])) == 300


def test_a_statistic_that_is_released_counts():
  """It takes 30 % of 1 / sigma^2: without it, an audit would see 0.84 mu."""
  rule = clipping.adaptive_quantile(1.0, budget_fraction=0.3)
  mechanism = jaxdp.Mechanism(rule, sampling.FullBatch(3), 0.5)
  found = audit.scores(mechanism, num_steps=1, trials=2000, seed=0)
  mu = 2.0
  for sign, scores in zip((1, -1), found, strict=True):
    exact = stats.norm(sign * mu**2 / 2, mu)
    assert stats.kstest(scores, exact.cdf).pvalue > 1e-3


def test_a_canary_that_is_never_sampled_is_an_error():
  sampler = sampling.Poisson(num_examples=10**6, expected_batch_size=1)
  with pytest.raises(ValueError, match="in none of 100 trials' batches"):
    audit.scores(toy.mechanism(sampler), num_steps=1, trials=100, seed=0)


def test_a_mechanism_without_a_claim_is_not_audited():
  with pytest.raises(ValueError, match="claims no finite epsilon"):
    audit.mechanism(toy.mechanism(noise_multiplier=0.0), delta=1e-5)
  with pytest.raises(ValueError, match="trials must be >= 100, got trials=99"):
    audit.mechanism(toy.mechanism(), delta=1e-5, trials=99)


def config_of(name, **changes):
  config = mechanisms.get_config(name)
  config.audit.update(changes)
  return config


def test_every_public_rule_and_sampler_has_an_audit():
  configs = [mechanisms.get_config(name) for name in NAMES]
  rules = {config.rule["name"] for config in configs}
  assert rules == set(clipping.RULES) - {"no_clipping"}
  scheduled = [config for config in configs if "schedule" in config.rule]
  assert len(scheduled) == 1
  assert {config.sampler.name for config in configs} == set(sampling.SAMPLERS)


def test_a_config_is_audited_as_it_says():
  config = config_of("poisson", trials=500, confidence=0.9, seed=4)
  config.privacy.target_epsilon = None
  config.privacy.noise_multiplier = 0.25
  result = experiment.run_audit(config)
  assert result.mechanism == "poisson"
  assert (result.trials, result.confidence, result.seed) == (500, 0.9, 4)
  sampler = dict(config.sampler)
  make = getattr(sampling, sampler.pop("name"))
  mechanism = jaxdp.Mechanism(clipping.flat(1.0), make(**sampler), 0.25)
  assert result.epsilon_claimed == mechanism.epsilon(1, 1e-5)
  assert 1 < result.epsilon_lower < result.epsilon_claimed


def test_mistakes_in_an_audit_of_a_mechanism_are_named():
  with pytest.raises(ValueError, match="mechanism must be one of"):
    mechanisms.get_config("flatt")
  config = config_of("flat")
  config.unit = "user"
  with pytest.raises(ValueError, match=r"config\.unit must be one of"):
    experiment.run_audit(config)
  config = config_of("flat").to_dict()
  config["audit"]["trial"] = 3
  with pytest.raises(ValueError, match="has no 'trial'; did you mean 'trials'"):
    experiment.run_audit(config)
  config = config_of("flat").to_dict()
  config["rule"]["name"] = "none"
  with pytest.raises(ValueError, match="claims nothing"):
    experiment.run_audit(config)


def table():
  """Of docs/audits.md: claimed and least epsilon, least and claimed mu."""
  number = r" ([\d.]+) \|"
  rows = re.findall(
    rf"^\| `([a-z_]+)` \| [^|]* \|{4 * number}", DOCS.read_text(), re.M
  )
  return {name: [float(x) for x in numbers] for name, *numbers in rows}


def test_the_table_of_audits_has_every_mechanism_and_none_above_its_claim():
  assert list(table()) == NAMES
  for claimed, lower, mu_lower, mu_claimed in table().values():
    assert 0 < lower <= claimed <= 4
    assert 0 < mu_lower <= mu_claimed


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_no_audit_exceeds_its_claim(name):
  result = experiment.run_audit(mechanisms.get_config(name))
  assert 3.99 < result.epsilon_claimed <= 4
  assert not result.exceeds
  if result.accountant == "gdp" and result.num_steps == 1:
    # Nothing is left to chance but the noise, so that audits are tight.
    assert result.epsilon_lower > 0.8 * result.epsilon_claimed
  found = (
    result.epsilon_claimed,
    result.epsilon_lower,
    result.mu_lower,
    result.mu_claimed,
  )
  # Rounded, and by counts, of which one more or less may fall elsewhere.
  np.testing.assert_allclose(found, table()[name], rtol=0.01, atol=0.01)
