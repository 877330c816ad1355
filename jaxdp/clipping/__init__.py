"""Clipping rules: the only thing a clipping method is (see ``_rule.py``).

A rule turns the norms of a unit's gradient into weights and states one bound.
One family a file; ``RULES`` names the functions that make one.
"""

from jaxdp.clipping._flat import flat, no_clipping, normalized
from jaxdp.clipping._groups import Groups, assign_groups
from jaxdp.clipping._groupwise import groupwise, per_layer
from jaxdp.clipping._rule import ClippingRule, rule_from_dict

RULES = ("flat", "groupwise", "no_clipping", "normalized", "per_layer")

__all__ = [
  "RULES",
  "ClippingRule",
  "Groups",
  "assign_groups",
  "flat",
  "groupwise",
  "no_clipping",
  "normalized",
  "per_layer",
  "rule_from_dict",
]
