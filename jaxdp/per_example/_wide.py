"""Narrow numbers in float32, rounded as they are; sums of their products."""

import jax
import jax.numpy as jnp
from jaxtyping import Array


def wide_type(dtype: jnp.dtype) -> jnp.dtype:
  """The type of norms and sums of numbers of this type."""
  # Not `promote_types`, which strict dtype promotion forbids.
  return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def widen(x: Array) -> Array:
  """Floating-point numbers in float32 or wider, rounded as their own dtype is.

  XLA may skip a rounding to a narrow dtype that is widened again, and may do so
  for the norm but not for the sum. The bound would then be off by 2^-9. Other
  numbers stay as they are.
  """
  if not jnp.issubdtype(x.dtype, jnp.floating):
    return x
  y = x.astype(wide_type(x.dtype))
  if y.dtype == x.dtype:
    return y
  info = jnp.finfo(x.dtype)
  rounded = jax.lax.reduce_precision(y, info.nexp, info.nmant)
  # It would flush what float16 holds below its smallest normal number.
  return jnp.where(jnp.abs(y) < float(info.smallest_normal), y, rounded)


def multiplies_narrow(*arrays: Array) -> bool:
  """Whether ``einsum`` multiplies these as they are.

  Not on a CPU, where XLA widens them itself and may skip their rounding.
  """
  return jax.default_backend() != "cpu" and all(
    x.dtype == jnp.bfloat16 for x in arrays
  )


def einsum(spec: str, *operands: Array) -> Array:
  """Products exact or at the highest precision, summed in float32 or wider.

  The product of two bfloat16 numbers is exact in float32.
  """
  if multiplies_narrow(*operands):
    return jnp.einsum(spec, *operands, preferred_element_type=jnp.float32)
  operands = tuple(map(widen, operands))
  return jnp.einsum(spec, *operands, precision=jax.lax.Precision.HIGHEST)
