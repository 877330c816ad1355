"""What a mechanism costs: epsilon, calibration, ledger and statement.

Read ``_epsilon.py`` first. Plain functions take a ``DpEvent``, the name of the
accountant and the relation, all of which a ``Mechanism`` gives; ``gdp`` has the
closed forms of Gaussian differential privacy.
"""

from jaxdp.accounting import _gdp as gdp
from jaxdp.accounting._assumptions import RunFacts
from jaxdp.accounting._calibration import (
  calibrate_batch_size,
  calibrate_noise,
  calibrate_steps,
)
from jaxdp.accounting._epsilon import delta, epsilon
from jaxdp.accounting._events import from_dict as event_from_dict
from jaxdp.accounting._events import to_dict as event_to_dict
from jaxdp.accounting._ledger import Ledger, Plan, Segment
from jaxdp.accounting._selection import Selection
from jaxdp.accounting._statement import PrivacyStatement
from jaxdp.accounting._tradeoff import TradeoffCurve, tradeoff

__all__ = [
  "Ledger",
  "Plan",
  "PrivacyStatement",
  "RunFacts",
  "Segment",
  "Selection",
  "TradeoffCurve",
  "calibrate_batch_size",
  "calibrate_noise",
  "calibrate_steps",
  "delta",
  "epsilon",
  "event_from_dict",
  "event_to_dict",
  "gdp",
  "tradeoff",
]
