"""The contract table: every public clipping rule, in the variants that matter.

A new rule is one row here; `test_rule_contract.py` runs every contract on every
row and fails if a public name of `jaxdp.clipping` has none. Variants are there
for code paths (grouping, noise allocation) and regimes (a clip norm that nearly
all units exceed, or that none does).
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp import clipping
from jaxdp.clipping import ClippingRule


@dataclasses.dataclass(frozen=True)
class Row:
  """One rule under contract."""

  name: str  # the public factory in jaxdp.clipping
  variant: str
  make: Callable[[], ClippingRule]

  @property
  def id(self) -> str:
    return f"{self.name}-{self.variant}" if self.variant else self.name


_per_layer = functools.partial(clipping.per_layer, 0.8)
_groupwise = functools.partial(clipping.groupwise, {"head": 0.3, ".*": 0.7})

_alc = functools.partial(clipping.adaptive_layerwise, 0.7)
_quantile = functools.partial(
  clipping.adaptive_quantile, 0.7, noise_allocation="weighted"
)
_scheduled = functools.partial(
  clipping.scheduled, levels={0: 2.0, 1: 0.1, 3: 5.0}
)

ROWS = (
  Row("flat", "", lambda: clipping.flat(0.7)),
  Row("flat", "tiny", lambda: clipping.flat(1e-6)),
  Row("flat", "huge", lambda: clipping.flat(1e6)),
  Row("normalized", "", lambda: clipping.normalized(0.7)),
  Row("normalized", "tiny", lambda: clipping.normalized(1e-6)),
  Row("per_layer", "", _per_layer),
  Row("per_layer", "weighted", lambda: _per_layer(noise_allocation="weighted")),
  Row("per_layer", "tensor", lambda: _per_layer(by="tensor")),
  Row("groupwise", "", _groupwise),
  Row("groupwise", "equal", lambda: _groupwise(noise_allocation="equal")),
  Row("groupwise", "weighted", lambda: _groupwise(noise_allocation="weighted")),
  Row("automatic", "", lambda: clipping.automatic(0.7)),
  Row("automatic", "AUTO-V", lambda: clipping.automatic(0.7, gamma=0.0)),
  Row("psac", "", lambda: clipping.psac(0.7)),
  Row("psasc", "", lambda: clipping.psasc(0.7, r=0.1, s=0.5)),
  Row("psasc", "steep", lambda: clipping.psasc(0.7, r=2.0, s=4.0)),
  Row("adaptive_layerwise", "", lambda: clipping.adaptive_layerwise(0.7)),
  Row("adaptive_layerwise", "one", lambda: _alc(num_clusters=1)),
  Row("adaptive_layerwise", "sum", lambda: _alc(normalizer="sum")),
  Row("preconditioned", "", lambda: clipping.preconditioned(0.7)),
  Row("adaptive_quantile", "", lambda: clipping.adaptive_quantile(0.7)),
  Row("adaptive_quantile", "layer", lambda: _quantile(by="layer")),
  Row("scheduled", "", lambda: _scheduled(clipping.flat(0.7))),
  Row("scheduled", "unitless", lambda: _scheduled(clipping.normalized(0.7))),
  Row("scheduled", "groups", lambda: _scheduled(_per_layer())),
  Row("no_clipping", "", clipping.no_clipping),
)

# Parameters that tell layers from tensors, with leaves of two widths.
PARAMS = {
  "body": {
    "bias": jnp.zeros(4, jnp.bfloat16),
    "kernel": jnp.zeros((3, 4), jnp.float32),
  },
  "head": {"kernel": jnp.zeros((4, 2), jnp.float32)},
}


def _params(rows: tuple[Row, ...], fast: tuple[str, ...] = ()) -> list:
  return [
    pytest.param(
      row.make(),
      id=row.id,
      marks=pytest.mark.slow if fast and row.name not in fast else (),
    )
    for row in rows
  ]


def _one_a_class(rows: tuple[Row, ...]) -> tuple[Row, ...]:
  """The first row of each name, for tests whose compiles are what costs."""
  return tuple({row.name: row for row in rows[::-1]}.values())


_bounded = tuple(row for row in ROWS if math.isfinite(row.make().bound))

# To be given to `parametrize`: `@every_rule def test_x(rule)`.
every_rule = pytest.mark.parametrize("rule", _params(ROWS))
every_bounded_rule = pytest.mark.parametrize("rule", _params(_bounded))
every_name = pytest.mark.parametrize("rule", _params(_one_a_class(ROWS)))
# One group, several, a statistic; the others are slow tests.
some_names = pytest.mark.parametrize(
  "rule",
  _params(_one_a_class(ROWS), fast=("flat", "per_layer", "adaptive_quantile")),
)


def shaped_norm(
  rule: ClippingRule, scale: np.ndarray, grads: dict, statistic: np.ndarray
) -> float:
  """Norm of (gradient, statistic) over `scale`, by group, in float64."""
  groups = clipping.assign_groups(rule, grads)
  scale = np.asarray(scale, np.float64)
  total = 0.0
  for leaf, group in zip(jax.tree.leaves(grads), groups.of_leaf, strict=True):
    total += float(np.sum((np.asarray(leaf, np.float64) / scale[group]) ** 2))
  rest = np.asarray(statistic, np.float64) / scale[len(groups.names) :]
  return math.sqrt(total + float(np.sum(rest**2)))
