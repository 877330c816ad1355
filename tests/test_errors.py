"""Refusals are one message; bugs keep their traceback."""

import pytest

from jaxdp import clipping, errors, sampling


def raised(make):
  with pytest.raises(Exception) as caught:
    make()
  return caught.value


def asserted():
  raise AssertionError("no refusal")


@pytest.mark.parametrize(
  "make",
  [
    lambda: clipping.flat(-1.0),
    lambda: sampling.Poisson(num_examples=10, expected_batch_size=11),
    lambda: sampling.from_dict({"sampler": "Best"}),
  ],
)
def test_what_jaxdp_raises_is_a_refusal(make):
  assert errors.is_refusal(raised(make))


@pytest.mark.parametrize(
  "make",
  [
    lambda: clipping.flat(),  # type: ignore[call-arg]
    lambda: sampling.FullBatch(10).check(None + 1),  # type: ignore[operator]
    lambda: sampling.from_dict(7),  # type: ignore[arg-type]
    lambda: int("x"),
    asserted,
  ],
)
def test_what_goes_wrong_elsewhere_is_none(make):
  assert not errors.is_refusal(raised(make))


def refuse(arguments):
  clipping.flat(0.0)


def break_down(arguments):
  arguments.nothing()


def test_a_refusal_is_one_line_and_status_two(capsys, monkeypatch):
  monkeypatch.delenv(errors.DEBUG, raising=False)
  with pytest.raises(SystemExit) as caught:
    errors.explained(refuse)([])
  assert caught.value.code == 2
  out, err = capsys.readouterr()
  assert not out
  assert err.startswith("error: l2_clip_norm must be > 0")
  assert err.count("\n") == 1


def test_the_traceback_of_a_refusal_is_there_on_demand(capsys, monkeypatch):
  monkeypatch.setenv(errors.DEBUG, "1")
  with pytest.raises(SystemExit):
    errors.explained(refuse)([])
  err = capsys.readouterr().err
  assert "Traceback" in err
  assert "error: l2_clip_norm must be > 0" in err


def test_a_bug_keeps_its_traceback():
  with pytest.raises(AttributeError):
    errors.explained(break_down)([])
