"""Runs of `toy` that end in the middle, and what they must come to."""

import pytest

import jaxdp
from jaxdp.training import _program
from tests import toy


class CrashError(BaseException):
  """What stops a run; nothing in the library catches it."""


def fit(workdir, **changes):
  return toy.fit(workdir, **{"log_every": 2, "seed": 5, **changes})


def crash_in(monkeypatch, owner, name, number, before=True, error=CrashError):
  """Makes the number-th call of a method the last, before or after its work."""
  method = getattr(owner, name)
  calls = []

  def wrapped(*args, **kwargs):
    calls.append(name)
    if before and len(calls) == number:
      raise error
    result = method(*args, **kwargs)
    if len(calls) == number:
      raise error
    return result

  monkeypatch.setattr(owner, name, wrapped)


def crash(workdir, owner, name, number, before=True, **changes):
  """A run that ends in a crash there."""
  with pytest.MonkeyPatch.context() as patch:
    crash_in(patch, owner, name, number, before)
    with pytest.raises(CrashError):
      fit(workdir, **changes)


def crash_after_step_6(workdir, **changes):
  """Steps 4 and 5 ran after the checkpoint at 4, and 6 and 7 were charged."""
  crash(workdir, _program.Program, "__call__", 4, **changes)


def ledger_of(workdir):
  text = (workdir / "ledger.json").read_text()
  return jaxdp.accounting.Ledger.from_json(text)


def assert_as_if_nothing_had_happened(workdir, state, history, whole):
  toy.assert_same(state, whole[1])
  ledger = (workdir / "ledger.json").read_text()
  assert ledger == (whole[0] / "ledger.json").read_text()
  assert history.statement == whole[2].statement
  steps = [row["step"] for row in history.metrics]
  assert steps == [row["step"] for row in whole[2].metrics]
  released = jaxdp.training.load_release(workdir, toy.params())
  toy.assert_same(released, whole[1].params)
