"""Which parameters are faster with their gradients stacked.

Stacked gradients are written once and read twice: by the norm and by the sum.
Factored ones cost the norm's arithmetic in place of that; everything else is
the same. A convolution is another matter on an accelerator, where XLA makes a
slow grouped convolution of its stacked gradients.
"""

import functools
import math

import jax

from jaxdp.per_example import _factored, _tied
from jaxdp.per_example._site import Factored

# On two CPU cores factors were faster at 3.7 flops a byte (a convolution of the
# tanh CNN), stacked gradients at 6 to 11 (the transformer's, taken together).
_FLOPS_PER_BYTE = 5
_PASSES = 3


def is_slower(leaf: Factored) -> bool:
  """Whether these factors take longer than stacked gradients would."""
  choice = _tied.choice(leaf)
  if choice is None:
    return True
  names = {term.site.primitive.name for term in leaf.terms}
  if "conv_general_dilated" in names and jax.default_backend() != "cpu":
    return False
  size = leaf.dtype.itemsize * math.prod(leaf.shape[1:])
  return choice.flops > _FLOPS_PER_BYTE * _PASSES * size


compute = functools.partial(_factored.compute, is_slower=is_slower)
