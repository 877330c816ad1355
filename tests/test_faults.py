"""What ends a run from outside costs no step, and gives no other result.

`test_resume.py` has crashes, `test_files.py` damaged files, `kills.py` kill -9.
"""

import contextlib
import itertools
import json
import os
import signal
import threading
import time

import jax
import pytest

from jaxdp import training
from jaxdp.training import _faults, _files, _program
from tests import processes, toy
from tests.crashes import (
  assert_as_if_nothing_had_happened,
  crash_in,
  fit,
  ledger_of,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """The run that nothing interrupted."""
  workdir = tmp_path_factory.mktemp("faults") / "whole"
  state, history = fit(workdir)
  return workdir, state, history


def checkpoints_of(workdir):
  names = (path.name for path in (workdir / "checkpoints").iterdir())
  return sorted(int(name) for name in names if name.isdigit())


# SIGTERM.


def send_in_call(patch, number, at=signal.SIGTERM):
  """Sends the signal to this process while the number-th call runs."""
  call = _program.Program.__call__
  calls = itertools.count(1)

  def with_signal(*args):
    if next(calls) == number:
      os.kill(os.getpid(), at)
    return call(*args)

  patch.setattr(_program.Program, "__call__", with_signal)


@contextlib.contextmanager
def handled(handler):
  """Another handler of SIGTERM, as a program around the library may have."""
  before = signal.signal(signal.SIGTERM, handler)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


def test_sigterm_ends_a_run_after_a_checkpoint(tmp_path, whole, caplog):
  def handler(number, frame):
    raise AssertionError("the first signal is the library's")

  with pytest.MonkeyPatch.context() as patch, handled(handler):
    send_in_call(patch, 3)  # of six calls, two steps each
    with pytest.raises(
      training.Terminated, match=r"after step 6.*same command"
    ) as caught:
      fit(tmp_path)
    assert signal.getsignal(signal.SIGTERM) is handler
  assert caught.value.code == 143
  assert "Ended by SIGTERM after step 6" in caplog.text
  assert checkpoints_of(tmp_path) == [0, 4, 6]
  assert ledger_of(tmp_path).num_steps == 6  # nothing was charged beyond
  state, history = fit(tmp_path)
  assert_as_if_nothing_had_happened(tmp_path, state, history, whole)


def test_sigterm_in_the_last_call_comes_after_the_release(tmp_path, whole):
  with pytest.MonkeyPatch.context() as patch:
    send_in_call(patch, 6)
    with pytest.raises(training.Terminated, match="after step 12"):
      fit(tmp_path)
  released = training.load_release(tmp_path, toy.params())
  toy.assert_same(released, whole[1].params)


def test_a_second_sigterm_is_for_the_handler_of_before(tmp_path):
  seen = []
  with (
    handled(lambda number, frame: seen.append(number)),
    _faults.grace() as grace,
  ):
    os.kill(os.getpid(), signal.SIGTERM)
    assert grace.is_over()
    assert not seen
    os.kill(os.getpid(), signal.SIGTERM)
    assert seen == [signal.SIGTERM]


def test_without_a_workdir_sigterm_says_that_nothing_is_kept(monkeypatch):
  send_in_call(monkeypatch, 1)
  with pytest.raises(training.Terminated, match="nothing of it is kept"):
    fit(None)


def test_beside_the_main_thread_signals_are_left_alone():
  handlers = []

  def run():
    with _faults.grace() as grace:
      handlers.append(signal.getsignal(signal.SIGTERM))
      assert not grace.is_over()

  before = signal.getsignal(signal.SIGTERM)
  thread = threading.Thread(target=run)
  thread.start()
  thread.join()
  assert handlers == [before]


# A full disk.


def fill_the_disk(patch, number, written):
  """Makes the number-th write fail, before or after its data are written."""
  explained = _files.explained_disk_errors
  writes = itertools.count(1)

  @contextlib.contextmanager
  def full(path):
    with explained(path):
      fails = next(writes) == number
      error = OSError(28, "No space left on device")
      if fails and not written:
        raise error
      yield
      if fails:
        raise error

  patch.setattr(_files, "explained_disk_errors", full)
  return writes


def number_of_writes(workdir):
  with pytest.MonkeyPatch.context() as patch:
    writes = fill_the_disk(patch, 0, False)
    fit(workdir)
    return next(writes) - 1


def full_at(workdir, number, written, whole):
  with pytest.MonkeyPatch.context() as patch:
    fill_the_disk(patch, number, written)
    with pytest.raises(OSError, match=r"disk is full.*same command again"):
      fit(workdir)
  rows = workdir / "metrics.jsonl"
  shown = rows.read_text().splitlines() if rows.exists() else []
  if shown:
    charged = ledger_of(workdir).num_steps
    assert charged >= max(json.loads(row)["step"] for row in shown)
  state, history = fit(workdir)
  assert_as_if_nothing_had_happened(workdir, state, history, whole)


@pytest.mark.parametrize(
  "number, written", [(1, False), (9, True), (20, False)]
)
def test_a_disk_that_is_full_at_a_write_costs_nothing(
  number, written, tmp_path, whole
):
  full_at(tmp_path, number, written, whole)


# A file that cannot be closed is closed by the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
def test_a_disk_that_is_full_at_any_write_costs_nothing(tmp_path, whole):
  total = number_of_writes(tmp_path / "counted")
  assert total > 25
  for number in range(1, total + 1):
    written = number % 2 == 0
    full_at(tmp_path / str(number), number, written, whole)


# Clocks.


def test_wall_time_that_jumps_moves_nothing(tmp_path, whole, monkeypatch):
  """It goes back a year, and on by two, every time that it is asked for."""
  year = 365 * 24 * 3600
  wall, wall_ns = time.time, time.time_ns
  jumps = itertools.cycle([-year, year])
  monkeypatch.setattr(time, "time", lambda: wall() + next(jumps))
  monkeypatch.setattr(time, "time_ns", lambda: wall_ns() + next(jumps) * 10**9)
  assert abs(time.time() - time.time()) > year
  begin = time.monotonic()
  with pytest.MonkeyPatch.context() as patch:
    crash_in(patch, _program.Program, "__call__", 4, error=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
      fit(tmp_path)
  state, history = fit(tmp_path)
  seconds = time.monotonic() - begin
  assert_as_if_nothing_had_happened(tmp_path, state, history, whole)
  for row in history.metrics:
    took = 2 * toy.NUM_EXAMPLES / row["examples_per_second"]
    assert 0 < took < seconds


# A lost device, a lost process.


def test_a_device_that_is_lost_costs_nothing(tmp_path, whole):
  error = jax.errors.JaxRuntimeError("INTERNAL: device lost")
  with pytest.MonkeyPatch.context() as patch:
    crash_in(patch, _program.Program, "__call__", 4, error=error)
    with pytest.raises(jax.errors.JaxRuntimeError, match="lost") as caught:
      fit(tmp_path)
  assert "the same command goes on" in caught.value.__notes__[0]
  assert ledger_of(tmp_path).num_steps == 8
  state, history = fit(tmp_path)
  assert_as_if_nothing_had_happened(tmp_path, state, history, whole)


def test_of_errors_among_processes_only_silence_is_a_loss(monkeypatch):
  def raised(text, error=jax.errors.JaxRuntimeError):
    with pytest.raises(Exception) as caught, _faults.explained_losses():
      raise error(text)
    return caught.type

  silent = "UNKNOWN: Gloo all-reduce failed: Connection reset by peer"
  assert raised(silent) is jax.errors.JaxRuntimeError
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  assert raised(silent) is training.LostProcessError
  assert raised(silent, ValueError) is training.LostProcessError
  assert raised("Another gloo", ValueError) is ValueError
  memory = "RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes"
  assert raised(memory) is jax.errors.JaxRuntimeError


def last_checkpoint(workdir):
  folder = workdir / "checkpoints"
  return max(checkpoints_of(workdir), default=0) if folder.exists() else 0


def wait_for_a_checkpoint(workdir, after, child, seconds=120):
  end = time.monotonic() + seconds
  while last_checkpoint(workdir) <= after:
    assert child.poll() is None, child.communicate()[0]
    assert time.monotonic() < end, f"no checkpoint in {seconds} s"
    time.sleep(0.02)


LONG = {"num_steps": 4000, "checkpoint_every": 8, "log_every": 8}


def hit(workdir, number, which, at):
  """Sends a signal to one of some processes; what they end with, and say."""
  port, before = processes.free_port(), last_checkpoint(workdir)
  running = [
    processes.start(workdir, number, index, port, **LONG)
    for index in range(number)
  ]
  try:
    wait_for_a_checkpoint(workdir, before, running[which])
    begin = time.monotonic()
    running[which].send_signal(at)
    texts = [child.communicate(timeout=60)[0] for child in running]
    seconds = time.monotonic() - begin
  finally:
    for child in running:
      child.kill()
      child.wait()
  return [child.returncode for child in running], texts, seconds


@pytest.mark.slow
def test_a_script_that_gets_sigterm_ends_with_143(tmp_path):
  (code,), (text,), _ = hit(tmp_path / "run", 1, 0, signal.SIGTERM)
  assert code == 143, text
  assert "Ended by SIGTERM" in text
  assert "Traceback" not in text
  last = last_checkpoint(tmp_path / "run")
  assert ledger_of(tmp_path / "run").num_steps == last


@pytest.mark.slow
def test_sigterm_to_one_of_two_processes_ends_both(tmp_path):
  codes, texts, seconds = hit(tmp_path / "run", 2, 1, signal.SIGTERM)
  assert codes == [143, 143], texts
  assert seconds < 30
  last = last_checkpoint(tmp_path / "run")
  assert ledger_of(tmp_path / "run").num_steps == last


@pytest.mark.slow
def test_of_two_processes_one_that_is_killed_ends_the_other_in_order(tmp_path):
  codes, texts, seconds = hit(tmp_path / "run", 2, 1, signal.SIGKILL)
  assert codes == [os.EX_TEMPFAIL, -signal.SIGKILL], texts
  assert "LostProcessError: Process 0 of 2 gets no answer" in texts[0]
  assert seconds < 30  # and not those of a heartbeat or of a shutdown
  last = last_checkpoint(tmp_path / "run")
  assert ledger_of(tmp_path / "run").num_steps >= last
  # All of them, started again, go on, and can be ended once more.
  codes, texts, _ = hit(tmp_path / "run", 2, 0, signal.SIGTERM)
  assert codes == [143, 143], texts
  ledger = ledger_of(tmp_path / "run")
  assert ledger.incarnation == 0
  assert ledger.num_steps == last_checkpoint(tmp_path / "run") >= last


@pytest.mark.slow
def test_if_the_first_process_is_killed_the_other_does_not_wait(tmp_path):
  """JAX may end it before the library learns why; the run can go on anyway."""
  codes, texts, seconds = hit(tmp_path / "run", 2, 0, signal.SIGKILL)
  assert codes[0] == -signal.SIGKILL
  assert codes[1] in (os.EX_TEMPFAIL, -signal.SIGABRT), texts
  assert seconds < 30
  codes, texts, _ = hit(tmp_path / "run", 2, 1, signal.SIGTERM)
  assert codes == [143, 143], texts
