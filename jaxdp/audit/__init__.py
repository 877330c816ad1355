"""Measures how much a mechanism shows, to hold against what it claims.

Read ``_bounds.py`` first: from an adversary's scores to lower bounds on epsilon
and mu at a stated confidence. ``mechanism`` plays that adversary against
thousands of short runs. A lower bound above the claim is a bug; one below it
proves nothing.
"""

from jaxdp.audit._audit import AuditResult, mechanism
from jaxdp.audit._bounds import (
  Bound,
  ErrorRate,
  epsilon_lower_bound,
  gdp_epsilon_lower_bound,
  mu_lower_bound,
)
from jaxdp.audit._trials import Scores, linear_loss, scores

__all__ = [
  "AuditResult",
  "Bound",
  "ErrorRate",
  "Scores",
  "epsilon_lower_bound",
  "gdp_epsilon_lower_bound",
  "linear_loss",
  "mechanism",
  "mu_lower_bound",
  "scores",
]
