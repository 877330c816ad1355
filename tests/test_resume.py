"""A run that was stopped goes on: as a replay, or paying for what it repeats.

`tests/kills.py` does the same with real processes and SIGKILL.
"""

import json
import os
import shutil
import subprocess

import jax
import numpy as np
import optax
import pytest

import jaxdp
from jaxdp.training import (
  _checkpoint,
  _files,
  _metrics,
  _program,
  _resume,
  _seeds,
)
from tests import kills, toy
from tests.crashes import (
  CrashError,
  assert_as_if_nothing_had_happened,
  crash,
  crash_after_step_6,
  crash_in,
  fit,
  ledger_of,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """The run that nothing interrupted."""
  workdir = tmp_path_factory.mktemp("resume") / "whole"
  state, history = fit(workdir)
  return workdir, state, history


# Replays.

MOMENTS = {
  "when no step was made": (_program.Program, "__call__", 1, True),
  "when steps were charged": (_program.Program, "__call__", 4, True),
  "before the release": (_checkpoint.Checkpoints, "close", 1, True),
}
MORE_MOMENTS = {
  "before the first checkpoint": (_checkpoint.Checkpoints, "save", 1, True),
  "after the first checkpoint": (_checkpoint.Checkpoints, "save", 1, False),
  "when the first steps were made": (_program.Program, "__call__", 1, False),
  "when steps were made": (_program.Program, "__call__", 4, False),
  "when a row was written": (_metrics.Metrics, "write", 3, False),
  "before a checkpoint": (_checkpoint.Checkpoints, "save", 3, True),
  "after a checkpoint": (_checkpoint.Checkpoints, "save", 3, False),
  "before the last checkpoint": (_checkpoint.Checkpoints, "save", 4, True),
}


@pytest.mark.parametrize(
  "moment",
  [*MOMENTS, *(pytest.param(m, marks=pytest.mark.slow) for m in MORE_MOMENTS)],
)
def test_a_run_that_was_stopped_ends_as_if_nothing_had_happened(
  moment, tmp_path, whole
):
  crash(tmp_path, *{**MOMENTS, **MORE_MOMENTS}[moment])
  state, history = fit(tmp_path)
  assert_as_if_nothing_had_happened(tmp_path, state, history, whole)


@pytest.mark.slow
def test_a_run_that_is_stopped_again_and_again_ends_the_same(tmp_path, whole):
  for number in (3, 2, 2, 1, 3):
    crash(tmp_path, _program.Program, "__call__", number)
  state, history = fit(tmp_path)
  assert_as_if_nothing_had_happened(tmp_path, state, history, whole)


def test_a_ledger_that_was_half_written_is_the_one_before(tmp_path, whole):
  with pytest.MonkeyPatch.context() as patch:
    replace = os.replace

    def half(source, target):
      if '"next_step": 12' in source.read_text():
        raise CrashError
      replace(source, target)

    patch.setattr(os, "replace", half)
    with pytest.raises(CrashError):
      fit(tmp_path)
  assert ledger_of(tmp_path).num_steps == 10
  state, history = fit(tmp_path)
  assert_as_if_nothing_had_happened(tmp_path, state, history, whole)
  assert [path.name for path in tmp_path.glob(".*")] == [".lock"]


def test_steps_are_charged_on_disk_before_they_run(tmp_path):
  crash(tmp_path, _program.Program, "__call__", 1)
  assert ledger_of(tmp_path).num_steps == 2
  steps = [p.name for p in (tmp_path / "checkpoints").iterdir()]
  assert steps == ["0"]


def test_seeds_from_the_operating_system_outlive_a_crash(tmp_path):
  crash_after_step_6(tmp_path, seed=None)
  path = tmp_path / "checkpoints" / "4" / "meta" / "metadata"
  seeds = _seeds.Seeds.from_json(json.loads(path.read_text())["seeds"])
  state, history = fit(tmp_path, seed=None)
  assert state.mechanism_state.key.tolist() == list(seeds.noise)
  assert history.ledger.num_steps == 12
  assert history.statement.seed_policy == "os"


def test_a_run_without_privacy_resumes_too(tmp_path):
  changes = {"mechanism": None, "sampler": toy.full_batch(), "delta": None}
  expected, _ = fit(tmp_path / "whole", **changes)
  crash_after_step_6(tmp_path / "run", **changes)
  state, _ = fit(tmp_path / "run", **changes)
  toy.assert_same(state, expected)


def test_rows_of_steps_that_are_made_again_are_hidden_in_tensorboard(tmp_path):
  from tensorboardX.proto import event_pb2

  crash_after_step_6(tmp_path)
  fit(tmp_path)
  files = (tmp_path / "tensorboard").iterdir()
  first = [path.read_bytes() for path in sorted(files)]
  starts = []
  for data in first:
    while data:
      size = int.from_bytes(data[:8], "little")
      event = event_pb2.Event.FromString(data[12 : 12 + size])
      data = data[16 + size :]
      if event.HasField("session_log"):
        starts.append(event.step)
  assert starts == [1, 5]


# Another environment.


def in_another_version(patch):
  versions = _files.versions
  patch.setattr(_files, "versions", lambda: {**versions(), "jax": "0.0.1"})


def with_another_flag(patch):
  flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_another_flag=true"
  patch.setenv("XLA_FLAGS", flags)


def on_another_processor(patch):
  patch.setattr(_resume, "_host", lambda: "another")


def on_a_gpu(patch):
  patch.setattr(jax, "default_backend", lambda: "gpu")


OTHER_DATA = {**toy.dataset(), "label": np.zeros(48, int)}
CHANGES = {
  "jax": (in_another_version, {}),
  "program": (None, {"optimizer": optax.sgd(0.4, momentum=0.9)}),
  "dataset": (None, {"dataset": OTHER_DATA}),
  "calls": (
    None,
    {"performance": jaxdp.PerformanceFlags(steps_per_call=1)},
  ),
}


@pytest.mark.parametrize(
  "change",
  [in_another_version, with_another_flag, on_another_processor, on_a_gpu],
)
def test_the_fingerprint_tells_environments_apart(change, monkeypatch):
  before = _resume.fingerprint(program="a")
  assert _resume.fingerprint(program="a") == before
  assert _resume.fingerprint(program="b") != before
  change(monkeypatch)
  assert _resume.fingerprint(program="a") != before


@pytest.mark.parametrize(
  "change",
  [
    "jax",
    "program",
    pytest.param("dataset", marks=pytest.mark.slow),
    pytest.param("calls", marks=pytest.mark.slow),
  ],
)
def test_steps_that_may_come_out_otherwise_are_charged_again(
  change, tmp_path, whole, caplog
):
  crash_after_step_6(tmp_path)
  patch_fn, arguments = CHANGES[change]
  with pytest.MonkeyPatch.context() as patch:
    if patch_fn is not None:
      patch_fn(patch)
    state, history = fit(tmp_path, **arguments)
  ledger = history.ledger
  assert ledger == ledger_of(tmp_path)
  assert ledger.incarnation == 1
  assert ledger.num_steps == 8 + 8  # 0 ... 7, then 4 ... 11 once more
  epsilon = toy.mechanism().epsilon(16, toy.DELTA)
  assert history.statement.epsilon == epsilon
  assert history.metrics[-1]["epsilon"] == epsilon
  warnings = history.statement.warnings
  assert any("4 steps ran again with new noise" in text for text in warnings)
  (warning,) = [text for text in caplog.messages if "Resuming" in text]
  assert "not as before" in warning
  assert change in warning

  before = whole[1].mechanism_state
  assert state.mechanism_state.key.tolist() != before.key.tolist()
  assert int(state.mechanism_state.count) == 12
  assert np.all(state.params["kernel"] != whole[1].params["kernel"])


def test_an_incarnation_has_keys_and_batches_of_its_own():
  seeds = _seeds.Seeds.make(5)
  keys = [tuple(jax.random.key_data(seeds.noise_key(i))) for i in range(4)]
  assert len({tuple(map(int, key)) for key in keys}) == 4
  assert len({seeds.sampler_seed(i) for i in range(4)}) == 4
  assert (
    _seeds.Seeds.from_json(json.loads(json.dumps(seeds.to_json()))) == seeds
  )


def test_a_resume_elsewhere_that_lost_no_step_costs_nothing(tmp_path):
  crash(tmp_path, _checkpoint.Checkpoints, "save", 2, before=False)
  assert ledger_of(tmp_path).num_steps == 4
  with pytest.MonkeyPatch.context() as patch:
    in_another_version(patch)
    _, history = fit(tmp_path)
  assert history.ledger.num_steps == 12
  assert history.ledger.incarnation == 1
  assert not any("ran again" in text for text in history.statement.warnings)


def test_steps_that_ran_elsewhere_are_no_replay_of_an_older_checkpoint(
  tmp_path,
):
  """The checkpoint's own environment again, but the lost steps were not its."""
  crash(tmp_path, _checkpoint.Checkpoints, "save", 2, before=False)
  with pytest.MonkeyPatch.context() as patch:
    in_another_version(patch)
    crash(tmp_path, _program.Program, "__call__", 1, before=False)
  assert ledger_of(tmp_path).num_steps == 6
  _, history = fit(tmp_path)
  assert history.ledger.incarnation == 2
  assert history.ledger.num_steps == 6 + 8


def test_a_finished_run_can_be_looked_at_anywhere(tmp_path):
  state, history = fit(tmp_path)
  with pytest.MonkeyPatch.context() as patch:
    in_another_version(patch)
    again, second = fit(tmp_path)
  toy.assert_same(again, state)
  assert second.statement == history.statement


def test_a_gpu_counts_as_deterministic_only_with_the_flag(monkeypatch):
  on_a_gpu(monkeypatch)
  assert _resume.fingerprint() != _resume.fingerprint()
  monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")
  assert _resume.fingerprint() == _resume.fingerprint()


def test_charges_after_a_resume_stay_within_the_budget(tmp_path):
  mechanism = toy.mechanism()
  limit = mechanism.epsilon(13, toy.DELTA) + 1e-9
  crash_after_step_6(tmp_path, max_epsilon=limit)
  with pytest.MonkeyPatch.context() as patch:
    in_another_version(patch)
    state, history = fit(tmp_path, max_epsilon=limit)
  # 8 steps were charged, so that 5 are left from step 4 on.
  assert int(state.step) == 9
  assert history.stopped_by_budget
  assert history.ledger.num_steps == 13
  assert history.statement.epsilon <= limit


# Without the ledger nothing goes on.


def test_a_run_without_its_ledger_does_not_go_on(tmp_path):
  crash_after_step_6(tmp_path)
  (tmp_path / "ledger.json").unlink()
  with pytest.raises(
    ValueError, match=r"ledger.json is missing.*Bring it back"
  ):
    fit(tmp_path)


def test_a_damaged_ledger_is_not_guessed_at(tmp_path):
  crash_after_step_6(tmp_path)
  path = tmp_path / "ledger.json"
  path.write_text(path.read_text()[:-20])
  with pytest.raises(ValueError, match="not a ledger that can be read"):
    fit(tmp_path)


def test_charged_steps_without_a_checkpoint_are_spent(tmp_path):
  crash_after_step_6(tmp_path)
  shutil.rmtree(tmp_path / "checkpoints")
  with pytest.raises(
    ValueError, match=r"8 steps were charged.*another workdir"
  ):
    fit(tmp_path)


# Damaged checkpoints.


def truncate(folder):
  for path in sorted(folder.rglob("*")):
    if path.is_file() and path.stat().st_size > 100:
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(folder):
  # Of the files beside it (ocdbt.process_0), not all are read again.
  path = max((folder / "state/d").iterdir(), key=lambda p: p.stat().st_size)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 0x40
  path.write_bytes(data)


def lose_the_meta_data(folder):
  shutil.rmtree(folder / "meta")


def change_the_digest(folder):
  path = folder / "meta" / "metadata"
  meta = json.loads(path.read_text())
  meta["digest"] = "0" * 64
  path.write_text(json.dumps(meta))


DAMAGES = [
  flip_a_byte,
  change_the_digest,
  pytest.param(truncate, marks=pytest.mark.slow),
  pytest.param(lose_the_meta_data, marks=pytest.mark.slow),
]


# Where a read fails, orbax leaves the others of the same event loop behind.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", DAMAGES)
def test_of_a_damaged_checkpoint_the_one_before_is_used(
  damage, tmp_path, whole, caplog
):
  shutil.copytree(whole[0], tmp_path / "run")
  damage(tmp_path / "run" / "checkpoints" / "12")
  state, history = fit(tmp_path / "run")
  assert "checkpoint at step 12 is damaged" in caplog.text
  assert "The one before is used" in caplog.text
  assert_as_if_nothing_had_happened(tmp_path / "run", state, history, whole)
  names = {
    p.name.split("-")[0] for p in (tmp_path / "run/checkpoints").iterdir()
  }
  assert names == {"4", "8", "12", "damaged"}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_if_all_checkpoints_are_damaged_the_run_says_so(tmp_path, whole):
  shutil.copytree(whole[0], tmp_path / "run")
  for folder in (tmp_path / "run" / "checkpoints").iterdir():
    truncate(folder)
  with pytest.raises(
    ValueError, match=r"None of the checkpoints \[4, 8, 12\].*new workdir"
  ):
    fit(tmp_path / "run")
  with pytest.raises(ValueError, match="12 steps were charged"):
    fit(tmp_path / "run")


# A full disk.

NO_SPACE = OSError(28, "No space left on device")
TENSORSTORE = ValueError(
  "RESOURCE_EXHAUSTED: Error writing 'params': Failed to write 24407 bytes: No "
  "space left on device [os_error_code='28']"
)


def fill_the_disk(patch, part):
  if part == "checkpoint":
    manager = _checkpoint.ocp.CheckpointManager
    crash_in(patch, manager, "save", 2, error=TENSORSTORE)
  elif part == "release":
    writer = _checkpoint.ocp.Checkpointer  # four checkpoints are written too
    crash_in(patch, writer, "save", 5, error=TENSORSTORE)
  else:
    # A file's data reach the disk, or not, in fsync: the ledger's third time.
    number = {"config": 1, "ledger": 10}[part]
    crash_in(patch, os, "fsync", number, error=NO_SPACE)


@pytest.mark.parametrize(
  "part",
  [
    "ledger",
    "checkpoint",
    pytest.param("config", marks=pytest.mark.slow),
    pytest.param("release", marks=pytest.mark.slow),
  ],
)
def test_a_full_disk_is_explained_and_the_run_goes_on_afterwards(
  part, tmp_path, whole
):
  with pytest.MonkeyPatch.context() as patch:
    fill_the_disk(patch, part)
    with pytest.raises(OSError, match=r"disk is full.*same command again"):
      fit(tmp_path)
  state, history = fit(tmp_path)
  assert_as_if_nothing_had_happened(tmp_path, state, history, whole)


# The threads of orbax that could not write leave their errors behind.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)
@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [8, 64, 128, 192, 256])
def test_a_disk_that_really_is_full(kilobytes, tmp_path, whole):
  disk = tmp_path / "disk"
  disk.mkdir()
  mount = [
    "mount",
    "-t",
    "tmpfs",
    "-o",
    f"size={kilobytes}k",
    "none",
    str(disk),
  ]
  try:
    subprocess.run(mount, check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError):
    pytest.skip("a small disk cannot be mounted here")
  try:
    with pytest.raises(OSError, match=r"disk is full.*same command again"):
      fit(disk / "run")
    more = ["mount", "-o", "remount,size=16m", str(disk)]
    subprocess.run(more, check=True)
    state, history = fit(disk / "run")
    assert_as_if_nothing_had_happened(disk / "run", state, history, whole)
  finally:
    subprocess.run(["umount", str(disk)], check=True)


def test_other_errors_of_the_disk_are_left_as_they_are(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(FileExistsError):
    _files.write_atomic(tmp_path / "file" / "ledger.json", "{}")


@pytest.mark.slow
def test_twenty_kills_later_parameters_and_ledger_are_the_same(tmp_path):
  kills.finish(kills.start_training(tmp_path / "whole"))
  actual = kills.kill_again_and_again(tmp_path / "run", kills=20, seed=1)
  assert actual == kills.outcome(tmp_path / "whole")
