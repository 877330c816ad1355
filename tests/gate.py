"""Training up to where it would compile for the first time, and no further.

Everything before is done as ever: config, data, mechanism, model, trace of the
loss, run directory.
"""

import contextlib
from unittest import mock

from jaxdp import experiment, probe


class Reached(Exception):
  """The input was accepted: compilation would begin."""


@contextlib.contextmanager
def closed():
  """Ends what would compile, by ``Reached``."""
  with mock.patch.object(probe, "check_gradients", side_effect=Reached):
    yield


def accepts(config, workdir=None):
  """Whether a config is accepted; raises what it is refused with."""
  try:
    with closed():
      experiment.train(config, workdir, progress=False)
  except Reached:
    return True
  return False
