"""``per_example_grads``, and the checks that every engine shares."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from jaxdp.per_example import _auto, _batch, _factored, _stacked, _trainable
from jaxdp.per_example._grads import PerExampleGrads

Method = Literal["auto", "factored", "stacked"]
_ENGINES: dict[str, Callable[..., Any]] = {
  "auto": _auto.compute,
  "factored": _factored.compute,
  "stacked": _stacked.compute,
}


def per_example_grads(
  loss_fn: Callable,
  method: Method = "auto",
  *,
  trainable: _trainable.Trainable = None,
  has_aux: bool = False,
  has_key: bool = False,
) -> Callable:
  """Gradients of ``loss_fn`` for every unit of a batch.

  Args:
    loss_fn: ``loss_fn(params, example) -> scalar``, for ONE unit (no batch
      axis); ``(scalar, aux)`` with ``has_aux=True``; called with a third
      argument, the unit's own key, with ``has_key=True``.
    method: how; the result does not depend on it beyond rounding. "stacked" is
      ``vmap`` of ``grad``; "factored" makes no gradient for every unit where a
      parameter is used in matrix products, convolutions or look-ups (see
      ``per_example.explain``). "auto" takes what is expected to be faster, for
      each parameter.
    trainable: which leaves train, see ``partition_params``. Frozen leaves are
      None in the gradients.
    has_aux: the loss returns auxiliary output, stacked over units. *Sensitive.*
    has_key: the loss takes a key; unit i gets ``fold_in(key, i)``.

  Returns:
    ``grads_fn(params, batch, is_padding_example=None, key=None)``, which
    returns ``PerExampleGrads``, or ``(PerExampleGrads, aux)`` with
    ``has_aux=True``. Leaves of ``batch`` have a leading axis of units.

  Guarantees:
    Row i depends on unit i alone, also when another unit holds NaN or
    overflows inside the network.

  Edge cases:
    ======================  ===============================================
    padding row             norm 0, weight 0, gradient 0
    non-finite input        the unit is dropped: not-finite norm, zero row
    non-finite gradient     the unit is dropped
    loss is not a scalar    ValueError before anything is compiled
    ======================  ===============================================

  Example:
    >>> loss_fn = lambda w, x: 0.5 * (w @ x) ** 2
    >>> xs = jnp.array([[1.0, 0.0], [0.0, 2.0]])
    >>> grads = per_example_grads(loss_fn)(jnp.ones(2), xs)
    >>> print(grads.materialise())
    [[1. 0.]
     [0. 4.]]

  References:
    Goodfellow 2015, arXiv:1510.01799; Subramani et al. 2020, arXiv:2010.09063
    (vmap).
  """
  compute = value_and_per_example_grads(
    loss_fn, method, trainable=trainable, has_aux=has_aux, has_key=has_key
  )

  def grads_fn(
    params: PyTree,
    batch: PyTree,
    is_padding_example: Bool[Array, " units"] | None = None,
    key: Array | None = None,
  ) -> Any:
    keys = unit_keys(key, _batch.num_units(batch)) if has_key else None
    _, aux, grads = compute(params, batch, is_padding_example, keys)
    return (grads, aux) if has_aux else grads

  return grads_fn


def value_and_per_example_grads(
  loss_fn: Callable,
  method: Method,
  *,
  trainable: _trainable.Trainable,
  has_aux: bool,
  has_key: bool,
) -> Callable[..., tuple[Float[Array, " units"], Any, PerExampleGrads]]:
  """As ``per_example_grads``, for keys by unit: (losses, aux, grads)."""
  if method not in _ENGINES:
    raise ValueError(
      f"method must be one of {sorted(_ENGINES)}, got method={method!r}."
    )
  engine = _ENGINES[method]

  def unit_loss(
    trained: PyTree, frozen: PyTree, example: PyTree, key: Any
  ) -> tuple[Array, Any]:
    params = _trainable.combine_params(trained, frozen)
    args = (params, example, key) if has_key else (params, example)
    out = loss_fn(*args)
    if not has_aux:
      return out, None
    if not (isinstance(out, tuple) and len(out) == 2):
      raise ValueError(
        f"has_aux=True needs a loss_fn that returns (loss, aux), got {out}."
      )
    return out

  def compute(
    params: PyTree, batch: PyTree, is_padding_example: Any, keys: Any
  ) -> tuple[Array, Any, PerExampleGrads]:
    units = _batch.num_units(batch)
    batch = jax.tree.map(jnp.asarray, batch)
    if is_padding_example is not None:
      is_padding_example = jnp.asarray(is_padding_example)
      _batch.check_mask(is_padding_example, units)
    if has_key and keys is None:
      raise ValueError(
        "The loss takes a key (has_key=True): pass key=jax.random.key(...)."
      )
    parts = _trainable.partition_params(params, trainable)
    _check_scalar(unit_loss, parts, batch, keys)
    return engine(unit_loss, parts, batch, is_padding_example, keys)

  return compute


def unit_keys(key: Array | None, units: int) -> Array | None:
  """One key a unit, by its position in the whole batch; such keys pass."""
  if key is None:
    return None
  if not jnp.issubdtype(jnp.result_type(key), jax.dtypes.prng_key):
    key = jax.random.wrap_key_data(key)  # of jax.random.PRNGKey
  if jnp.ndim(key) > 0:
    return key
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
    key, jnp.arange(units, dtype=jnp.uint32)
  )


def _check_scalar(
  unit_loss: Callable, parts: tuple, batch: PyTree, keys: Any
) -> None:
  example, key = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (batch, keys)
  )
  loss = jax.eval_shape(lambda e, k: unit_loss(*parts, e, k)[0], example, key)
  shape = getattr(loss, "shape", None)
  if shape != () or not jnp.issubdtype(loss.dtype, jnp.floating):
    raise ValueError(
      "loss_fn must return one real scalar for ONE example, got "
      f"{loss}. The example has no batch axis; reduce the loss with .mean() or "
      ".sum() over the axes it has, or set has_aux=True if it returns "
      "(loss, aux)."
    )
