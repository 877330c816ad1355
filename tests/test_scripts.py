"""The scripts, as people call them, on the digits."""

import json
import os
import pathlib
import runpy
import subprocess
import sys

import pytest
from absl import flags

import jaxdp
from jaxdp import experiment

# ml_collections loads a config in an old way.
pytestmark = pytest.mark.filterwarnings(
  "ignore:the load_module:DeprecationWarning"
)
ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
SMALL = [
  "--config=configs/digits.py",
  "--config.model.num_features=100",
  "--config.sampler.max_batch_size=None",
  "--config.privacy.target_epsilon=None",
  "--config.privacy.max_epsilon=None",
  "--config.privacy.noise_multiplier=4.0",
  "--config.training.num_steps=12",
  "--config.training.eval_every=6",
  "--config.training.log_every=6",
  "--config.training.checkpoint_every=6",
  "--config.training.seed=3",
]


@pytest.fixture
def call(monkeypatch, capsys):
  """Runs a script in this process; returns what it printed."""
  monkeypatch.chdir(ROOT)

  def run(name, *arguments):
    path = str(ROOT / "scripts" / name)
    monkeypatch.setattr(sys, "argv", [path, *arguments])
    before = set(flags.FLAGS)
    try:
      script = runpy.run_path(path)
      flags.FLAGS(sys.argv)
      script["main"]([])
    finally:
      for flag in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, flag)
    return capsys.readouterr().out

  return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A run of `train.py` in its own process, which has no TensorFlow."""
  folder = tmp_path_factory.mktemp("scripts")
  # Python imports this file at its start: TensorFlow is now nowhere to be had.
  blocker = "import sys\nsys.modules['tensorflow'] = None\n"
  (folder / "usercustomize.py").write_text(blocker)
  (folder / "sitecustomize.py").write_text(blocker)
  workdir = folder / "run"
  environment = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(map(str, [folder, ROOT])),
    "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
  }
  command = [sys.executable, "scripts/train.py", *SMALL, f"--workdir={workdir}"]
  done = subprocess.run(
    command, cwd=ROOT, env=environment, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  return workdir, done.stdout, done.stderr


def test_training_prints_the_statement_accuracy_and_report(trained):
  workdir, out, err = trained
  assert out.lstrip().startswith("This training is (ε = ")
  assert "Research run: the seed is named" in out
  last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
  assert f"test accuracy  {last['test_accuracy']:.4f}" in out
  assert str(workdir / "report.html") in out
  assert (workdir / "report.html").stat().st_size > 5000
  assert "12/12" in err
  assert " ex/s" in err


def test_tensorboard_is_written_without_tensorflow(trained):
  (events,) = (trained[0] / "tensorboard").iterdir()
  assert b"test_accuracy" in events.read_bytes()


def test_training_again_prints_the_same_without_training(trained, call):
  workdir, out, _ = trained
  ledger = (workdir / "ledger.json").read_text()
  again = call("train.py", *SMALL, f"--workdir={workdir}")
  assert again == out
  assert (workdir / "ledger.json").read_text() == ledger


def test_training_with_another_config_is_refused(trained, call):
  with pytest.raises(ValueError, match=r"rule.l2_clip_norm was .* now 0.7"):
    call(
      "train.py",
      *SMALL,
      "--config.rule.l2_clip_norm=0.7",
      f"--workdir={trained[0]}",
    )


def test_evaluation_prints_accuracy_and_loss(trained, call):
  workdir = trained[0]
  last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
  out = call("evaluate.py", *SMALL, f"--workdir={workdir}")
  assert f"test accuracy         {last['test_accuracy']:.4f}\n" in out
  assert "test loss" in out
  assert "sensitive" not in out


def test_evaluation_on_private_data_says_that_it_is_sensitive(trained, call):
  release = trained[0] / "release"
  out = call("evaluate.py", *SMALL, f"--workdir={release}", "--split=train")
  assert "train accuracy" in out
  assert "sensitive" in out


def test_evaluation_prints_json(trained, call):
  out = call("evaluate.py", *SMALL, f"--workdir={trained[0]}", "--json")
  assert json.loads(out).keys() == {"split", "accuracy", "loss"}


PLAN = ["--sampler=FullBatch", "--num_examples=1000", "--delta=1e-5"]


def test_a_study_that_is_stopped_at_once_says_so(call, tmp_path):
  out = call(
    "study.py",
    "--config=configs/studies/batch_clipping.py:digits",
    "--config.base.training.num_steps=7",
    f"--workdir={tmp_path}",
    "--minutes=0",
  )
  assert "not complete yet: run it again" in out
  page = (tmp_path / "report.html").read_text()
  assert "Batch clipping" in page
  assert "for 7 steps" in page


def test_executors_are_for_surveys(call, tmp_path):
  arguments = (
    "study.py",
    "--config=configs/studies/psasc.py:digits",
    f"--workdir={tmp_path}",
  )
  with pytest.raises(ValueError, match="are for surveys"):
    call(*arguments, "--executor=ray")


@pytest.mark.slow
def test_a_survey_shows_what_it_would_run_and_runs_it(call, tmp_path):
  arguments = (
    "study.py",
    "--config=configs/studies/rr_digits.py:log",
    "--config.law.num_runs=1",
    "--config.repeats.num_points=1",
    "--config.repeats.num_seeds=2",
    f"--workdir={tmp_path}",
  )
  out = call(*arguments, "--dry_run")
  assert "million examples" in out
  assert not (tmp_path / "runs.jsonl").exists()
  assert "complete" in call(*arguments)
  assert (tmp_path / "runs.parquet").exists()
  with pytest.raises(ValueError, match=r"runs\.jsonl holds runs, and resume"):
    call(*arguments, "--noresume")
  assert "rr_digits.py" in call("study.py", "--list")


def test_accounting_prints_a_table(call):
  out = call("account.py", *PLAN, "--num_steps=100", "--noise_multiplier=30")
  assert "epsilon               1.2711\n" in out
  assert "accountant            gdp\n" in out


def test_accounting_finds_what_is_left_open(call):
  arguments = ["--noise_multiplier=20", "--target_epsilon=2", "--json"]
  plan = json.loads(call("account.py", *PLAN, *arguments))
  assert plan["num_steps"] == 100
  assert plan["found"] == "num_steps"


def test_accounting_adds_what_selection_costs(call):
  arguments = ["--num_steps=100", "--noise_multiplier=30"]
  selection = ["--selection=geometric", "--selection_mean=5"]
  out = call("account.py", *PLAN, *arguments, *selection)
  assert "epsilon               1.2711\n" in out
  plan = json.loads(call("account.py", *PLAN, *arguments, *selection, "--json"))
  assert f"selected epsilon      {plan['selected_epsilon']:.3f}" in out
  one = jaxdp.Mechanism(
    jaxdp.clipping.flat(1.0), jaxdp.sampling.FullBatch(1000), 30.0
  )
  cost = jaxdp.accounting.Selection(5, "geometric").epsilon(one, 100, 1e-5)
  assert plan["selected_epsilon"] == cost > plan["epsilon"]


def test_accounting_reads_configs(call, trained):
  out = call("account.py", *SMALL, "--json")
  plan = json.loads(out)
  statement = json.loads((trained[0] / "privacy_statement.json").read_text())
  assert plan["epsilon"] == statement["epsilon"]
  assert plan["num_examples"] == 1437


@pytest.mark.parametrize(
  "arguments, match",
  [
    ([], "Give --num_examples and --delta, or a --config"),
    (PLAN, "noise_multiplier, num_steps not given"),
    (
      [*PLAN, "--num_steps=1", "--noise_multiplier=-1"],
      "noise_multiplier must be >= 0",
    ),
    (
      [*PLAN, "--selection=poisson", "--selection_mean=0.5"],
      "mean must be >= 1",
    ),
  ],
)
def test_accounting_says_what_is_wrong(call, arguments, match):
  with pytest.raises(ValueError, match=match):
    call("account.py", *arguments)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_thin(path):
  assert len(path.read_text().splitlines()) <= 60


AUDIT = [
  "--config=configs/audit/mechanisms.py:flat",
  "--config.audit.trials=400",
  "--config.privacy.target_epsilon=6.0",
]


def test_an_audit_prints_one_object(call):
  result = json.loads(call("audit.py", *AUDIT, "--json"))
  assert result["mechanism"] == "flat"
  assert 5.99 < result["epsilon_claimed"] <= 6
  assert 1 < result["epsilon_lower"] < result["epsilon_claimed"]
  assert (result["confidence"], result["trials"]) == (0.95, 400)


def test_an_audit_that_refutes_a_claim_fails(call, monkeypatch, capsys):
  result = jaxdp.audit.AuditResult(
    mechanism="flat",
    kind="gradient canary",
    epsilon_claimed=1.0,
    epsilon_lower=2.0,
    delta=1e-5,
    mu_claimed=0.3,
    mu_lower=0.5,
    confidence=0.95,
    trials=200,
    num_steps=1,
    accountant="gdp",
    neighboring_relation="ADD_OR_REMOVE_ONE",
    seed=0,
  )
  monkeypatch.setattr(experiment, "run_audit", lambda config: result)
  with pytest.raises(SystemExit) as error:
    call("audit.py", *AUDIT)
  assert error.value.code == 1
  out = capsys.readouterr().out
  assert "claimed ε = 1, δ = 1e-05" in out
  assert "ε >= 2 at 95% confidence (μ >= 0.5 of 0.3 there)" in out
  assert "REFUTES the claim" in out


def test_a_mistake_in_an_audit_is_one_line(call):
  with pytest.raises(SystemExit, match=r"error: config\.unit must be one of"):
    call("audit.py", *AUDIT, "--config.unit=user")
