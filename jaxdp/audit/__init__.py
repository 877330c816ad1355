"""Measures how much a mechanism shows, to hold against what it claims.

Read ``_bounds.py`` first: from an adversary's scores to lower bounds on epsilon
and mu at a stated confidence. A lower bound above the claim is a bug; one below
it proves nothing.
"""

from jaxdp.audit._bounds import (
  Bound,
  ErrorRate,
  epsilon_lower_bound,
  gdp_epsilon_lower_bound,
  mu_lower_bound,
)

__all__ = [
  "Bound",
  "ErrorRate",
  "epsilon_lower_bound",
  "gdp_epsilon_lower_bound",
  "mu_lower_bound",
]
