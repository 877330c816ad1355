"""One training step: a release, an optimizer update, and what may be shown."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, PyTree

from jaxdp import per_example, units
from jaxdp.aggregation import ClipInfo, clipped_sum
from jaxdp.clipping import ClippingRule
from jaxdp.inner_momentum import InnerMomentum, over_iterates
from jaxdp.mechanism import Mechanism
from jaxdp.noise import key_data
from jaxdp.public_batch import PublicBatch
from jaxdp.training import _refresh, _sharding

# Keys of noise are fold_in(key, step) with step < 2^31; this one is apart.
_EXAMPLE_STREAM = 0xFFFFFFFF


class TrainState(NamedTuple):
  """Everything a step reads and writes. *Sensitive*: it holds the noise key."""

  step: Array  # shape=(), dtype=int32
  params: PyTree
  opt_state: optax.OptState
  mechanism_state: Any  # MechanismState, or () without a mechanism
  example_key: Array  # shape=(2,), dtype=uint32; for losses that take a key
  ema_params: PyTree  # like params, or () without averaging
  past_params: PyTree  # leaves [past, *shape], or () without inner momentum


class SensitiveInfo(NamedTuple):
  """Un-noised facts about a batch. Every field is *sensitive*."""

  train_loss: Float[Array, ""]  # mean over the real units
  clip_fraction: Float[Array, ""]  # share of (group, unit) with a cut weight
  grad_norm_quantiles: Float[Array, "5"]  # 5, 25, 50, 75, 95 % over units
  num_units: Float[Array, ""]  # realised batch size
  num_dropped: Float[Array, ""]  # units with a non-finite gradient


class StepInfo(NamedTuple):
  """What a step reports."""

  update_norm: Float[Array, ""]  # releasable: of the optimizer's update
  sensitive: SensitiveInfo | None  # None unless asked for


@dataclasses.dataclass(frozen=True)
class TrainStep:
  """``step(state, batch, is_padding_example) -> (state, info)``, compiled.

  Attributes:
    init: ``init(params, key) -> TrainState``.
    mechanism: what releases; None for training without privacy.
    run: ``(state, data, rows, mask) -> (state, info)``, the step as a plain
      function; ``data`` None means that ``rows`` is the batch itself.
    jitted: the compiled ``(state, batch, mask)``, for ``lower`` and
      ``jax.export``.
  """

  init: Callable[[PyTree, Array], TrainState]
  mechanism: Mechanism | None
  run: Callable[..., tuple[TrainState, StepInfo]]
  jitted: Any

  def __call__(
    self,
    state: TrainState,
    batch: PyTree,
    is_padding_example: Bool[Array, "units ..."] | None = None,
  ) -> tuple[TrainState, StepInfo]:
    """Runs one step; ``state`` is donated."""
    return self.jitted(state, batch, is_padding_example)


def make_train_step(
  loss_fn: Callable,
  mechanism: Mechanism | None,
  optimizer: optax.GradientTransformation,
  *,
  method: per_example.Method = "auto",
  microbatch_size: int | Literal["auto"] | None = None,
  trainable: per_example.Trainable = None,
  has_aux: bool = False,
  has_key: bool = False,
  public_batch: PublicBatch | None = None,
  inner_momentum: InnerMomentum | None = None,
  ema_decay: float | None = None,
  mesh: Mesh | None = None,
  diagnostics: bool = False,
) -> TrainStep:
  """A jitted, donated training step of static shape.

  Args:
    loss_fn: for ONE example, see ``jaxdp.per_example_grads``.
    mechanism: clips, sums and adds noise. None for an ordinary batch gradient:
      epsilon is infinite.
    optimizer: any optax optimizer, for the released mean. It is told the noise
      as the extra argument ``noise_stddev``.
    method: engine, see ``jaxdp.per_example_grads``.
    microbatch_size: see ``jaxdp.clipped_sum``.
    trainable: which leaves train, see ``jaxdp.partition_params``.
    has_aux: the loss returns ``(loss, aux)``.
    has_key: the loss takes a key of its example, as third argument.
    public_batch: for rules that follow public data, and only for those.
    inner_momentum: clip a unit's gradients at the last iterates together.
    ema_decay: decay of an exponential average of the parameters, warmed up as
      min(decay, (1 + t) / (10 + t)); None for none.
    mesh: devices to share the rows among, see ``data_mesh``.
    diagnostics: report un-noised losses, norms and sizes too. They are
      *sensitive*: not covered by the guarantee, not for release.

  Returns:
    A ``TrainStep``. Batches have ``sampler.batch_size`` rows.

  Guarantees:
    Parameters, and all of ``StepInfo`` but ``sensitive``, are functions of what
    was released. One noise draw for the whole mesh, equal to the draw on one
    device.

  References:
    Abadi et al. 2016, arXiv:1607.00133; De et al. 2022, arXiv:2204.13650
    (averaged parameters).
  """
  if isinstance(mechanism, Mechanism) and mechanism.noise_multiplier is None:
    mechanism.sigma  # noqa: B018  raises with the remedy
  if ema_decay is not None and not 0 <= ema_decay < 1:
    raise ValueError(f"ema_decay must be in [0, 1), got {ema_decay}.")
  if inner_momentum is not None:
    inner_momentum.check()
    if inner_momentum.num_iterates == 1:
      inner_momentum = None
  refresh = _refresh.refresher(
    loss_fn, mechanism, public_batch, method, trainable, has_aux, has_key
  )
  optimizer = optax.with_extra_args_support(optimizer)
  shards = _sharding.num_shards(mesh)

  def init(params: PyTree, key: Array) -> TrainState:
    # Copies, as steps donate the state; not weakly typed, as steps' results.
    params = jax.tree.map(lambda x: jnp.array(x, jnp.result_type(x)), params)
    trained, _ = per_example.partition_params(params, trainable)
    stream = jax.random.wrap_key_data(key_data(key), impl="threefry2x32")
    example_key = jax.random.fold_in(stream, jnp.uint32(_EXAMPLE_STREAM))
    return TrainState(
      jnp.zeros((), jnp.int32),
      params,
      optimizer.init(trained),
      () if mechanism is None else mechanism.init(trained, key),
      jax.random.key_data(example_key),
      () if ema_decay is None else jax.tree.map(jnp.array, params),
      () if inner_momentum is None else inner_momentum.init(trained),
    )

  def windowed(window: Any) -> Callable:
    if window is None:
      return loss_fn
    return over_iterates(loss_fn, window, has_aux=has_aux)

  def sum_of(window: Any) -> Callable:
    assert mechanism is not None
    return clipped_sum(
      windowed(window),
      mechanism.rule,
      method,
      microbatch_size,
      trainable=trainable,
      has_aux=has_aux,
      has_key=has_key,
    )

  if mechanism is None:
    grad_fn = _mean_grad(windowed, trainable, has_aux, has_key, mesh)
  else:
    sum_of(None)  # raises for a method that there is not
    grad_fn = _release(mechanism, sum_of, mesh, diagnostics)

  def run(
    state: TrainState, data: PyTree, rows: PyTree, mask: Any
  ) -> tuple[TrainState, StepInfo]:
    state = refresh(state)
    trained, frozen = per_example.partition_params(state.params, trainable)
    keys = None
    if has_key:
      stream = jax.random.wrap_key_data(state.example_key, impl="threefry2x32")
      step_key = jax.random.fold_in(stream, state.step)
      where = _sharding.positions(per_example.num_units(rows), shards)
      keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, where)
    window = None
    if inner_momentum is not None:
      window = inner_momentum.window(state.past_params, trained, state.step)
    mean, mechanism_state, sensitive = grad_fn(
      state, window, data, rows, mask, keys
    )
    if mechanism is None:
      stddev = jax.tree.map(lambda _: jnp.zeros((), jnp.float32), trained)
    else:
      stddev = mechanism.noise_stddev(mechanism_state, trained)
    updates, opt_state = optimizer.update(
      mean, state.opt_state, trained, noise_stddev=stddev
    )
    past_params = state.past_params
    if inner_momentum is not None:
      past_params = inner_momentum.push(past_params, trained)
    trained = optax.apply_updates(trained, updates)
    params = per_example.combine_params(trained, frozen)
    ema_params = state.ema_params
    if ema_decay is not None:
      ema_params = _average(ema_params, params, ema_decay, state.step)
    info = StepInfo(
      optax.tree.norm(updates).astype(jnp.float32),
      sensitive if diagnostics else None,
    )
    new_state = TrainState(
      state.step + 1,
      params,
      opt_state,
      mechanism_state,
      state.example_key,
      ema_params,
      past_params,
    )
    return new_state, info

  jitted = jax.jit(
    lambda state, batch, mask: run(state, None, batch, mask), donate_argnums=0
  )
  return TrainStep(init, mechanism, run, jitted)


def fetch(data: PyTree, rows: PyTree, mask: Any) -> tuple[PyTree, Any]:
  """The units and their mask: ``rows``, or those of data on the device.

  A mask with a second axis speaks of the records of a unit. What stands in for
  a missing one belongs to somebody, and is put away before anyone looks.
  """
  if data is not None:
    rows = jax.tree.map(
      lambda x: x.at[rows].get(mode="promise_in_bounds"), data
    )
  unit_mask = _unit_mask(mask)
  if unit_mask is mask:
    return rows, mask
  put_away = jax.vmap(per_example.zero_rows)
  rows = jax.tree.map(lambda x: put_away(mask, x), rows)
  return units.Records(rows, mask), unit_mask


def _unit_mask(mask: Any) -> Any:
  """Which units have no record at all."""
  return mask if mask is None or mask.ndim < 2 else jnp.all(mask, axis=1)


def _release(
  mechanism: Mechanism, sum_of: Callable, mesh: Mesh | None, diagnostics: bool
) -> Callable:
  """(state, window, data, ...) -> (noisy mean, state, SensitiveInfo)."""
  rule, sampler = mechanism.rule, mechanism.sampler
  shards = _sharding.num_shards(mesh)

  def local(
    params: PyTree, data: PyTree, rows: PyTree, mask: Any, rule_state: Any,
    keys: Any,
  ) -> Any:  # fmt: skip
    params, window = params
    batch, mask = fetch(data, rows, mask)
    return sum_of(window)(params, batch, mask, rule_state, keys)

  over_devices = _sharding.sum_over_devices(local, mesh)

  def fun(
    state: TrainState,
    window: Any,
    data: PyTree,
    rows: PyTree,
    mask: Any,
    keys: Any,
  ) -> tuple[PyTree, Any, SensitiveInfo | None]:
    rule_state = state.mechanism_state.rule_state
    summed, info = over_devices(
      (state.params, window), data, rows, mask, rule_state, keys
    )
    if summed.num_units == _sharding.padded_rows(sampler.batch_size, shards):
      # Rows that only fill up the devices are padding (``lay_out``).
      summed = dataclasses.replace(summed, num_units=sampler.batch_size)
    mean, mechanism_state = mechanism.release(summed, state.mechanism_state)
    sensitive = (
      _sensitive(rule, rule_state, info, _unit_mask(mask))
      if diagnostics
      else None
    )
    return mean, mechanism_state, sensitive

  return fun


def _mean_grad(
  windowed: Callable,
  trainable: per_example.Trainable,
  has_aux: bool,
  has_key: bool,
  mesh: Mesh | None,
) -> Callable:
  """The same face for an ordinary gradient of the mean over real rows."""

  def fun(
    state: TrainState,
    window: Any,
    data: PyTree,
    rows: PyTree,
    mask: Any,
    keys: Any,
  ) -> tuple[PyTree, Any, SensitiveInfo]:
    rows, mask, keys = _sharding.split_rows(mesh, (rows, mask, keys))
    batch, mask = fetch(data, rows, mask)
    if mask is None:
      mask = jnp.zeros(per_example.num_units(batch), bool)
    count = jnp.maximum(jnp.sum(~mask), 1).astype(jnp.float32)
    trained, frozen = per_example.partition_params(state.params, trainable)
    loss_fn = windowed(window)

    def one(trained: PyTree, example: PyTree, key: Any) -> Array:
      params = per_example.combine_params(trained, frozen)
      args = (params, example, key) if has_key else (params, example)
      out = loss_fn(*args)
      return out[0] if has_aux else out

    def mean(trained: PyTree) -> tuple[Array, Array]:
      losses = jax.vmap(one, (None, 0, 0))(trained, batch, keys)
      losses = jnp.where(mask, jnp.zeros_like(losses), losses)
      return jnp.sum(losses) / count.astype(losses.dtype), losses

    (loss, _), grads = jax.value_and_grad(mean, has_aux=True)(trained)
    nan = jnp.full((), jnp.nan, jnp.float32)
    info = SensitiveInfo(
      loss.astype(jnp.float32),
      jnp.zeros((), jnp.float32),
      jnp.full((5,), nan),
      jnp.sum(~mask).astype(jnp.float32),
      jnp.zeros((), jnp.float32),
    )
    return grads, (), info

  return fun


def _sensitive(
  rule: ClippingRule, rule_state: Any, info: ClipInfo, mask: Any
) -> SensitiveInfo:
  real = jnp.ones(len(info.loss), bool) if mask is None else ~mask
  finite = jnp.all(jnp.isfinite(info.norms), axis=0)
  used = real & finite
  count = jnp.maximum(jnp.sum(used), 1).astype(jnp.float32)
  uncut = rule.weights(jnp.zeros_like(info.norms[:, :1]), rule_state)
  cut = (info.weights < uncut) & used[None, :]
  norms = jnp.linalg.norm(jnp.where(used[None, :], info.norms, 0), axis=0)
  levels = jnp.array([0.05, 0.25, 0.5, 0.75, 0.95], jnp.float32)
  losses = jnp.where(used, info.loss, jnp.zeros_like(info.loss))
  return SensitiveInfo(
    (jnp.sum(losses) / count.astype(losses.dtype)).astype(jnp.float32),
    jnp.sum(cut).astype(jnp.float32) / (count * info.norms.shape[0]),
    jnp.nanquantile(jnp.where(used, norms, jnp.nan), levels),
    jnp.sum(real).astype(jnp.float32),
    jnp.sum(real & ~finite).astype(jnp.float32),
  )


def _average(old: PyTree, new: PyTree, decay: float, step: Array) -> PyTree:
  t = step.astype(jnp.float32)
  keep = jnp.minimum(jnp.float32(decay), (1 + t) / (10 + t))

  def mix(a: Array, b: Array) -> Array:
    if not jnp.issubdtype(b.dtype, jnp.floating):
      return b
    return (a + (1 - keep.astype(a.dtype)) * (b - a)).astype(a.dtype)

  return jax.tree.map(mix, old, new)
