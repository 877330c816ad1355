"""Per-example gradients: one gradient a unit, norms by group, weighted sums.

Read ``_grads.py`` (what a consumer sees), then ``_stacked.py`` (the reference
engine), ``_factored.py`` (the other one) and ``_api.py``.
"""

from jaxdp.per_example._api import (
  Method,
  per_example_grads,
  unit_keys,
  value_and_per_example_grads,
)
from jaxdp.per_example._batch import check_mask, num_units, zero_rows
from jaxdp.per_example._explain import explain
from jaxdp.per_example._grads import PerExampleGrads
from jaxdp.per_example._trainable import (
  Trainable,
  combine_params,
  partition_params,
)

__all__ = [
  "Method",
  "PerExampleGrads",
  "Trainable",
  "check_mask",
  "combine_params",
  "explain",
  "num_units",
  "partition_params",
  "per_example_grads",
  "unit_keys",
  "value_and_per_example_grads",
  "zero_rows",
]
