"""Files of a run: who may read them, what damage does, and no code in them."""

import ast
import contextlib
import json
import pathlib
import pickle
import shutil
import stat
import subprocess
import sys

import numpy as np
import pytest

from jaxdp import _lock, training
from jaxdp.accounting import Ledger
from jaxdp.training import _files
from tests import toy
from tests.crashes import assert_as_if_nothing_had_happened, fit

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A finished run, and what it gave."""
  workdir = tmp_path_factory.mktemp("files") / "whole"
  state, history = fit(workdir)
  return workdir, state, history


@pytest.fixture
def copied(whole, tmp_path):
  return pathlib.Path(shutil.copytree(whole[0], tmp_path / "run"))


# Readable by the owner alone.


def test_the_owner_alone_may_read_a_run_directory(whole):
  workdir = whole[0]
  paths = [workdir, *workdir.rglob("*")]
  assert len(paths) > 50
  for path in paths:
    mode = stat.S_IMODE(path.stat().st_mode)
    assert mode == (0o700 if path.is_dir() else 0o600), path


def test_a_folder_that_was_there_keeps_its_mode_and_hides_the_seeds(tmp_path):
  tmp_path.chmod(0o755)
  fit(tmp_path)
  assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
  for path in (tmp_path / "checkpoints", *tmp_path.rglob("checkpoints/**/*")):
    assert not path.stat().st_mode & 0o077, path
  assert not (tmp_path / "config.json").stat().st_mode & 0o077


def test_what_is_written_again_loses_the_modes_it_had(tmp_path):
  path = tmp_path / "ledger.json"
  path.write_text("before")
  path.chmod(0o644)
  _files.write_atomic(path, "now")
  assert path.read_text() == "now"
  assert stat.S_IMODE(path.stat().st_mode) == 0o600


# Damage is found.


def flipped(data, position):
  """The same with one bit flipped."""
  changed = bytearray(data)
  changed[position] ^= 1 << position % 8
  return bytes(changed)


def read_ledger(data):
  return Ledger.from_json(data.decode("utf-8", errors="replace"))


def test_a_bit_flipped_anywhere_in_a_ledger_is_found(whole):
  data = (whole[0] / "ledger.json").read_bytes()
  same = 0
  for position in range(len(data)):
    with contextlib.suppress(ValueError):
      assert read_ledger(flipped(data, position)) == whole[2].ledger
      same += 1
  # Of spaces between values, some flip to another kind of space.
  assert same < 0.4 * len(data)


def test_a_ledger_cut_short_anywhere_is_found(whole):
  data = (whole[0] / "ledger.json").read_bytes()
  assert read_ledger(data[:-1]) == whole[2].ledger  # without its last newline
  for length in range(len(data) - 1):
    with pytest.raises(ValueError, match="not a ledger that can be read"):
      read_ledger(data[:length])


def test_a_ledger_of_earlier_code_is_refused(whole):
  record = json.loads((whole[0] / "ledger.json").read_text())
  with pytest.raises(ValueError, match="format 1 is not 2"):
    Ledger.from_json(json.dumps({**record, "format": 1}))


def test_a_damaged_ledger_is_named_and_stops_the_run(copied):
  path = copied / "ledger.json"
  path.write_text(path.read_text().replace('"num_steps": 12', '"num_steps": 2'))
  with pytest.raises(ValueError, match=r"ledger.json: this is not a ledger"):
    fit(copied)


def change_meta(**changes):
  def change(run):
    path = run / "checkpoints" / "12" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    assert meta.keys() >= changes.keys()
    path.write_text(json.dumps({**meta, **changes}))

  return change


@pytest.mark.parametrize(
  "damage",
  [
    change_meta(seeds={"sampler": "1", "noise": [1, 2], "named": 5}),
    pytest.param(change_meta(incarnation=1), marks=pytest.mark.slow),
    pytest.param(change_meta(structure={}), marks=pytest.mark.slow),
    pytest.param(change_meta(rows="0" * 64), marks=pytest.mark.slow),
  ],
)
def test_a_checkpoint_with_other_seeds_is_damaged(
  damage, copied, whole, caplog
):
  """Other seeds would be other releases under the name of a replay."""
  damage(copied)
  state, history = fit(copied)
  assert "meta data do not match their digest" in caplog.text
  assert_as_if_nothing_had_happened(copied, state, history, whole)


def cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
  data = path.read_bytes()
  path.write_bytes(flipped(data, len(data) // 2) if data else b"!")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)
@pytest.mark.slow
@pytest.mark.parametrize("damage", [cut, flip, pathlib.Path.unlink])
def test_no_damage_to_any_file_of_a_checkpoint_changes_a_result(
  damage, tmp_path, whole
):
  folder = whole[0] / "checkpoints" / "12"
  files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
  assert len(files) > 8
  for number, path in enumerate(files):
    run = tmp_path / str(number)
    shutil.copytree(whole[0], run)
    damage(run / path.relative_to(whole[0]))
    state, history = fit(run)
    assert_as_if_nothing_had_happened(run, state, history, whole)


def test_metrics_that_were_changed_are_found(copied, whole, caplog):
  path = copied / "metrics.jsonl"
  text = path.read_text()
  path.write_text(text.replace('"epsilon": ', '"epsilon": 1', 1))
  with pytest.raises(ValueError, match=r"metrics.jsonl is damaged.*delete it"):
    fit(copied)
  path.write_text(text[: len(text) // 2])
  with pytest.raises(ValueError, match=r"metrics.jsonl is damaged.*delete it"):
    fit(copied)
  path.unlink()
  assert fit(copied)[1].statement == whole[2].statement
  assert "metrics.jsonl is missing" in caplog.text


@pytest.mark.parametrize(
  "text, error",
  [
    ('{"mechanism', "config.json is damaged"),
    ("\x00", "config.json is damaged"),
    ('{"num_steps": 13}', "num_steps was 13, now 12"),
  ],
)
def test_a_config_that_was_changed_is_found(text, error, copied):
  (copied / "config.json").write_text(text)
  with pytest.raises(ValueError, match=error):
    fit(copied)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [cut, flip])
@pytest.mark.parametrize("name", ["parameters", "digest"])
def test_a_release_that_was_changed_is_found(damage, name, copied, whole):
  release = copied / "release"
  data = (release / "params" / "d").iterdir()
  largest = max(data, key=lambda path: path.stat().st_size)
  damage(largest if name == "parameters" else release / "params.sha256")
  with pytest.raises(ValueError, match=r"cannot be read.*or damaged"):
    training.load_release(copied, toy.params())
  shutil.rmtree(release)
  fit(copied)  # writes it anew
  released = training.load_release(copied, toy.params())
  toy.assert_same(released, whole[1].params)


# One process at a time.


def test_a_second_run_in_a_workdir_is_refused_and_changes_nothing(copied):
  files = {p: p.read_bytes() for p in copied.rglob("*") if p.is_file()}
  with (
    _lock.only_process(copied),
    pytest.raises(BlockingIOError, match=r"Another process.*another workdir"),
  ):
    fit(copied)
  after = {p: p.read_bytes() for p in copied.rglob("*") if p.is_file()}
  assert after == files
  fit(copied)


def test_a_killed_process_leaves_no_lock_behind(tmp_path):
  code = (
    "import pathlib, runpy, sys\n"
    "lock = runpy.run_path(sys.argv[1])['only_process']\n"
    "with lock(pathlib.Path(sys.argv[2])):\n"
    "  print('held', flush=True)\n"
    "  sys.stdin.read()\n"
  )
  command = [sys.executable, "-c", code, _lock.__file__, str(tmp_path)]
  pipe = subprocess.PIPE
  with subprocess.Popen(command, stdin=pipe, stdout=pipe) as child:
    assert child.stdout.readline() == b"held\n"
    with (
      pytest.raises(BlockingIOError, match="Another process"),
      _lock.only_process(tmp_path),
    ):
      pass
    child.kill()
    child.wait()
  with _lock.only_process(tmp_path):
    assert (tmp_path / ".lock").exists()


# No code in files.

FORBIDDEN_MODULES = {
  "cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve", "yaml",
}  # fmt: skip
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "read_pickle"}


def ways_to_run_code(source):
  """Names in a program through which a file could become code."""
  found = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      found |= {name.name.split(".")[0] for name in node.names}
    elif isinstance(node, ast.ImportFrom):
      found.add((node.module or "").split(".")[0])
    elif isinstance(node, ast.Call):
      if isinstance(node.func, ast.Name):  # not jitted.lower().compile()
        found.add(node.func.id)
      elif isinstance(node.func, ast.Attribute):
        if node.func.attr in FORBIDDEN_CALLS - {"compile", "eval"}:
          found.add(node.func.attr)
        if ast.unparse(node.func) in ("np.load", "numpy.load"):
          allow = {k.arg: ast.unparse(k.value) for k in node.keywords}
          if allow.get("allow_pickle") != "False":
            found.add("np.load")
      for keyword in node.keywords:
        if keyword.arg == "shell":
          found.add("shell")
  return found & {
    *FORBIDDEN_MODULES, *FORBIDDEN_CALLS, "np.load", "shell",
  }  # fmt: skip


def test_no_program_of_ours_turns_a_file_into_code():
  paths = [
    path
    for folder in ("jaxdp", "scripts", "configs")
    for path in (ROOT / folder).rglob("*.py")
  ]
  assert len(paths) > 100
  for path in paths:
    assert not ways_to_run_code(path.read_text("utf-8")), path


@pytest.mark.parametrize(
  "source",
  [
    "import pickle",
    "from joblib import load",
    "import yaml.loader",
    "eval(text)",
    "exec(text)",
    "np.load(path)",
    "np.load(path, allow_pickle=True)",
    "pd.read_pickle(path)",
    "subprocess.run(text, shell=True)",
  ],
)
def test_the_search_for_code_sees_it(source):
  assert ways_to_run_code(source)


@pytest.fixture
def no_code(monkeypatch):
  """Fails a test in which anything is unpickled."""

  def refuse(*args, **kwargs):
    raise AssertionError("a file was unpickled")

  for name in ("load", "loads", "Unpickler"):
    monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(f"_pickle.{name}", refuse)


class Payload:
  """Runs code where it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


