"""Which parameters are faster with their gradients stacked.

Stacked gradients are written once and read twice: by the norm and by the sum.
Factored ones cost the norm's arithmetic in place of that; everything else is
the same. Convolutions and look-ups are another matter on an accelerator: XLA
makes a slow convolution in groups of the ones, and writes tables of zeros for
the others.
"""

import functools
import math

import jax
import jax.numpy as jnp

from jaxdp.per_example import _factored, _look_up, _sums, _tied
from jaxdp.per_example._site import Factored

# On two CPU cores stacked gradients were faster at 3.7 flops a byte where they
# are made as products (a convolution of the tanh CNN), and at 6 to 11 where
# they are JAX's own (the transformer's, taken together).
_FLOPS_PER_BYTE = 5
_MADE_FLOPS_PER_BYTE = 3
# On an H200 a decoder of 512 positions (85) was faster stacked.
_NARROW_FLOPS_PER_BYTE = 50
_PASSES = 3


def is_slower(leaf: Factored) -> bool:
  """Whether these factors take longer than stacked gradients would."""
  choice = _tied.choice(leaf)
  assert choice is not None
  makes = _sums.makes(leaf)
  flops_per_byte = _MADE_FLOPS_PER_BYTE if makes else _FLOPS_PER_BYTE
  if jax.default_backend() != "cpu":
    names = {term.site.primitive.name for term in leaf.terms}
    if names & {"conv_general_dilated", *_look_up.PRIMITIVES}:
      return False
    if all(jnp.finfo(t.cotangent.dtype).bits < 32 for t in leaf.terms):
      flops_per_byte = _NARROW_FLOPS_PER_BYTE
  size = leaf.dtype.itemsize * math.prod(leaf.shape[1:])
  return choice.flops > flops_per_byte * _PASSES * size


compute = functools.partial(_factored.compute, is_slower=is_slower)
