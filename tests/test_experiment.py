"""From a config to a run, and every mistake in a config named before it."""

import copy
import json
import runpy

import jax
import numpy as np
import pytest

import jaxdp
from jaxdp import experiment, optimizers, report

ALL = ["digits", "dp_psasc", "mnist", "cifar10", "imdb"]


def config_of(name="digits", **changes):
  """A config as a dict; `privacy__delta=0.1` sets one of its values."""
  config = runpy.run_path(f"configs/{name}.py")["get_config"]()
  values = copy.deepcopy(config.to_dict())
  for path, value in changes.items():
    section, _, field = path.partition("__")
    if field:
      values[section][field] = value
    else:
      values[section] = value
  return values


def small(**changes):
  """Digits in a few seconds: few features, closed-form accounting."""
  changes = {
    "model__num_features": 100,
    "privacy__target_epsilon": None,
    "privacy__max_epsilon": None,
    "privacy__noise_multiplier": 20.0,
    "training__num_steps": 20,
    "training__eval_every": 10,
    "training__checkpoint_every": 10,
    "training__ema_decay": None,
    "training__seed": 3,
    **changes,
  }
  sampler = changes.pop("sampler", {"name": "FullBatch"})
  return config_of(sampler=sampler, **changes)


def read(config):
  return experiment.ExperimentConfig.from_config_dict(config)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
  """A finished run of digits."""
  workdir = tmp_path_factory.mktemp("experiment") / "digits"
  config = small()
  return config, workdir, *experiment.train(config, workdir, progress=False)


def test_training_a_config_reaches_a_digit_reader(digits):
  _, workdir, state, history = digits
  assert history.metrics[-1]["test_accuracy"] > 0.6
  assert history.ledger.num_steps == 20
  assert history.statement.seed_policy == "named"
  # Models and preprocessing of configs are known, and need no assumption.
  text = str(history.statement)
  assert "Evaluations are exact" in text
  for what in ("Initial parameters", "Preprocessing", "Rows that do not train"):
    assert what not in text
  kernel = jax.tree.leaves(state.params)[0]
  assert kernel.sharding.device_set == set(jax.devices())
  written = json.loads((workdir / "config.json").read_text())
  assert written["privacy"]["noise_multiplier"] == 20.0


def test_evaluation_says_what_training_said(digits):
  config, workdir, _, history = digits
  result = experiment.evaluate(config, workdir)
  last = history.metrics[-1]
  assert result["accuracy"] == last["test_accuracy"]
  assert result["loss"] == pytest.approx(last["test_loss"], rel=1e-5)
  of_release = experiment.evaluate(config, workdir / "release", "train")
  assert of_release["accuracy"] != result["accuracy"]


def test_the_same_config_again_does_not_train(digits):
  config, workdir, _, history = digits
  _, again = experiment.train(config, workdir, progress=False)
  assert again.metrics == history.metrics
  assert again.statement == history.statement


def test_another_config_is_refused_in_the_same_workdir(digits):
  config, workdir, _, _ = digits
  config = copy.deepcopy(config)
  config["optimizer"]["learning_rate"] = 0.1
  with pytest.raises(
    ValueError, match=r"optimizer.learning_rate was .* now 0.1"
  ):
    experiment.train(config, workdir, progress=False)


def test_a_run_that_was_not_finished_cannot_be_evaluated(tmp_path):
  with pytest.raises(FileNotFoundError, match="Finish the run first"):
    experiment.evaluate(small(), tmp_path)


def test_a_config_without_a_rule_trains_without_privacy(tmp_path):
  config = small(rule__name="none", privacy__max_epsilon=3.0)
  _, history = experiment.train(config, tmp_path, progress=False)
  assert history.statement is None
  assert history.metrics[-1]["test_accuracy"] > 0.6
  page = report.write_report(tmp_path).read_text()
  assert "NOT private" in page
  with pytest.raises(ValueError, match="epsilon is infinite"):
    experiment.plan(config)


@pytest.mark.parametrize("name", ALL)
def test_every_config_is_read(name):
  config = read(config_of(name))
  assert config.make_rule().bound < np.inf
  config.make_optimizer().init({"w": np.zeros(3, np.float32)})
  sampler = config.make_sampler(60_000)
  assert sampler.num_examples == 60_000
  assert config.training["seed"] is None
  assert read(config.to_dict()) == config


def test_schedules_of_a_config_reach_the_mechanism():
  config = small(
    rule__schedule=((0, 1.0), (10, 0.5)),
    privacy__noise_schedule=((0, 1.0), (5, 2.0)),
  )
  mechanism = read(config).make_mechanism(1437)
  assert mechanism.rule.levels == ((0, 1.0), (10, 0.5))
  assert mechanism.rule.base == jaxdp.clipping.flat(0.5)
  assert mechanism.noise_schedule == jaxdp.PiecewiseConstant({0: 1.0, 5: 2.0})


def test_a_target_in_the_config_sets_the_noise():
  config = small(privacy__noise_multiplier=None, privacy__target_epsilon=2.0)
  mechanism = read(config).make_mechanism(1437)
  epsilon = mechanism.epsilon(20, config["privacy"]["delta"])
  assert 0.999 * 2.0 <= epsilon <= 2.0
  plan = experiment.plan(config)
  assert plan.epsilon == epsilon
  assert plan.found == "noise_multiplier"
  assert plan.num_examples == 1437
  assert experiment.plan(config, num_examples=9).num_examples == 9