def payload(tmp_path):
  """Bytes that write a file where they are unpickled, which is tried."""
  path = tmp_path / "code-ran"
  data = pickle.dumps(Payload(path))
  pickle.loads(data)
  assert path.exists()
  path.unlink()
  return data, path


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_files_of_a_run_that_hold_code_do_not_run_it(copied, tmp_path, request):
  data, path = payload(tmp_path)
  request.getfixturevalue("no_code")
  for file in (copied / "checkpoints" / "12").rglob("*"):
    if file.is_file():
      file.write_bytes(data)
  fit(copied)  # from the checkpoint before
  for name in ("ledger.json", "config.json", "metrics.jsonl"):
    before = (copied / name).read_bytes()
    (copied / name).write_bytes(data)
    with pytest.raises(ValueError, match=name):
      fit(copied)
    (copied / name).write_bytes(before)
  for file in (copied / "release").rglob("*"):
    if file.is_file():
      file.write_bytes(data)
  with pytest.raises(ValueError, match="or damaged"):
    training.load_release(copied, toy.params())
  assert not path.exists()


def test_a_results_table_that_holds_code_does_not_run_it(tmp_path, request):
  import pandas as pd

  from jaxdp.studies import design

  data, path = payload(tmp_path)
  table = pd.DataFrame({"run": [0], "lr": [data]})
  table.to_parquet(tmp_path / "design.parquet")
  np.savez(tmp_path / "rows.npz", x=np.array([Payload(path)], object))
  request.getfixturevalue("no_code")
  assert design.load(tmp_path / "design.parquet")["lr"][0] == data
  (tmp_path / "table.parquet").write_bytes(data)
  with pytest.raises(Exception, match=r"[Pp]arquet"):
    design.load(tmp_path / "table.parquet")
  with pytest.raises(ValueError, match="allow_pickle"):
    np.load(tmp_path / "rows.npz", allow_pickle=False)["x"]
  assert not path.exists()


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize(
  "name", ["rule.l2_clip_norm", "rule.name", "training.seed", "model.name"]
)
def test_an_override_of_a_config_is_a_value_and_no_code(
  name, tmp_path, monkeypatch
):
  from absl import flags
  from ml_collections import config_flags

  path = tmp_path / "code-ran"
  code = f"__import__('pathlib').Path({str(path)!r}).touch()"
  command = ["", "--config=configs/digits.py", f"--config.{name}={code}"]
  monkeypatch.setattr(sys, "argv", command)  # where overrides are looked for
  values = flags.FlagValues()
  config_flags.DEFINE_config_file(
    "config", flag_values=values, lock_config=True
  )
  try:
    values(command)
    config = values.config
    for part in name.split("."):
      config = config[part]
    assert config == code  # a text, which says nothing to a rule or a model
  except (flags.IllegalFlagValueError, ValueError, TypeError, SyntaxError):
    pass
  assert not path.exists()
