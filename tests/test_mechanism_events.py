"""What a mechanism is accounted as, and its record."""

import dataclasses
import json
import math

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp
from jaxdp import NeighboringRelation, clipping
from jaxdp.sampling import FixedSize, FullBatch, Poisson, Shuffled

ADD_OR_REMOVE_ONE = NeighboringRelation.ADD_OR_REMOVE_ONE
ZERO_OUT = NeighboringRelation.REPLACE_SPECIAL
REPLACE_ONE = NeighboringRelation.REPLACE_ONE

KEY = jax.random.key(3)
SAMPLERS = {
  "poisson": Poisson(num_examples=100, expected_batch_size=2.5),
  "fixed_size": FixedSize(num_examples=100, batch_size=4),
  "shuffled": Shuffled(num_examples=100, batch_size=4),
  "full_batch": FullBatch(num_examples=4),
}
every_sampler = pytest.mark.parametrize(
  "sampler", SAMPLERS.values(), ids=SAMPLERS
)

PARAMETERS = {"w": jnp.zeros(64), "v": jnp.zeros(64)}
FLAT = clipping.flat(0.7)


def plain(sigma=1.5, rule=FLAT, **kwargs):
  return jaxdp.Mechanism(rule, FullBatch(4), sigma, **kwargs)


@pytest.mark.parametrize("sigma", [-1.0, math.nan, math.inf, np.float32(-1.5)])
def test_noise_that_is_no_number_above_zero_is_refused(sigma):
  with pytest.raises(ValueError, match=f"noise_multiplier={sigma}"):
    plain(sigma)


def test_noise_on_a_rule_without_a_bound_is_refused():
  with pytest.raises(ValueError, match=r"NoClipping bounds nothing.*flat"):
    plain(1.0, clipping.no_clipping())


def test_relations_without_an_accountant_are_refused():
  for sampler, relation in (
    (SAMPLERS["shuffled"], ADD_OR_REMOVE_ONE),
    (SAMPLERS["fixed_size"], ADD_OR_REMOVE_ONE),
    (SAMPLERS["fixed_size"], ZERO_OUT),
  ):
    with pytest.raises(ValueError, match=f"no accountant.*{relation.name}"):
      jaxdp.Mechanism(FLAT, sampler, 1.0, relation)


@every_sampler
def test_relation_is_the_samplers_own_unless_named(sampler):
  mechanism = jaxdp.Mechanism(FLAT, sampler, 1.0)
  assert mechanism.neighboring_relation == sampler.default_relation
  assert mechanism.accountant == sampler.relations[sampler.default_relation]


@pytest.mark.parametrize("rule", [FLAT, clipping.no_clipping()])
def test_training_without_noise_has_infinite_epsilon(rule):
  """METHODS 5.19: never a number."""
  mechanism = plain(0, rule)
  assert not mechanism.is_private
  assert isinstance(mechanism.dp_event(10), dp_accounting.NonPrivateDpEvent)
  assert mechanism.epsilon(num_steps=10, delta=1e-5) == math.inf
  assert mechanism.delta(num_steps=10, epsilon=1.0) == 1
  assert mechanism.privacy(num_steps=10, delta=1e-5).epsilon == math.inf


def test_full_batch_epsilon_is_that_of_the_gaussian_mechanism():
  """METHODS 1.3: sigma 30, T 100 gives 1.271088 exactly, under any relation."""
  for relation in (ADD_OR_REMOVE_ONE, ZERO_OUT, REPLACE_ONE):
    mechanism = plain(30.0, neighboring_relation=relation)
    assert abs(mechanism.epsilon(100, 1e-5) - 1.271088) < 1e-5


def test_event_does_not_depend_on_the_clip_norm_or_the_rule():
  events = {
    repr(plain(2.0, rule).dp_event(7))
    for rule in (FLAT, clipping.normalized(9.0), clipping.per_layer(0.1))
  }
  assert len(events) == 1


def test_noise_that_was_not_chosen_yet_says_what_to_do():
  mechanism = plain(None)
  for use in (
    lambda: mechanism.sigma,
    lambda: mechanism.epsilon(1, 1e-5),
    lambda: mechanism.init(PARAMETERS, KEY),
  ):
    with pytest.raises(ValueError, match="calibrate_noise"):
      use()


def test_replace_gives_a_copy_and_the_mechanism_is_frozen():
  mechanism = plain(1.0)
  assert mechanism.replace(noise_multiplier=2.0).sigma == 2
  assert mechanism.sigma == 1
  with pytest.raises(dataclasses.FrozenInstanceError):
    mechanism.noise_multiplier = 2.0
  with pytest.raises(ValueError, match="noise_multiplier=-1"):
    mechanism.replace(noise_multiplier=-1.0)


@every_sampler
def test_record_of_a_mechanism_is_json(sampler):
  mechanism = jaxdp.Mechanism(FLAT, sampler, 1.5)
  record = json.loads(json.dumps(mechanism.to_dict()))
  again = jaxdp.Mechanism(
    clipping.rule_from_dict(record["rule"]),
    jaxdp.sampling.from_dict(record["sampler"]),
    record["noise_multiplier"],
    NeighboringRelation[record["neighboring_relation"]],
  )
  assert again == mechanism
