"""Which rows go into which step, and what that choice is worth.

| sampler | add-or-remove-one | zero-out | replace-one |
|---|---|---|---|
| ``Poisson`` | PLD | PLD | PLD |
| ``FixedSize`` | refused | refused | RDP |
| ``Shuffled`` | refused | exact, by epochs | exact, by epochs |
| ``FullBatch`` | exact | exact | exact |
| ``Buckets`` | PLD | PLD | refused |

Zero-out is ``NeighboringRelation.REPLACE_SPECIAL``. Under every relation the
noise multiplier is the noise's standard deviation over the sensitivity of the
sum under that relation; conversions to an accountant's own convention are
made here and nowhere else.
"""

from dp_accounting import NeighboringRelation

from jaxdp.sampling._buckets import Buckets
from jaxdp.sampling._fixed_size import FixedSize
from jaxdp.sampling._full_batch import FullBatch
from jaxdp.sampling._poisson import Poisson
from jaxdp.sampling._sampler import (
  Batch,
  Sampler,
  SamplerBase,
  from_dict,
)
from jaxdp.sampling._shuffled import Shuffled

SAMPLERS = ("Poisson", "FixedSize", "Shuffled", "FullBatch", "Buckets")

__all__ = [
  "SAMPLERS",
  "Batch",
  "Buckets",
  "FixedSize",
  "FullBatch",
  "NeighboringRelation",
  "Poisson",
  "Sampler",
  "SamplerBase",
  "Shuffled",
  "from_dict",
]
