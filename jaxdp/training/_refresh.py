"""The steps in which a rule looks at its public batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdp import per_example
from jaxdp.mechanism import Mechanism
from jaxdp.public_batch import PublicBatch, public_norms

# Keys of examples are fold_in(example_key, step); that of public ones is apart.
_PUBLIC_STREAM = 0xFFFFFFFF


def refresher(
  loss_fn: Callable,
  mechanism: Mechanism | None,
  public_batch: PublicBatch | None,
  method: per_example.Method,
  trainable: per_example.Trainable,
  has_aux: bool,
  has_key: bool,
) -> Callable[[Any], Any]:
  """What looks at the public batch, in the steps that are due."""
  needed = mechanism is not None and mechanism.rule.needs_public_norms
  if needed != (public_batch is not None):
    name = "training" if mechanism is None else type(mechanism.rule).__name__
    raise ValueError(
      f"{name} follows public data: pass public_batch=jaxdp.PublicBatch("
      "examples, every=...), with examples that are not in the private data."
      if needed
      else f"public_batch is of no use to {name}. Leave it out, or use "
      "clipping.adaptive_layerwise or clipping.preconditioned."
    )
  if mechanism is None or public_batch is None:
    return lambda state: state
  examples, every = public_batch
  if every < 1:
    raise ValueError(f"PublicBatch.every must be >= 1, got {every}.")
  norms_fn = public_norms(
    loss_fn,
    mechanism.rule,
    method=method,
    trainable=trainable,
    has_aux=has_aux,
    has_key=has_key,
  )

  def look(state: Any) -> Any:
    key = jax.random.wrap_key_data(state.example_key, impl="threefry2x32")
    key = jax.random.fold_in(key, jnp.uint32(_PUBLIC_STREAM))
    norms = norms_fn(state.params, examples, key)
    return mechanism.refresh(state.mechanism_state, norms)

  def fun(state: Any) -> Any:
    mechanism_state = jax.lax.cond(
      state.step % every == 0, look, lambda state: state.mechanism_state, state
    )
    return state._replace(mechanism_state=mechanism_state)

  return fun
