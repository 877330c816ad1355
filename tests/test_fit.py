"""What `fit` does: it learns, accounts for every step, and stops in time."""

import dataclasses
import json
import math

import jax
import numpy as np
import optax
import pytest

import jaxdp
from jaxdp import training
from jaxdp.training import _files
from tests import toy


@pytest.fixture(scope="module")
def finished():
  """A run of 12 steps with seeds from the operating system."""
  return toy.fit(eval_fn=toy.accuracy, eval_every=4)


@pytest.fixture(scope="module")
def named():
  """The parameters after 12 steps with seed 5; nothing is written."""
  return toy.fit(seed=5)[0].params


def test_training_learns(named):
  before = toy.accuracy(toy.params())["test_accuracy"]
  assert toy.accuracy(named)["test_accuracy"] > max(0.7, before)


def test_training_makes_all_steps(finished):
  state, history = finished
  assert int(state.step) == 12
  assert not history.stopped_by_budget


def test_training_without_privacy_learns_and_never_shows_an_epsilon(tmp_path):
  state, history = toy.fit(
    tmp_path,
    mechanism=None,
    sampler=jaxdp.sampling.Shuffled(num_examples=48, batch_size=16),
    delta=None,
    diagnostics=True,
    eval_fn=toy.accuracy,
  )
  losses = [row["sensitive"]["train_loss"] for row in history.metrics]
  assert losses[0] > losses[1] > losses[2]
  assert history.metrics[-1]["test_accuracy"] > 0.8
  assert all("epsilon" not in row for row in history.metrics)
  assert history.statement is None
  assert history.ledger is None
  assert state.mechanism_state == ()
  assert not (tmp_path / "ledger.json").exists()
  record = json.loads((tmp_path / "privacy_statement.json").read_text())
  assert record["epsilon"] is None
  text = (tmp_path / "release" / "privacy_statement.txt").read_text()
  assert "NOT private" in text
  assert "NonPrivateDpEvent" in (tmp_path / "dp_event.json").read_text()


def test_rows_say_the_epsilon_of_their_step(finished):
  rows = finished[1].metrics
  assert [row["step"] for row in rows] == [4, 8, 12]
  mechanism = toy.mechanism()
  for row in rows:
    assert row["epsilon"] == mechanism.epsilon(row["step"], toy.DELTA)
    assert row["examples_per_second"] > 0
    assert 0 <= row["test_accuracy"] <= 1
    assert "sensitive" not in row


def test_rows_bound_epsilon_from_above_and_the_last_is_exact():
  sampler = toy.poisson(num_examples=48, max_batch_size=None)
  mechanism = toy.mechanism(sampler, noise_multiplier=2.0)
  _, history = toy.fit(mechanism=mechanism)
  exact = [mechanism.epsilon(row["step"], toy.DELTA) for row in history.metrics]
  shown = [row["epsilon"] for row in history.metrics]
  assert shown[-1] == exact[-1] == history.statement.epsilon
  assert np.all(np.array(exact) <= shown)
  np.testing.assert_allclose(shown, exact, rtol=5e-3)


def test_the_statement_is_that_of_the_mechanism(finished):
  statement = finished[1].statement
  planned = toy.mechanism().privacy(12, toy.DELTA)
  # What `fit` knows need not be assumed: see `test_statement.py`.
  assert statement == dataclasses.replace(
    planned, assumptions=statement.assumptions
  )
  assert statement.seed_policy == "os"
  assert finished[1].ledger.num_steps == 12


def test_a_named_seed_repeats_the_run_and_is_said_in_the_statement(named):
  state, history = toy.fit(seed=5)
  toy.assert_same(state.params, named)
  assert history.statement.seed_policy == "named"
  assert any("seed is named" in text for text in history.statement.warnings)
  other, _ = toy.fit(seed=6)
  assert np.all(other.params["kernel"] != state.params["kernel"])


def test_two_runs_from_the_operating_system_differ(finished):
  state, _ = toy.fit()
  assert np.all(state.params["kernel"] != finished[0].params["kernel"])


@pytest.mark.parametrize(
  "steps_per_call",
  [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 12))],
)
def test_steps_per_call_moves_nothing(named, steps_per_call):
  performance = jaxdp.PerformanceFlags(steps_per_call=steps_per_call)
  state, history = toy.fit(seed=5, performance=performance)
  toy.assert_close(state.params, named)
  assert [row["step"] for row in history.metrics] == [4, 8, 12]


