"""Bad input gets one clear error, before anything is compiled or written.

The tables are in `tests/bad_inputs/`.
"""

import hashlib

import jax
import jax.numpy as jnp
import pytest
from jax import monitoring

from jaxdp import errors, experiment
from tests import gate, toy
from tests.bad_inputs import configs, fits
from tests.test_experiment import small


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
