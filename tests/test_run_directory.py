"""What a run leaves behind, and that the release has no secret in it."""

import json
import logging
import pathlib
import struct

import numpy as np
import pytest

import jaxdp
from jaxdp import training
from jaxdp.training import _program, _seeds
from tests import toy

RUN_FILES = (
  "config.json",
  "dp_event.json",
  "ledger.json",
  "metrics.jsonl",
  "privacy_statement.json",
  "privacy_statement.txt",
  "versions.json",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A run of 12 steps, seeds from the operating system, in a workdir."""
  workdir = tmp_path_factory.mktemp("fit") / "run"
  config = {"optimizer": {"learning_rate": 0.5}, "training": {"seed": None}}
  state, history = toy.fit(
    workdir, eval_fn=toy.accuracy, eval_every=4, config=config
  )
  return workdir, state, history


def test_a_run_directory_holds_everything(finished):
  workdir, state, history = finished
  for name in RUN_FILES:
    assert (workdir / name).stat().st_size > 0, name
  names = {path.name for path in workdir.iterdir()}
  folders = {"checkpoints", "release", "tensorboard"}
  assert names == {*RUN_FILES, *folders, ".lock"}
  rows = (workdir / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(row) for row in rows] == history.metrics
  ledger = jaxdp.accounting.Ledger.from_json(
    (workdir / "ledger.json").read_text()
  )
  assert ledger == history.ledger
  text = (workdir / "privacy_statement.json").read_text()
  assert jaxdp.PrivacyStatement.from_json(text) == history.statement
  event = jaxdp.accounting.event_from_dict(
    json.loads((workdir / "dp_event.json").read_text())
  )
  assert event == history.ledger.dp_event()
  assert json.loads((workdir / "versions.json").read_text())["jax"]
  toy.assert_same(training.load_release(workdir, toy.params()), state.params)
  steps = [p.name for p in (workdir / "checkpoints").iterdir()]
  assert sorted(steps, key=int) == ["4", "8", "12"]  # the last three


def test_a_release_can_be_read_without_the_rest(finished, tmp_path):
  (finished[0] / "release").rename(tmp_path / "shared")
  try:
    params = training.load_release(tmp_path / "shared", toy.params())
  finally:
    (tmp_path / "shared").rename(finished[0] / "release")
  toy.assert_same(params, finished[1].params)


def test_an_unfinished_run_has_no_release(tmp_path):
  with pytest.raises(FileNotFoundError, match="Finish the run first"):
    training.load_release(tmp_path, toy.params())


def secrets_of(workdir):
  """Texts and bytes by which any secret of a run would be recognised."""
  step = max(int(p.name) for p in (workdir / "checkpoints").iterdir())
  meta = workdir / "checkpoints" / str(step) / "meta" / "metadata"
  seeds = _seeds.Seeds.from_json(json.loads(meta.read_text())["seeds"])
  found = [str(seeds.sampler).encode(), seeds.sampler.to_bytes(16, "little")]
  for word in seeds.noise:
    found += [f"{word}".encode(), f"{word:08x}".encode()]
  found.append(np.array(seeds.noise, np.uint32).tobytes())
  if seeds.named is not None:
    found.append(f"{seeds.named}".encode())
  return found


def files_with(folder, secrets):
  files = [path for path in folder.rglob("*") if path.is_file()]
  assert files
  return {
    path.relative_to(folder)
    for path in files
    if any(secret in path.read_bytes() for secret in secrets)
  }


def test_a_release_holds_no_seed_and_no_key(tmp_path):
  seed = 9_876_543_210
  config = {"training": {"seed": seed, "num_steps": 12}}
  state, _ = toy.fit(tmp_path, seed=seed, config=config)
  secrets = secrets_of(tmp_path)
  assert files_with(tmp_path / "release", secrets) == set()
  # The same search finds them where they are.
  assert pathlib.Path("config.json") in files_with(tmp_path, secrets)
  assert files_with(tmp_path / "checkpoints", secrets)
  # What is stored compressed is there by name: parameters alone.
  stored = json.loads((tmp_path / "release/params/_METADATA").read_text())
  assert stored["tree_metadata"].keys() == {"('kernel',)"}
  release = json.loads((tmp_path / "release" / "config.json").read_text())
  assert release == {"training": {"num_steps": 12}}
  assert state.mechanism_state.key.shape == (2,)


def test_only_checkpoints_hold_seeds_from_the_operating_system(finished):
  workdir, state, _ = finished
  secrets = secrets_of(workdir)
  key = np.asarray(state.mechanism_state.key)
  assert key.tobytes() in secrets
  found = files_with(workdir, secrets)
  assert {path.parts[0] for path in found} == {"checkpoints"}


def events(directory):
  """(step, tag, value) of all event files, read as TensorBoard does."""
  from tensorboardX.proto import event_pb2

  found = []
  for path in sorted(directory.iterdir()):
    data = path.read_bytes()
    while data:
      (size,) = struct.unpack("<Q", data[:8])
      event = event_pb2.Event.FromString(data[12 : 12 + size])
      data = data[16 + size :]
      found += [
        (event.step, value.tag, value.simple_value)
        for value in event.summary.value
      ]
  return found


def test_tensorboard_gets_the_numbers_of_the_rows(finished):
  workdir, _, history = finished
  found = {(step, tag): x for step, tag, x in events(workdir / "tensorboard")}
  expected = {
    (row["step"], name): value
    for row in history.metrics
    for name, value in row.items()
    if name != "step"
  }
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    assert found[name] == pytest.approx(value, rel=1e-6)


def test_what_is_sensitive_is_marked_so_everywhere(tmp_path):
  _, history = toy.fit(tmp_path, diagnostics=True)
  public = {"step", "examples_per_second", "epsilon", "update_norm"}
  for row in history.metrics:
    assert row.keys() == {*public, "sensitive"}
    assert row["sensitive"].keys() == set(training.SensitiveInfo._fields)
    assert len(row["sensitive"]["grad_norm_quantiles"]) == 5
  tags = {tag for _, tag, _ in events(tmp_path / "tensorboard")}
  sensitive = {tag for tag in tags if tag not in public}
  assert len(sensitive) == 9
  assert all(tag.startswith("sensitive/") for tag in sensitive)


def test_nothing_sensitive_is_written_unless_asked_for(finished):
  assert "sensitive" not in (finished[0] / "metrics.jsonl").read_text()
  tags = {tag for _, tag, _ in events(finished[0] / "tensorboard")}
  assert not any("sensitive" in tag for tag in tags)


def test_no_log_or_progress_bar_shows_a_secret_or_a_sensitive_number(
  tmp_path, caplog, capfd
):
  with caplog.at_level(logging.DEBUG):
    _, history = toy.fit(tmp_path, diagnostics=True, progress=True)
  output = capfd.readouterr()
  text = "\n".join([output.out, output.err, caplog.text])
  assert "12/12" in text  # the progress bar
  assert len(caplog.records) > 10
  rows = (tmp_path / "metrics.jsonl").read_text()
  for name in training.SensitiveInfo._fields:
    assert name in rows
    assert name not in text
  for row in history.metrics:
    for value in np.hstack(list(row["sensitive"].values())):
      if value % 1:  # 0 and 1 are everywhere
        assert f"{value:.5g}" not in text
  secrets = [s for s in secrets_of(tmp_path) if len(s) > 7]
  assert not any(secret in text.encode() for secret in secrets)


def test_the_progress_bar_shows_epsilon_accuracy_and_speed(capsys):
  toy.fit(progress=True, eval_fn=toy.accuracy)
  text = capsys.readouterr().err
  assert "12/12" in text
  for part in ("ε=", "accuracy=0.", " ex/s"):
    assert part in text


def test_the_same_call_again_shows_the_statement_without_training(
  finished, monkeypatch
):
  workdir, state, history = finished

  def refuse(*args):
    raise AssertionError("a finished run must not be compiled again")

  monkeypatch.setattr(_program, "Program", refuse)
  before = (workdir / "ledger.json").read_text()
  config = json.loads((workdir / "config.json").read_text())
  again, second = toy.fit(workdir, config=config)
  toy.assert_same(again.params, state.params)
  assert second.statement == history.statement
  assert second.metrics == history.metrics
  assert (workdir / "ledger.json").read_text() == before


def test_a_workdir_of_another_config_is_refused(finished):
  workdir = finished[0]
  config = json.loads((workdir / "config.json").read_text())
  config["optimizer"]["learning_rate"] = 0.25
  files = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
  with pytest.raises(
    ValueError,
    match=r"run of another config: optimizer.learning_rate was 0.5, now 0.25",
  ):
    toy.fit(workdir, config=config)
  after = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
  assert after == files


def test_without_a_config_the_mechanism_must_be_the_same(tmp_path):
  toy.fit(tmp_path, num_steps=4)
  with pytest.raises(ValueError, match=r"noise_multiplier was 5.0, now 6.0"):
    toy.fit(
      tmp_path, num_steps=4, mechanism=toy.mechanism(noise_multiplier=6.0)
    )


def test_a_checkpoint_of_another_optimizer_is_refused_and_kept(finished):
  workdir = finished[0]
  config = json.loads((workdir / "config.json").read_text())
  with pytest.raises(
    ValueError,
    match=r"another model or optimizer: opt_state/0/trace/kernel was",
  ):
    toy.fit(
      workdir,
      config=config,
      optimizer=jaxdp.optimizers.adam_bc(0.1),
    )
  names = {path.name for path in (workdir / "checkpoints").iterdir()}
  assert names == {"4", "8", "12"}
