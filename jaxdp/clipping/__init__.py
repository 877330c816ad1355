"""Clipping rules: the only thing a clipping method is (see ``_rule.py``).

A rule turns the norms of a unit's gradient into weights and states one bound.
One family a file; ``RULES`` names the functions that make one.
"""

from jaxdp.clipping._adaptive_layerwise import (
  adaptive_layerwise,
  preconditioned,
)
from jaxdp.clipping._adaptive_quantile import adaptive_quantile
from jaxdp.clipping._automatic import automatic, psac, psasc
from jaxdp.clipping._flat import flat, no_clipping, normalized
from jaxdp.clipping._groups import Groups, assign_groups
from jaxdp.clipping._groupwise import groupwise, per_layer
from jaxdp.clipping._rule import ClippingRule, rule_from_dict
from jaxdp.clipping._scheduled import scheduled

RULES = (
  "adaptive_layerwise",
  "adaptive_quantile",
  "automatic",
  "flat",
  "groupwise",
  "no_clipping",
  "normalized",
  "per_layer",
  "preconditioned",
  "psac",
  "psasc",
)

__all__ = [
  "RULES",
  "ClippingRule",
  "Groups",
  "adaptive_layerwise",
  "adaptive_quantile",
  "assign_groups",
  "automatic",
  "flat",
  "groupwise",
  "no_clipping",
  "normalized",
  "per_layer",
  "preconditioned",
  "psac",
  "psasc",
  "rule_from_dict",
  "scheduled",
]
