"""Measures how much a mechanism shows, to hold against what it claims.

``sensitivity`` looks inside: the same randomness on neighbouring data, and how
far the sum moves before the noise. The others look from outside. Read
``_bounds.py`` first: from an adversary's scores to lower bounds on epsilon and
mu at a stated confidence. ``mechanism`` plays that adversary against thousands
of short runs; ``one_run_lower_bound`` needs a single run with many canaries. A
lower bound above the claim is a bug; one below it proves nothing.
"""

from jaxdp.audit._audit import AuditResult, mechanism
from jaxdp.audit._bounds import (
  Bound,
  ErrorRate,
  epsilon_lower_bound,
  gdp_epsilon_lower_bound,
  mu_lower_bound,
)
from jaxdp.audit._neighbours import Blanked
from jaxdp.audit._one_run import (
  OneRunBound,
  one_run_lower_bound,
  one_run_p_value,
)
from jaxdp.audit._sensitivity import Sensitivity, distance, sensitivity
from jaxdp.audit._trials import Scores, linear_loss, scores

__all__ = [
  "AuditResult",
  "Blanked",
  "Bound",
  "ErrorRate",
  "OneRunBound",
  "Scores",
  "Sensitivity",
  "distance",
  "epsilon_lower_bound",
  "gdp_epsilon_lower_bound",
  "linear_loss",
  "mechanism",
  "mu_lower_bound",
  "one_run_lower_bound",
  "one_run_p_value",
  "scores",
  "sensitivity",
]