def test_streamed_data_gives_what_data_on_the_device_gives(named):
  reader = toy.Reader()
  streamed, _ = toy.fit(seed=5, dataset=reader)
  toy.assert_close(streamed.params, named)
  assert reader.largest_read == 48
  flags = jaxdp.PerformanceFlags(data_on_device=False)
  from_arrays, _ = toy.fit(seed=5, performance=flags)
  toy.assert_same(from_arrays.params, streamed.params)


def test_a_run_stops_at_the_last_step_that_the_budget_allows(
  tmp_path, monkeypatch, caplog
):
  mechanism = toy.mechanism()
  limit = mechanism.epsilon(7, toy.DELTA) + 1e-9
  written = []
  write = _files.write_atomic

  def write_atomic(path, text):
    write(path, text)
    if path.name == "ledger.json":
      ledger = jaxdp.accounting.Ledger.from_json(text)
      written.append(ledger.epsilon(toy.DELTA))

  monkeypatch.setattr(_files, "write_atomic", write_atomic)
  arguments = {"max_epsilon": limit, "eval_fn": toy.accuracy, "seed": 5}
  state, history = toy.fit(tmp_path, **arguments)
  assert history.stopped_by_budget
  assert int(state.step) == history.ledger.num_steps == 7
  assert max(written) <= limit < mechanism.epsilon(8, toy.DELTA)
  assert history.statement.epsilon == mechanism.epsilon(7, toy.DELTA)
  assert history.metrics[-1]["step"] == 7
  assert "test_accuracy" in history.metrics[-1]
  assert "stops there" in caplog.text

  again, history = toy.fit(tmp_path, **arguments)
  toy.assert_same(again.params, state.params)
  assert history.ledger.num_steps == 7
  assert history.metrics[-1]["step"] == 7


def test_a_budget_that_is_not_reached_changes_nothing(named):
  state, history = toy.fit(seed=5, max_epsilon=1e6)
  toy.assert_same(state.params, named)
  assert not history.stopped_by_budget


@pytest.mark.parametrize(
  "mechanism",
  [
    pytest.param(toy.mechanism(noise_multiplier=0.0), id="no noise"),
    pytest.param(
      toy.mechanism(None, 0.0, jaxdp.clipping.no_clipping()),
      id="no clipping",
      marks=pytest.mark.slow,
    ),
  ],
)
def test_what_is_not_private_has_an_infinite_epsilon(tmp_path, mechanism):
  _, history = toy.fit(tmp_path, mechanism=mechanism, num_steps=4)
  assert math.isinf(history.statement.epsilon)
  assert "NOT private" in str(history.statement)
  rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert json.loads(rows[-1])["epsilon"] is None
  record = json.loads((tmp_path / "privacy_statement.json").read_text())
  assert record["epsilon"] is None


def test_a_delta_that_could_publish_a_record_is_warned_of():
  _, history = toy.fit(delta=0.05)
  assert any("at least 1/N" in text for text in history.statement.warnings)


def test_averaged_parameters_are_evaluated_and_released(tmp_path):
  seen = []

  def eval_fn(params):
    seen.append(jax.tree.map(np.asarray, params))
    return toy.accuracy(params)

  state, _ = toy.fit(tmp_path, ema_decay=0.5, eval_fn=eval_fn, seed=5)
  assert len(seen) == 1  # at the end alone
  toy.assert_same(seen[0], state.ema_params)
  released = training.load_release(tmp_path, toy.params())
  toy.assert_same(released, state.ema_params)
  assert np.all(released["kernel"] != state.params["kernel"])


@pytest.mark.slow
def test_rows_that_are_not_finite_are_dropped():
  data = toy.dataset()
  data["x"][3, 0] = np.nan
  state, history = toy.fit(dataset=data, seed=5, diagnostics=True)
  assert np.all(np.isfinite(state.params["kernel"]))
  assert [r["sensitive"]["num_dropped"] for r in history.metrics] == [1, 1, 1]
  data["x"][3] = np.inf
  other, _ = toy.fit(dataset=data, seed=5, diagnostics=True)
  toy.assert_same(other.params, state.params)


@pytest.mark.slow
def test_an_optax_optimizer_with_a_schedule_goes_through():
  schedule = optax.linear_schedule(0.5, 0.1, 12)
  state, _ = toy.fit(optimizer=optax.sgd(schedule))
  assert np.all(np.isfinite(state.params["kernel"]))
