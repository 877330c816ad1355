"""Where gradients meet rules: clip every unit, then sum over units.

Two ways, one result. As optax stages: ``clip_per_example(rule)`` attaches
weights to ``PerExampleGrads``, ``sum_examples()`` contracts them. Fused:
``clipped_sum`` computes gradients, clips and sums them, in microbatches if
asked. Both end in a ``ClippedSum``, which only a mechanism opens.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree

from jaxdp import microbatch, per_example
from jaxdp.clipping import ClippingRule, assign_groups
from jaxdp.per_example import PerExampleGrads


def rule_tag(rule: ClippingRule) -> tuple:
  """What identifies a rule: its name and numbers; by identity if traced.

  A mechanism compares it with the tag on a sum: noise that is calibrated to one
  clip norm and added to a sum of another is the classic silent error.
  """
  leaves, treedef = jax.tree.flatten(rule)
  traced = [
    ("traced", id(x)) if isinstance(x, jax.core.Tracer) else float(x)
    for x in leaves
  ]
  return (type(rule).__name__, str(treedef), *traced)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClippedGrads:
  """Per-example gradients with their weights, not yet summed; *sensitive*."""

  grads: PerExampleGrads
  weights: Float[Array, "groups units"]
  statistic: Float[Array, "statistics units"]
  groups: tuple[int, ...] = dataclasses.field(metadata={"static": True})
  tag: tuple = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClippedSum:
  """The sum of clipped gradients: of known sensitivity, still *sensitive*.

  Attributes:
    grads: sums over units, float32 or wider, like the trained parameters.
    statistic: ``[statistics]``, the sum of the rule's bounded statistic.
    dtypes: by leaf, the dtype that the released mean will have.
    tag: which rule clipped, see ``rule_tag``.
    num_units: rows that were summed, padding included.
    masked: whether the batch came with its padding mask.
  """

  grads: PyTree[Float[Array, "..."]]
  statistic: Float[Array, " statistics"]
  dtypes: tuple = dataclasses.field(metadata={"static": True})
  tag: tuple = dataclasses.field(metadata={"static": True})
  num_units: int = dataclasses.field(metadata={"static": True})
  masked: bool = dataclasses.field(metadata={"static": True})


class ClipInfo(NamedTuple):
  """What clipping saw, by unit. Every field is *sensitive*."""

  norms: Float[Array, "groups units"]  # not finite where a unit was dropped
  weights: Float[Array, "groups units"]  # 0 where padded or dropped
  loss: Float[Array, " units"]
  aux: Any


def clip(
  rule: ClippingRule, grads: PerExampleGrads, rule_state: Any
) -> tuple[ClippedGrads, Float[Array, "groups units"]]:
  """Weights of every unit under a rule, and the norms they come from.

  Guarantees:
    Padding has weight 0 and statistic 0. A unit whose norm is not finite in any
    group is dropped: weight 0 in all groups, and it enters the statistic with
    an infinite norm, as the largest unit there can be.
  """
  groups = assign_groups(rule, grads.params_like).of_leaf
  norms = grads.norms(groups)
  finite = jnp.all(jnp.isfinite(norms), axis=0, keepdims=True)
  real = jnp.ones_like(finite)
  if grads.is_padding_example is not None:
    real = ~grads.is_padding_example[None, :]
  safe = jnp.where(finite, norms, jnp.zeros_like(norms))
  weights = rule.weights(safe, rule_state)
  weights = jnp.where(finite & real, weights, jnp.zeros_like(weights))
  largest = jnp.full_like(norms, jnp.finfo(norms.dtype).max)
  statistic = rule.statistic(jnp.where(finite, norms, largest), rule_state)
  statistic = jnp.where(real, statistic, jnp.zeros_like(statistic))
  clipped = ClippedGrads(grads, weights, statistic, groups, rule_tag(rule))
  return clipped, norms


def sum_clipped(clipped: ClippedGrads) -> ClippedSum:
  """The weighted sum over units."""
  grads = clipped.grads
  return ClippedSum(
    grads.weighted_sum(clipped.weights, clipped.groups),
    jnp.sum(clipped.statistic, axis=1),
    tuple(x.dtype for x in jax.tree.leaves(grads.params_like)),
    clipped.tag,
    grads.num_units,
    grads.is_padding_example is not None,
  )


class _PerExampleSignature(inspect.Signature):
  """Makes ``optax.inject_hyperparams`` refuse a factory (it calls ``bind``)."""

  def bind(self, /, *args: Any, **kwargs: Any) -> Any:
    raise TypeError(
      "optax.inject_hyperparams cannot wrap a stage that sees per-example "
      "gradients: a clip norm in mutable state is not what the accountant saw, "
      "and a noise key must not stand among hyperparameters. Inject after the "
      "release: optax.chain(mechanism.aggregate(key), "
      "optax.inject_hyperparams(optax.sgd)(learning_rate=...))."
    )


def refuse_inject_hyperparams(fun: Callable) -> Callable:
  """Marks a factory of a per-example stage; calls to it are unchanged."""
  signature = inspect.signature(fun)
  fun.__signature__ = _PerExampleSignature(  # type: ignore[attr-defined]
    list(signature.parameters.values()),
    return_annotation=signature.return_annotation,
  )
  return fun


def check_not_masked(tree: PyTree) -> None:
  """Raises where ``optax.masked`` or ``multi_transform`` wraps this stage."""
  nodes = jax.tree.leaves(
    tree, is_leaf=lambda x: isinstance(x, optax.MaskedNode)
  )
  if any(isinstance(x, optax.MaskedNode) for x in nodes):
    raise ValueError(
      "optax.masked and optax.multi_transform cannot wrap a stage that sees "
      "per-example gradients: masked leaves would pass un-summed and without "
      "noise. Freeze parameters with trainable=..., or mask after the release: "
      "optax.chain(mechanism.aggregate(key), optax.masked(...))."
    )


def as_per_example_grads(updates: Any) -> PerExampleGrads:
  """``PerExampleGrads`` as they are; a plain stacked tree is wrapped."""
  if isinstance(updates, PerExampleGrads):
    return updates
  if isinstance(updates, ClippedGrads | ClippedSum):
    raise ValueError(
      f"This stage takes per-example gradients, got {type(updates).__name__}: "
      "they were clipped already. Use clip_per_example or aggregate once."
    )
  check_not_masked(updates)
  return PerExampleGrads.from_stacked(updates)


@refuse_inject_hyperparams
def clip_per_example(rule: ClippingRule) -> optax.GradientTransformation:
  """Optax stage: attaches a rule's weights to per-example gradients.

  Takes ``PerExampleGrads`` (or a plain stacked tree ``[units, *shape]`` with no
  padding) and hands on what ``sum_examples`` takes.

  Args:
    rule: one whose state never moves; others raise.

  Guarantees:
    See the rule. Nothing here is private before ``mechanism.privatize``.
  """
  if rule.adaptive:
    raise ValueError(
      f"{type(rule).__name__} moves its thresholds, and the release must see "
      "the same ones as this stage. Use mechanism.aggregate(key), whose one "
      "state holds them."
    )

  def init_fn(params: PyTree) -> Any:
    check_not_masked(params)
    return rule.init(params)

  def update_fn(updates: Any, state: Any, params: Any = None) -> Any:
    del params
    return clip(rule, as_per_example_grads(updates), state)[0], state

  return optax.GradientTransformation(init_fn, update_fn)


@refuse_inject_hyperparams
def sum_examples() -> optax.GradientTransformation:
  """Optax stage: the weighted sum over units, as a ``ClippedSum``."""

  def init_fn(params: PyTree) -> optax.EmptyState:
    check_not_masked(params)
    return optax.EmptyState()

  def update_fn(updates: Any, state: Any, params: Any = None) -> Any:
    del params
    if not isinstance(updates, ClippedGrads):
      raise ValueError(
        "sum_examples takes what clip_per_example hands on, got "
        f"{type(updates).__name__}. Put clip_per_example(rule) before it."
      )
    return sum_clipped(updates), state

  return optax.GradientTransformation(init_fn, update_fn)


def clipped_sum(
  loss_fn: Callable,
  rule: ClippingRule,
  method: per_example.Method = "auto",
  microbatch_size: int | Literal["auto"] | None = None,
  *,
  trainable: per_example.Trainable = None,
  has_aux: bool = False,
  has_key: bool = False,
) -> Callable:
  """Gradients, clip and sum in one, ``microbatch_size`` units at a time.

  Args:
    loss_fn: for ONE unit, see ``per_example_grads``.
    rule: the clipping rule.
    method: engine, see ``per_example_grads``.
    microbatch_size: units whose gradients exist at the same time; None for all.
      Any size works, also one that does not divide the batch; "auto" takes the
      largest that fits, by the compiler's own memory analysis. It moves time
      and memory, never the result beyond rounding, and never epsilon.
    trainable: which leaves train, see ``partition_params``.
    has_aux: the loss returns ``(loss, aux)``.
    has_key: the loss takes a key.

  Returns:
    ``fn(params, batch, is_padding_example=None, rule_state=None, key=None)``,
    which returns ``(ClippedSum, ClipInfo)``. ``rule_state`` may be left out for
    rules whose state never moves; ``key`` is one key, or one a unit.

  Guarantees:
    The sum has the rule's bound for every unit. Microbatches of padding alone
    are skipped, so that time (never a value) tells how many units there were.

  Edge cases:
    As ``per_example_grads``; no real unit at all gives a sum of zeros.

  Example:
    >>> import jaxdp
    >>> loss_fn = lambda w, x: 0.5 * (w @ x) ** 2
    >>> xs = jnp.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    >>> fn = clipped_sum(loss_fn, jaxdp.clipping.flat(1.0), microbatch_size=2)
    >>> summed, info = fn(jnp.ones(2), xs)
    >>> print(summed.grads, info.weights)
    [1. 1.] [[1.   0.25 1.  ]]
  """
  microbatch.check_size(microbatch_size)
  compute = per_example.value_and_per_example_grads(
    loss_fn, method, trainable=trainable, has_aux=has_aux, has_key=has_key
  )

  def fn(
    params: PyTree,
    batch: PyTree,
    is_padding_example: Bool[Array, " units"] | None = None,
    rule_state: Any = None,
    key: Array | None = None,
  ) -> tuple[ClippedSum, ClipInfo]:
    units = per_example.num_units(batch)
    if is_padding_example is not None:
      is_padding_example = jnp.asarray(is_padding_example)
      per_example.check_mask(is_padding_example, units)
    state = rule_state
    if state is None:
      if rule.adaptive:
        raise ValueError(
          f"{type(rule).__name__} has a state that moves: pass "
          "rule_state=mechanism_state.rule_state."
        )
      state = rule.init(per_example.partition_params(params, trainable)[0])
    keys = per_example.unit_keys(key, units) if has_key else None

    def whole(batch: PyTree, mask: Any, keys: Any) -> tuple:
      losses, aux, grads = compute(params, batch, mask, keys)
      clipped, norms = clip(rule, grads, state)
      info = ClipInfo(norms.T, clipped.weights.T, losses, aux)
      return sum_clipped(clipped), info

    size = microbatch_size
    if size == "auto":
      size = microbatch.largest_that_fits(
        compute, units, params, batch, is_padding_example, keys
      )
    if size is None or size == units:
      summed, info = whole(batch, is_padding_example, keys)
    else:
      mask = is_padding_example
      masked = mask is not None
      if mask is None:
        mask = jnp.zeros(units, bool)
      summed, info = microbatch.accumulate(whole, size, batch, mask, keys)
      summed = dataclasses.replace(summed, num_units=units, masked=masked)
    return summed, info._replace(norms=info.norms.T, weights=info.weights.T)

  return fn
