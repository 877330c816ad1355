"""Studies: runs are made once, choices use no test data, reports say no more
than the intervals do."""

import dataclasses
import json
import math
import re
import threading

import jax
import numpy as np
import pytest

import jaxdp
from jaxdp import _lock, experiment, studies
from jaxdp.studies import _psasc, _report, _run, _workers
from tests.test_experiment import small

FLAT = {"name": "flat", "l2_clip_norm": 1.0}
PSASC = {"name": "psasc", "l2_clip_norm": 1.0, "r": 0.1, "s": 0.5}
DESIGN = studies.Design(
  base=small(
    data__num_examples=600,
    privacy__noise_multiplier=5.0,
    training__num_steps=3,
    optimizer__momentum=0.5,
  ),
  arms={"flat": {"rule": FLAT}, "PSASC": {"rule": PSASC}},
  settings={"private": {}, "less": {"privacy.noise_multiplier": 1.0}},
  rates=(0.5, 1.0),
  grids={"flat": {"rule.l2_clip_norm": (0.1, 1.0)}},
  tuning_seeds=(0,),
  seeds=(1, 2),
  num_validation=100,
  options={"sloped": "PSASC", "slopes": (0.3, 1.0)},
)


def row(stage="evaluation", arm="flat", seed=1, accuracy=0.5, **changes):
  return {
    "stage": stage,
    "setting": "private",
    "arm": arm,
    "rate": 1.0,
    "seed": seed,
    "overrides": {},
    "epsilon": 1.0,
    "test_accuracy": accuracy,
    "validation_accuracy": accuracy,
    **changes,
  }


# Design.


def test_tuning_is_every_arm_at_every_rate_and_value():
  runs = list(DESIGN.tuning())
  assert len(runs) == 2 * (2 * 2 + 2)
  assert len({run.key for run in runs}) == len(runs)


def test_a_rate_is_the_step_of_a_unit_at_its_bound():
  run = next(r for r in DESIGN.tuning() if r.arm == "PSASC" and r.rate == 1.0)
  config = DESIGN.config(run)
  # lr C / s / (1 - momentum) = 1.
  assert config["optimizer"]["learning_rate"] == 0.5 * 0.5
  rule = experiment.ExperimentConfig.from_config_dict(config).make_rule()
  bound = float(rule.noise_shape(())[0])
  rate = config["optimizer"]["learning_rate"] * bound / (1 - 0.5)
  assert rate == pytest.approx(1.0)
  assert (config["training"]["seed"], config["model"]["seed"]) == (0, 0)
  assert DESIGN.base["optimizer"]["learning_rate"] == 2.0  # left alone


def test_designs_that_mislead_are_refused():
  with pytest.raises(ValueError, match=r"Seeds \[0\] tune and evaluate"):
    dataclasses.replace(DESIGN, seeds=(0, 1))
  with pytest.raises(ValueError, match=r"grids for \['flatt'\]"):
    dataclasses.replace(DESIGN, grids={"flatt": {}})
  with pytest.raises(ValueError, match="config of a study has no 'arm'"):
    studies.Design.from_config_dict({"arm": {}})


# Numbers.


def test_an_interval_is_students():
  mean, low, high, count = studies.interval([1.0, 2.0, 3.0])
  assert (mean, count) == (2.0, 3)
  assert high - mean == pytest.approx(4.302653 / math.sqrt(3))
  assert mean - low == pytest.approx(high - mean)
  assert studies.interval([1.0])[1:3] == (-math.inf, math.inf)


