"""Training with differential privacy in JAX.

Per-example gradients feed clipping rules; a ``Mechanism`` joins a rule, a
sampler and noise into one release and its DpEvent; any optax optimizer follows.
Start with ``Mechanism``, then ``fit`` or ``Mechanism.aggregate``.
"""

from dp_accounting import NeighboringRelation

from jaxdp import (
  accounting,
  audit,
  clipping,
  connectivity,
  noise,
  optimizers,
  probe,
  pruning,
  sampling,
  training,
  units,
)
from jaxdp._version import __version__
from jaxdp.accounting import (
  PrivacyStatement,
  calibrate_batch_size,
  calibrate_noise,
  calibrate_steps,
)
from jaxdp.aggregation import clip_per_example, clipped_sum, sum_examples
from jaxdp.inner_momentum import InnerMomentum
from jaxdp.mechanism import Mechanism
from jaxdp.per_example import (
  PerExampleGrads,
  combine_params,
  partition_params,
  per_example_grads,
)
from jaxdp.public_batch import PublicBatch, public_norms
from jaxdp.schedule import PiecewiseConstant
from jaxdp.training import PerformanceFlags, fit, make_train_step

__all__ = [
  "InnerMomentum",
  "Mechanism",
  "NeighboringRelation",
  "PerExampleGrads",
  "PerformanceFlags",
  "PiecewiseConstant",
  "PrivacyStatement",
  "PublicBatch",
  "accounting",
  "audit",
  "calibrate_batch_size",
  "calibrate_noise",
  "calibrate_steps",
  "clip_per_example",
  "clipped_sum",
  "clipping",
  "combine_params",
  "connectivity",
  "fit",
  "make_train_step",
  "noise",
  "optimizers",
  "partition_params",
  "per_example_grads",
  "probe",
  "pruning",
  "public_norms",
  "sampling",
  "sum_examples",
  "training",
  "units",
  "__version__",
]
