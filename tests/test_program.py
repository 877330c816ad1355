"""The program of a run: scanned, or a step at a time, it is the same run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp
from jaxdp.training import _program
from tests import toy


def convolve(x, kernel):
  dims = ("NWC", "WIO", "NWC")
  x, kernel = x[None, :, None], kernel[:, None, None]
  y = jax.lax.conv_general_dilated(
    x, kernel, (2,), "SAME", dimension_numbers=dims
  )
  return jnp.tanh(y[0, :, 0])


def convolutional_loss(params, example):
  hidden = convolve(example["x"], params["filter"])
  logits = hidden @ params["kernel"]
  return -jax.nn.log_softmax(logits)[example["label"]]


def fit(**changes):
  params = {"filter": jnp.ones(3) / 3, "kernel": jnp.full((3, 3), 0.01)}
  return toy.fit(
    params=params,
    loss_fn=convolutional_loss,
    seed=5,
    diagnostics=True,
    **changes,
  )


@pytest.fixture(scope="module")
def stepped():
  return fit()


def test_only_programs_with_convolutions_are_slow_in_a_loop_on_a_cpu():
  x = jnp.ones(6)
  dense = jax.jit(lambda x: jnp.outer(x, x) @ x).lower(x)
  assert not _program._slow_in_a_loop(dense)
  assert _program._slow_in_a_loop(jax.jit(convolve).lower(x, jnp.ones(3)))


def test_a_run_a_step_at_a_time_is_the_run_that_is_scanned(
  stepped, monkeypatch
):
  monkeypatch.setattr(_program, "_slow_in_a_loop", lambda lowered: False)
  (state, history), (scanned, expected) = stepped, fit()
  toy.assert_close(state.params, scanned.params)
  for row, other in zip(history.metrics, expected.metrics, strict=True):
    assert row["step"] == other["step"]
    assert row["epsilon"] == other["epsilon"]
    np.testing.assert_allclose(row["update_norm"], other["update_norm"], 1e-4)
    for name, value in row["sensitive"].items():
      np.testing.assert_allclose(value, other["sensitive"][name], 1e-4)


def test_calls_of_several_lengths_run_a_step_at_a_time(stepped):
  # Calls of three steps and of one, between rows every four.
  performance = jaxdp.PerformanceFlags(steps_per_call=3)
  state, _ = fit(performance=performance)
  toy.assert_close(state.params, stepped[0].params)