def test_the_relation_of_the_config_is_that_of_the_mechanism():
  config = small(privacy__neighboring_relation="REPLACE_ONE")
  mechanism = read(config).make_mechanism(1437)
  assert mechanism.relation == jaxdp.NeighboringRelation.REPLACE_ONE


def learning_rates(config, steps):
  """How far plain SGD moves against a gradient of one, step by step."""
  tx = read(config).make_optimizer()
  params = {"w": np.zeros((), np.float32)}
  state = tx.init(params)
  moves = []
  with jax.numpy_dtype_promotion("standard"):  # optax's cosine needs it
    for _ in range(steps):
      updates, state = tx.update({"w": np.ones((), np.float32)}, state, params)
      moves.append(-float(updates["w"]))
  return moves


def test_schedules_are_those_of_optax():
  base = {
    "optimizer__learning_rate": 0.5,
    "optimizer__momentum": None,
    "training__num_steps": 8,
  }
  assert learning_rates(small(**base), 3) == [0.5] * 3
  warm = learning_rates(small(**base, optimizer__warmup_steps=4), 6)
  np.testing.assert_allclose(warm, [0, 0.125, 0.25, 0.375, 0.5, 0.5])
  cosine = learning_rates(small(**base, optimizer__schedule="cosine"), 9)
  expected = [0.25 * (1 + np.cos(np.pi * t / 8)) for t in range(9)]
  np.testing.assert_allclose(cosine, expected, atol=1e-6)


def test_the_corrected_adam_is_an_optimizer_of_configs():
  config = small(optimizer__name="adam_bc")
  config["optimizer"].pop("momentum")
  tx = read(config).make_optimizer()
  state = tx.init({"w": np.zeros(3, np.float32)})
  assert isinstance(state[0], optimizers.ScaleByAdamBcState)


def test_inner_momentum_is_read_from_a_config(tmp_path):
  window = {"num_iterates": 3, "decay": 0.5}
  config = small(training__num_steps=10, training__inner_momentum=window)
  state, _ = experiment.train(config, tmp_path / "run", progress=False)
  (past,) = jax.tree.leaves(state.past_params)
  (kernel,) = jax.tree.leaves(state.params)
  assert past.shape == (2, *kernel.shape)
  assert (np.asarray(past[0]) != np.asarray(past[1])).any()


def test_public_rows_are_not_trained_on():
  config = read(small(data__public_examples=37, data__num_examples=1000))
  private, public, rest = experiment.load_train(config)
  assert len(rest["label"]) == 400
  assert len(private["label"]) == 1000
  assert len(public["label"]) == 37
  rows = [{x.tobytes() for x in part["image"]} for part in (private, public)]
  # Digits holds a few images twice.
  assert len(rows[0] & rows[1]) <= 2
  again = experiment.load_train(config).private
  np.testing.assert_array_equal(again["image"], private["image"])
  whole, *none = experiment.load_train(read(small()))
  assert (len(whole["label"]), none) == (1437, [None, None])


@pytest.mark.parametrize("sampler", ["FullBatch", "Buckets"])
def test_a_rule_that_follows_public_data_trains_from_a_config(
  sampler, tmp_path
):
  config = small(
    data__public_examples=37,
    training__public_every=5,
    training__num_steps=10,
    training__checkpoint_every=10,
  )
  config["rule"] = {"name": "adaptive_layerwise", "l2_clip_norm": 1.0}
  if sampler == "Buckets":
    config["sampler"] = {
      "name": sampler, "expected_batch_size": 100, "num_buckets": 20,
    }  # fmt: skip
  state, history = experiment.train(config, tmp_path, progress=False)
  assert history.statement.sampler["num_examples"] == 1400
  assert history.ledger.num_steps == 10
  (scale,) = state.mechanism_state.rule_state.scales
  assert float(scale) == 1.0  # one layer is its own largest


def test_views_of_a_config_are_averaged_in_the_unit(tmp_path):
  config = small(
    data__num_views=3, training__num_steps=10, training__checkpoint_every=10
  )
  state, _ = experiment.train(config, tmp_path, progress=False)
  assert int(state.step) == 10
  rows = experiment.load_train(read(config))
  task = experiment.make_task(read(config), rows.private, rows.public)
  assert task.has_key


def test_an_expected_batch_larger_than_the_data_is_refused(tmp_path):
  config = small()
  config["sampler"] = {"name": "Poisson", "expected_batch_size": 2000}
  with pytest.raises(
    ValueError,
    match="expected_batch_size=2000 is larger than num_examples=1437",
  ):
    experiment.train(config, tmp_path, progress=False)


def test_a_missing_data_folder_says_how_to_get_it(tmp_path):
  config = config_of("mnist", data__data_dir=str(tmp_path / "nowhere"))
  with pytest.raises(FileNotFoundError, match=r"(?s)mnist.*JAXDP_DATA_DIR"):
    experiment.train(config, tmp_path / "run", progress=False)
