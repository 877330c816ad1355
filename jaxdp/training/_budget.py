"""How far ``max_epsilon`` lets a run go."""

import bisect
import logging

from jaxdp.accounting import Ledger

_LOG = logging.getLogger("jaxdp")


def affordable_end(
  ledger: Ledger | None,
  first_step: int,
  num_steps: int,
  delta: float | None,
  max_epsilon: float | None,
) -> int:
  """The last step that a run may make, at most ``num_steps``.

  Args:
    ledger: what was charged; None without privacy.
    first_step: where the run goes on.
    num_steps: of the whole run.
    delta: at which epsilon is meant.
    max_epsilon: None for no limit.
  """
  if ledger is None or max_epsilon is None or delta is None:
    return num_steps
  free = max(ledger.next_step, first_step)  # charged already

  def exceeds(more: int) -> bool:
    return ledger.epsilon(delta, extra_steps=more) > max_epsilon

  if not exceeds(num_steps - free):
    return num_steps
  # bisect finds the first number of further steps that exceeds the limit.
  more = bisect.bisect_left(range(num_steps - free), True, key=exceeds)
  end = free + max(more - 1, 0)
  _LOG.warning(
    "max_epsilon=%g at delta=%g is reached after step %d of %d: the run stops "
    "there. jaxdp.calibrate_noise finds the noise for all of them.",
    max_epsilon,
    delta,
    end,
    num_steps,
  )
  return end
