"""Bad input gets one clear error, before anything is compiled or written.

The tables are in `tests/bad_inputs/`.
"""

import hashlib
import os
import pathlib
import re
import runpy
import shutil
import subprocess
import sys

import absl.flags
import absl.logging
import jax
import jax.numpy as jnp
import pytest
from jax import monitoring

from jaxdp import errors, experiment, probe
from tests import fuzz_configs, gate, toy
from tests.bad_inputs import checkpoints, configs, datasets, fits, flags
from tests.test_experiment import small

# ml_collections loads a config in an old way.
pytestmark = pytest.mark.filterwarnings(
  "ignore:the load_module:DeprecationWarning"
)
ROOT = pathlib.Path(__file__).resolve().parent.parent


class Compiles:
  """Counts the programs that XLA compiles while it is entered."""

  def __enter__(self):
    self.count = 0
    monitoring.register_event_duration_secs_listener(self._listen)
    return self

  def __exit__(self, *_):
    monitoring.unregister_event_duration_listener(self._listen)

  def _listen(self, event, duration, **kwargs):
    self.count += event == "/jax/core/compile/backend_compile_duration"


def test_compiles_are_counted():
  x = jnp.zeros(3)
  with Compiles() as compiles:
    jax.jit(lambda x: x * 3 + 1.2345)(x)
  assert compiles.count == 1


def content(folder):
  """Every file below a folder, and the digest of what it holds."""
  return {
    str(path.relative_to(folder)): path.is_file()
    and hashlib.sha256(path.read_bytes()).hexdigest()
    for path in folder.rglob("*")
  }


@pytest.fixture(scope="module", autouse=True)
def _warm():
  """Single operations, such as an array of zeros, are compiled here."""
  toy.params(), toy.key()
  assert gate.accepts(small())


def refused(fun, match, folder):
  """Asserts that a call is refused, and leaves no trace."""
  before = content(folder)
  with Compiles() as compiles, pytest.raises(Exception) as caught:
    fun()
  error = caught.value
  assert errors.is_refusal(error), repr(error)
  assert caught.match(f"(?s){match}")
  assert compiles.count == 0
  assert content(folder) == before


@pytest.mark.parametrize("name", configs.ROWS)
def test_bad_configurations(name, tmp_path):
  config, match = configs.ROWS[name]
  workdir = tmp_path / "run"
  refused(
    lambda: experiment.train(config, workdir, progress=False), match, tmp_path
  )


@pytest.mark.parametrize("name", fits.ROWS)
def test_bad_arguments_of_fit(name, tmp_path):
  changes, match = fits.ROWS[name]
  refused(lambda: toy.fit(tmp_path / "run", **changes), match, tmp_path)


@pytest.mark.parametrize("name", datasets.ARRAYS)
def test_bad_arrays(name, tmp_path):
  dataset, match = datasets.ARRAYS[name]
  refused(lambda: toy.fit(tmp_path / "run", dataset=dataset), match, tmp_path)


@pytest.mark.parametrize("name", datasets.PACKS)
def test_bad_data_folders(name, tmp_path):
  make, match = datasets.PACKS[name]
  make(tmp_path)
  config = small(data__name="mine", data__data_dir=str(tmp_path))
  refused(
    lambda: experiment.train(config, tmp_path / "run", progress=False),
    match,
    tmp_path,
  )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp("finished") / "run"
  toy.fit(folder, seed=3)
  return folder


@pytest.mark.parametrize("name", checkpoints.ROWS)
def test_bad_run_directories(name, finished, tmp_path, monkeypatch):
  change, arguments, match = checkpoints.ROWS[name]
  folder = tmp_path / "run"
  shutil.copytree(finished, folder)
  change(folder)
  before = content(folder)
  monkeypatch.setattr(probe, "check_gradients", lambda *_, **__: None)
  with pytest.raises(Exception, match=f"(?s){match}") as caught:
    toy.fit(folder, seed=3, **arguments)
  assert errors.is_refusal(caught.value), repr(caught.value)
  # What is damaged may be set aside. Nothing is lost.
  assert {*before.values()} <= {*content(folder).values()}


@pytest.fixture
def files(tmp_path):
  folder = tmp_path / "files"
  folder.mkdir()
  for name, text in flags.FILES.items():
    (folder / name).write_text(text)
  return folder


def command(name, files, tmp_path):
  script, given, status, match = flags.ROWS[name]
  places = {"files": files, "folder": tmp_path}
  path = str(ROOT / "scripts" / script)
  return [path, *(flag.format(**places) for flag in given)], status, match


def call(argv):
  """Runs a script in this process, as `python` does; its exit status."""
  before = {*absl.flags.FLAGS}
  try:
    with pytest.raises(SystemExit) as caught:
      runpy.run_path(argv[0], run_name="__main__")
  finally:
    for flag in {*absl.flags.FLAGS} - before:
      delattr(absl.flags.FLAGS, flag)
  return caught.value.code


@pytest.mark.parametrize("name", flags.ROWS)
def test_bad_command_lines(name, files, tmp_path, monkeypatch, capfd):
  argv, status, match = command(name, files, tmp_path)
  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(sys, "argv", argv)
  # The handler would outlive this test.
  monkeypatch.setattr(absl.logging, "use_absl_handler", lambda: None)
  before = content(tmp_path)
  with Compiles() as compiles:
    assert call(argv) == status
  out, err = capfd.readouterr()
  assert re.search(match, err, re.DOTALL), err
  assert "Traceback" not in out + err
  assert compiles.count == 0
  assert content(tmp_path) == before


@pytest.mark.parametrize("name", flags.AS_PROCESSES)
def test_bad_command_lines_of_a_shell(name, files, tmp_path):
  argv, status, match = command(name, files, tmp_path)
  before = content(tmp_path)
  done = subprocess.run(
    [sys.executable, "-W", "ignore", *argv],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == status
  assert re.search(match, done.stderr, re.DOTALL), done.stderr
  assert "Traceback" not in done.stderr
  assert not done.stdout
  assert content(tmp_path) == before


@pytest.mark.slow
def test_a_minute_of_changed_configs_is_accepted_or_refused_in_words():
  """`python -m tests.fuzz_configs` does so for longer."""
  outcomes = fuzz_configs.fuzz(minutes=1, seed=7)
  assert not outcomes.others
  assert outcomes.counts["accepted"] > 0 < outcomes.counts["refused"]
