"""Training with differential privacy in JAX.

Per-example gradients feed clipping rules; a `Mechanism` joins a rule, a sampler
and noise into one release and its DpEvent; any optax optimizer follows. Start
with `Mechanism`, then `fit` or `Mechanism.aggregate`.
"""

from dp_accounting import NeighboringRelation

from jaxdp import accounting
from jaxdp import clipping
from jaxdp import noise
from jaxdp import optimizers
from jaxdp import sampling
from jaxdp.accounting import PrivacyStatement
from jaxdp.accounting import calibrate_batch_size
from jaxdp.accounting import calibrate_noise
from jaxdp.accounting import calibrate_steps
from jaxdp.aggregation import clip_per_example
from jaxdp.aggregation import clipped_sum
from jaxdp.aggregation import sum_examples
from jaxdp.mechanism import Mechanism
from jaxdp.per_example import PerExampleGrads
from jaxdp.per_example import combine_params
from jaxdp.per_example import partition_params
from jaxdp.per_example import per_example_grads

__all__ = [
  "Mechanism",
  "NeighboringRelation",
  "PerExampleGrads",
  "PrivacyStatement",
  "accounting",
  "calibrate_batch_size",
  "calibrate_noise",
  "calibrate_steps",
  "clip_per_example",
  "clipped_sum",
  "clipping",
  "combine_params",
  "noise",
  "optimizers",
  "partition_params",
  "per_example_grads",
  "sampling",
  "sum_examples",
]