def test_intervals_hold_the_mean_as_often_as_they_say():
  rng = np.random.default_rng(0)
  held = [
    low <= 0 <= high
    for _ in range(2000)
    for _, low, high, _ in [studies.interval(rng.standard_normal(4))]
  ]
  assert abs(np.mean(held) - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_differences_are_taken_seed_by_seed():
  """Seeds differ by ten times what the arms do."""
  a = [row(seed=s, accuracy=0.1 * s + 0.01) for s in (1, 2, 3)]
  b = [row(seed=s, accuracy=0.1 * s) for s in (3, 1, 2, 4)]
  difference = studies.paired(a, b)
  assert difference.low == pytest.approx(0.01)
  assert difference.num_seeds == 3
  with pytest.raises(ValueError, match="twice"):
    studies.paired([*a, *a], b)
  with pytest.raises(ValueError, match="share no seed"):
    studies.paired(a, [row(seed=9)])


def test_the_choice_is_by_validation_and_nan_is_the_worst():
  rows = [
    row("tuning", rate=1.0, accuracy=0.3, test_accuracy=0.9),
    row("tuning", rate=2.0, accuracy=0.4, test_accuracy=0.1),
    row("tuning", rate=4.0, validation_accuracy=math.nan),
  ]
  assert studies.chosen(rows)["private", "flat"].rate == 2.0


def test_tuning_goes_on_where_the_best_is_at_the_edge():
  def rates(best):
    rows = [
      row("tuning", rate=r, accuracy=1 - abs(r - best)) for r in (0.5, 1.0)
    ]
    return [run.rate for run in _run.extensions(DESIGN, rows)]

  assert rates(0.5) == [0.25]
  assert rates(1.0) == [2.0]
  three = [row("tuning", rate=r, accuracy=-abs(r - 1)) for r in (0.5, 1, 2)]
  assert list(_run.extensions(DESIGN, three)) == []


def test_a_slope_keeps_the_rate_or_the_learning_rate():
  base = next(r for r in DESIGN.tuning() if r.arm == "PSASC")
  runs = _psasc.slopes(DESIGN, {("private", "PSASC"): base})
  rates = {"held": set(), "moved": set()}
  before = DESIGN.config(base)["optimizer"]["learning_rate"]
  for run in runs:
    rate = DESIGN.config(run)["optimizer"]["learning_rate"]
    if run.stage == _psasc.UNMATCHED:
      assert rate == pytest.approx(before)
      rates["moved"].add(run.rate)
    else:
      rates["held"].add(run.rate)
  assert rates["held"] == {base.rate}
  assert len(rates["moved"]) == 2


@pytest.mark.parametrize(
  "low, high, words",
  [
    (0.031, 0.06, "is there"),
    (-0.01, 0.02, "does not survive"),
    (-0.01, 0.04, "neither shown nor excluded"),
  ],
)
def test_a_gain_is_judged_by_its_interval(low, high, words):
  gain = studies._summary.Interval((low + high) / 2, low, high, 5)
  assert words in _report._gain("x", [(1.0, gain)], "flat", 0.03, 0.05)


# Runs.


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("studies") / "run"
  assert studies.run(DESIGN, workdir, progress=False)
  return workdir


def test_a_run_is_the_training_step_by_step(finished):
  """By hand, with ``make_train_step`` and the sampler's own rows."""
  run = next(r for r in DESIGN.tuning() if r.arm == "PSASC")
  config = experiment.ExperimentConfig.from_config_dict(DESIGN.config(run))
  rows = experiment.load_train(config)
  task = experiment.make_task(config, rows.private, None)
  mechanism = config.make_mechanism(600)
  step = jaxdp.make_train_step(task.loss_fn, mechanism, config.make_optimizer())
  state = step.init(task.params, jaxdp.noise.make_key(run.seed))
  for t in range(3):
    batch = mechanism.sampler.sample(run.seed, t)
    some = {name: x[batch.indices] for name, x in rows.private.items()}
    state, _ = step(state, some, batch.is_padding_example)
  test = experiment.load(config, "test")
  results = studies.Results(finished / "results.jsonl")
  (row,) = results.of([run])
  assert row["test_accuracy"] == pytest.approx(
    task.evaluate(state.params, test)["accuracy"], abs=2 / 360
  )
  assert row["test_loss"] == pytest.approx(
    task.evaluate(state.params, test)["loss"], rel=1e-4
  )
  assert row["epsilon"] == mechanism.epsilon(3, config.privacy["delta"])


def test_a_second_process_in_the_folder_of_a_study_is_refused(tmp_path):
  with (
    _lock.only_process(tmp_path),
    pytest.raises(BlockingIOError, match="Another process is at work"),
  ):
    studies.run(DESIGN, tmp_path, minutes=0.0, progress=False)
  assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_stopped_study_goes_on_and_makes_no_run_twice(finished, tmp_path):
  lines = (finished / "results.jsonl").read_text().splitlines(keepends=True)
  cut = "".join(lines[:-3]) + lines[-3][:40]  # killed while it wrote
  (tmp_path / "results.jsonl").write_text(cut)
  assert not studies.run(DESIGN, tmp_path, minutes=0.0, progress=False)
  assert studies.run(DESIGN, tmp_path, progress=False)

  def made(path):
    rows = map(json.loads, (path / "results.jsonl").read_text().splitlines())
    return [(r.pop("outcome")["test_loss"], str(r)) for r in rows]

  assert sorted(made(tmp_path)) == sorted(made(finished))


class Recorder:
  """A sweep that says where it ran."""

  def __init__(self, design):
    del design

  def __call__(self, run):
    if run.arm == "broken":
      raise RuntimeError("out of memory")
    return {"device": jax.numpy.zeros(()).device.id}


def runs_of(counts):
  return [
    studies.Run("tuning", "private", arm, float(i), 0, {})
    for arm, count in counts.items()
    for i in range(count)
  ]


def make(monkeypatch, runs, is_late=lambda: False, devices=3):
  monkeypatch.setattr(_workers, "Sweep", Recorder)
  workers, made = _workers.Workers(DESIGN, jax.devices()[:devices]), []
  return made, lambda: workers(
    runs, lambda run, outcome: made.append((run, outcome["device"])), is_late
  )


def test_a_device_keeps_to_its_arms(monkeypatch):
  runs = runs_of({"a": 5, "b": 5, "c": 5, "d": 5})
  made, work = make(monkeypatch, runs)
  assert work()
  assert sorted(run.key for run, _ in made) == sorted(r.key for r in runs)
  places = {(run.arm, device) for run, device in made}
  assert len(places) == 4


def test_devices_share_an_arm_that_is_worth_compiling_again(monkeypatch):
  count = 2 * _workers._WORTH_COMPILING
  barrier = threading.Barrier(2)

  class Waiting(Recorder):
    def __call__(self, run):
      if run.rate < 2:
        barrier.wait(60)  # two of them are under way at once
      return super().__call__(run)

  made, _ = make(monkeypatch, [])
  monkeypatch.setattr(_workers, "Sweep", Waiting)
  workers = _workers.Workers(DESIGN, jax.devices()[:2])
  runs = runs_of({"a": count})
  assert workers(runs, lambda _, o: made.append(o["device"]), lambda: False)
  assert (len(made), len(set(made))) == (count, 2)


def test_a_run_that_fails_stops_the_others_and_loses_none(monkeypatch):
  made, work = make(monkeypatch, runs_of({"broken": 9, "a": 8}), devices=1)
  with pytest.raises(RuntimeError, match="out of memory"):
    work()
  assert made == []
  made, work = make(monkeypatch, runs_of({"broken": 1, "a": 8}), devices=1)
  with pytest.raises(RuntimeError, match="out of memory"):
    work()
  assert len(made) == 8


def test_what_is_late_does_not_begin(monkeypatch):
  times = iter([False, False, True])
  runs = runs_of({"a": 5})
  made, work = make(monkeypatch, runs, lambda: next(times), devices=1)
  assert not work()
  assert [run.rate for run, _ in made] == [0.0, 1.0]


def test_runs_of_another_base_are_not_mixed(finished):
  base = {**DESIGN.base, "training": {**DESIGN.base["training"], "seed": 7}}
  for other in (
    dataclasses.replace(DESIGN, base=base),
    dataclasses.replace(DESIGN, num_validation=99),
  ):
    for work in (studies.run, studies.report):
      with pytest.raises(ValueError, match="holds runs of another design"):
        work(other, finished)


def test_what_diverged_is_null_in_the_file_and_nan_in_the_rows(tmp_path):
  run = next(DESIGN.tuning())
  path = tmp_path / "results.jsonl"
  results = studies.Results(path)
  results.add(run, {"test_loss": math.inf, "test_accuracy": 0.1})
  assert '"test_loss": null' in path.read_text()
  for one in (results, studies.Results(path)):
    assert math.isnan(one.rows[0]["test_loss"])
    assert one.rows[0]["test_accuracy"] == 0.1
    assert run in one


def test_a_study_takes_schedules_and_relations_from_its_configs():
  base = {**DESIGN.base}
  base["privacy"] = {
    **base["privacy"],
    "noise_multiplier": None,
    "target_epsilon": 3.0,
    "noise_schedule": ((0, 1.0), (2, 2.0)),
  }
  design = dataclasses.replace(DESIGN, base=base, settings={"one": {}})
  outcome = studies.Sweep(design)(next(design.tuning()))
  assert 0.999 * 3 <= outcome["epsilon"] <= 3.0
  flat = jaxdp.calibrate_noise(
    jaxdp.Mechanism(jaxdp.clipping.flat(1.0), jaxdp.sampling.FullBatch(600)),
    target_epsilon=3.0,
    target_delta=base["privacy"]["delta"],
    num_steps=3,
  )
  assert outcome["noise_multiplier"] < 0.95 * flat.sigma


def test_a_report_stands_alone_and_leaves_out_other_designs(finished):
  page = studies.report(DESIGN, finished, "the <command>").read_text()
  assert "the &lt;command&gt;" in page
  assert page.count("<svg") == 4
  targets = re.findall(r"""(?:src=|href=|url\()["']?(.{5})""", page)
  assert targets
  assert all(t.startswith(("#", "data:")) for t in targets)
  assert "does not survive" in page or "neither shown" in page
  narrower = dataclasses.replace(DESIGN, rates=(0.5,), seeds=(2,))
  rows = studies.Results(finished / "results.jsonl")
  kept = [r for stage in _run.stages(narrower, rows) for r in stage]
  assert {r["rate"] for r in rows.of(kept) if r["stage"] == "tuning"} == {0.5}


def test_a_page_and_a_statement_say_how_many_runs_saw_the_data(finished):
  """Also those that a narrower design leaves out."""
  rows = studies.Results(finished / "results.jsonl").rows
  said = f"{len(rows)} runs of this study saw this data"
  narrower = dataclasses.replace(DESIGN, rates=(0.5,), seeds=(2,))
  for design in (DESIGN, narrower):
    assert said in studies.report(design, finished).read_text()
  for one in (rows[0], rows[-1]):
    statement = studies.statement(narrower, finished, one)
    assert said in " ".join(statement.assumptions)
    assert statement.epsilon == one["epsilon"]
    assert statement.delta == one["delta"]
    assert statement.seed_policy == "named"


def test_programs_are_shared_by_runs_that_differ_in_numbers():
  sweep = studies.Sweep(DESIGN)
  runs = [r for r in DESIGN.tuning() if r.arm == "PSASC"]
  for run in runs:
    sweep(run)
  assert len(sweep._programs) == 1
  (program,) = sweep._programs.values()
  assert program._train._cache_size() == 1


def test_too_few_rows_for_validation_are_named():
  design = dataclasses.replace(DESIGN, num_validation=1000)
  with pytest.raises(ValueError, match="num_validation=1000 rows are not left"):
    studies.Sweep(design)(next(design.tuning()))
