"""Surveys: a run in a stream is the run of ``make_train_step``, whatever lies
beside it, and is made once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest

import jaxdp
from jaxdp import _lock, clipping, noise, studies
from jaxdp.sampling import FixedSize, Poisson
from jaxdp.studies import Survey, _lanes, _stream, _survey_groups
from jaxdp.studies._journal import Journal
from jaxdp.studies._survey_run import read_runs
from tests.test_experiment import small

N = 200
_RNG = np.random.default_rng(0)
DATA = {
  "x": _RNG.standard_normal((N, 5)).astype(np.float32),
  "y": _RNG.integers(0, 3, N).astype(np.int32),
}


def loss_fn(params, example):
  logits = jnp.tanh(example["x"] @ params["w"]) @ params["v"] + params["b"]
  return optax.softmax_cross_entropy_with_integer_labels(logits, example["y"])


def make_params(job):
  rng = np.random.default_rng(job.seed)
  return {
    "b": np.zeros(3, np.float32),
    "v": rng.standard_normal((4, 3)).astype(np.float32),
    "w": rng.standard_normal((5, 4)).astype(np.float32),
  }


def make_optimizer(learning_rate):
  return optax.sgd(learning_rate, momentum=0.9)


def job(rule, batch_size, sigma, learning_rate, num_steps, seed):
  sampler = Poisson(num_examples=N, expected_batch_size=batch_size)
  mechanism = jaxdp.Mechanism(rule, sampler, sigma)
  return _lanes.Job(seed, mechanism, learning_rate, num_steps, seed)


def jobs(make_rule):
  """Batches of less than a chunk and of several, empty ones too."""
  return [
    job(make_rule(1.0), 16, 1.0, 0.2, 7, 1),
    job(make_rule(0.3), 120, 2.0, 0.1, 3, 2),
    job(make_rule(2.0), 1.5, 0.5, 0.05, 40, 3),
    job(make_rule(0.7), 50, 3.0, 0.3, 6, 4),
  ]


def alone(job):
  """The same run by ``make_train_step``."""
  step = jaxdp.make_train_step(
    loss_fn, job.mechanism, make_optimizer(job.learning_rate)
  )
  state = step.init(make_params(job), noise.make_key(job.seed))
  for t in range(job.num_steps):
    rows, mask = job.mechanism.sampler.sample(job.seed, t)
    batch = jax.tree.map(lambda x: x[rows], DATA)  # noqa: B023
    state, _ = step(state, batch, mask)
  return state.params


@functools.cache
def all_alone(make_rule):
  return {one.name: alone(one) for one in jobs(make_rule)}


@pytest.mark.parametrize(
  "make_rule, width",
  [
    pytest.param(clipping.flat, 1, marks=pytest.mark.slow),
    (clipping.flat, 3),
    pytest.param(clipping.adaptive_quantile, 3, marks=pytest.mark.slow),
  ],
)
def test_a_run_in_a_stream_is_the_run_by_itself(make_rule, width):
  program = _stream.Program(loss_fn, make_optimizer)
  lanes = _lanes.Lanes(program, DATA, make_params, size=32, width=width)
  found = {}
  for one, state in lanes(jobs(make_rule)):
    found[one.name] = state.params
    assert _survey_groups.executed_steps(one, state) == one.num_steps
    with pytest.raises(RuntimeError, match=f"made {one.num_steps} releases"):
      _survey_groups.executed_steps(one._replace(num_steps=99), state)
  for name, params in all_alone(make_rule).items():
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5),
      found.pop(name),
      params,
    )
  assert not found


def test_a_reader_gives_every_row_of_every_batch_once():
  sampler = Poisson(num_examples=N, expected_batch_size=20)
  reader = _stream.Reader(sampler, seed=3, num_steps=9, size=16)
  batches, rows = [], []
  while not reader.done:
    for chunk in zip(*reader.read(4), strict=True):
      rows += chunk[0][~chunk[1]].tolist()
      if chunk[2]:
        batches.append(rows)
        rows = []
  assert not rows  # nothing comes after the last batch
  for step, found in enumerate(batches):
    batch = sampler.sample(3, step)
    assert found == batch.indices[~batch.is_padding_example].tolist()
  assert len(batches) == 9


def test_samplers_and_rules_that_a_stream_does_not_know_are_refused():
  fixed = jaxdp.Mechanism(
    clipping.flat(1.0), FixedSize(num_examples=N, batch_size=10), 1.0
  )
  with pytest.raises(ValueError, match="drawn by Poisson sampling"):
    _stream.shared(fixed, 16)
  sampler = Poisson(num_examples=N, expected_batch_size=10)
  public = jaxdp.Mechanism(clipping.adaptive_layerwise(1.0), sampler, 1.0)
  with pytest.raises(ValueError, match="follows public data"):
    _stream.shared(public, 16)


def test_what_is_faster_lies_side_by_side():
  seconds = {1: 1.0, 4: 3.9, 16: 6.0, 64: 23.0, 256: 120.0}

  class Fake:
    def __init__(self, width):
      self.width = width

    def seconds(self, _):
      return seconds[self.width]

  assert _lanes.best(Fake, range(1000)).width == 16
  assert _lanes.best(Fake, range(10)).width == 1
  seconds[4] = 2.0
  seconds[16] = np.inf  # does not fit
  assert _lanes.best(Fake, range(1000)).width == 4


# Surveys.

CELL = {"dataset": "digits", "epsilon": 8.0, "num_examples": 1000}


SAMPLER = {"sampler": {"name": "Poisson"}}
BASE = small(model={"name": "mlp", "num_classes": 10}) | SAMPLER


def run_survey(survey, workdir, **options):
  """On one device: of the others, `test_executors.py` has the tests."""
  executor = studies.LocalExecutor(jax.local_devices()[:1])
  return studies.run_survey(
    survey, workdir, progress=False, executor=executor, **options
  )


def survey(**changes):
  values = {
    "base": BASE,
    "law": {
      "name": "random",
      "num_runs": 3,
      "seed": 1,
      "factors": [
        {"name": "lr", "low": 0.01, "high": 1.0, "scale": "log"},
        {"name": "C", "low": 0.1, "high": 1.0},
        {"name": "q", "low": 0.02, "high": 0.2, "scale": "log"},
        {"name": "epochs", "low": 0.2, "high": 0.6},
      ],
    },
    "cells": [CELL],
    "repeats": {"num_points": 1, "num_seeds": 2},
  }
  return Survey(**{**values, **changes})


def test_a_row_becomes_a_config():
  table = survey().table()
  assert len(table) == 4
  row = table.iloc[0]
  assert row.num_steps == max(1, round(row.epochs / row.q))
  config = survey().config(row)
  assert config.optimizer["learning_rate"] == row.lr
  assert config.rule["l2_clip_norm"] == row.C
  sampler = config.make_sampler(1000)
  assert sampler.sampling_probability == pytest.approx(row.q)
  assert config.training["num_steps"] == row.num_steps
  assert config.model["seed"] == config.training["seed"] == row.seed


def test_nominal_batches_are_those_of_a_loader():
  law = {"name": "published", "num_runs": 20}
  table = survey(law=law, nominal=True, repeats={}).table()
  np.testing.assert_allclose(table.q, 1 / np.ceil(1000 / table.batch_size))
  table = survey(law=law, nominal=False, repeats={}).table()
  np.testing.assert_allclose(table.q, table.batch_size / 1000)


def test_surveys_that_lack_something_are_refused():
  with pytest.raises(ValueError, match=r"law\.name must be one of"):
    survey(law={"name": "magic"}).table()
  with pytest.raises(ValueError, match="needs num_examples"):
    survey(cells=[{"dataset": "digits"}]).table()
  law = {**survey().law, "factors": survey().law["factors"][:2]}
  with pytest.raises(ValueError, match="lacks"):
    survey(law=law).table()
  with pytest.raises(ValueError, match="drawn by Poisson sampling"):
    survey(base={**BASE, "sampler": {"name": "FullBatch"}})
  with pytest.raises(ValueError, match="schedule is 'cosine'"):
    survey(base=small(optimizer__schedule="cosine") | SAMPLER)
  with pytest.raises(ValueError, match="inner_momentum"):
    survey(base=small(training__inner_momentum={}) | SAMPLER)


def test_runs_that_differ_in_numbers_share_a_group():
  two = survey(cells=[CELL, {**CELL, "epsilon": 1.0}])
  rows = two.table().to_dict("records")
  found = _survey_groups.groups(two, rows)
  assert sum(len(group.rows) for group in found) == len(rows)
  sizes = {_survey_groups.chunk_size(row) for row in rows}
  assert len(found) == len(sizes)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("survey")
  assert run_survey(survey(), workdir)
  return workdir


def test_a_survey_keeps_every_run_with_its_epsilon(undisturbed):
  planned = pd.read_parquet(undisturbed / "plan.parquet")
  runs = pd.read_parquet(undisturbed / "runs.parquet")
  assert runs.run.tolist() == planned.run.tolist() == list(range(4))
  assert (runs.executed_steps == runs.num_steps).all()
  assert runs.executed_epsilon.between(7.5, 8.0).all()
  assert (runs.epsilon == 8.0).all()  # the cell's
  assert runs.accuracy.between(0, 1).all()
  assert not runs.diverged.any()
  config = survey().config(planned.iloc[2])
  mechanism = config.make_mechanism(1000)
  steps = int(planned.iloc[2].num_steps)
  assert runs.executed_epsilon[2] == mechanism.epsilon(steps, runs.delta[2])


def test_a_statement_of_a_run_says_how_many_runs_saw_the_data(undisturbed):
  runs = read_runs(undisturbed)
  for _, one in runs.iterrows():
    statement = studies.statement(survey(), undisturbed, one)
    assert statement.epsilon == one["executed_epsilon"]
    assert statement.num_steps == one["executed_steps"]
    text = " ".join(statement.assumptions)
    assert f"{len(runs)} runs of this study saw this data" in text


def test_a_survey_goes_on_where_it_was_stopped(
  undisturbed, tmp_path, monkeypatch
):
  for name in ("design.parquet", "plan.parquet"):
    (tmp_path / name).write_bytes((undisturbed / name).read_bytes())
  add = Journal.add

  def add_and_crash(self, row):
    add(self, row)
    raise InterruptedError

  monkeypatch.setattr(Journal, "add", add_and_crash)
  for number in range(1, 5):
    with pytest.raises(InterruptedError):
      run_survey(survey(), tmp_path)
    assert len(read_runs(tmp_path)) == number
    path = tmp_path / "runs.jsonl"  # a crash cuts the last line short
    path.write_text(path.read_text() + '{"run": ')
  assert run_survey(survey(), tmp_path)
  pd.testing.assert_frame_equal(
    pd.read_parquet(tmp_path / "runs.parquet"),
    pd.read_parquet(undisturbed / "runs.parquet"),
    rtol=1e-4,
  )
  assert read_runs(tmp_path).run.tolist() == list(range(4))


def test_a_second_process_in_the_folder_of_a_survey_is_refused(tmp_path):
  with (
    _lock.only_process(tmp_path),
    pytest.raises(BlockingIOError, match="Another process is at work"),
  ):
    run_survey(survey(), tmp_path, minutes=0)
  assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_no_run_begins_after_the_deadline(undisturbed, tmp_path):
  for name in ("design.parquet", "plan.parquet"):
    (tmp_path / name).write_bytes((undisturbed / name).read_bytes())
  assert not run_survey(survey(), tmp_path, minutes=0)
  assert not (tmp_path / "runs.parquet").exists()
  (group, *_) = _survey_groups.groups(survey(), survey().table().assign(
    noise_multiplier=1.0).to_dict("records"))  # fmt: skip
  assert not list(group(seconds=0))


def test_another_survey_is_refused(undisturbed):
  law = {**survey().law, "seed": 2}
  with pytest.raises(ValueError, match="holds another design"):
    run_survey(survey(law=law), undisturbed)
  base = {**BASE, "optimizer": {**BASE["optimizer"], "momentum": 0.5}}
  with pytest.raises(ValueError, match="optimizer was"):
    run_survey(survey(base=base), undisturbed)
