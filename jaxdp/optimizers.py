"""DP optimizers as optax transformations: a release, then any optimizer.

Everything after the release is post-processing and costs no privacy. What an
optimizer may want to know of the release, the noise's standard deviation, comes
to it as the extra argument ``noise_stddev``.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from jaxdp.aggregation import refuse_inject_hyperparams
from jaxdp.mechanism import Mechanism, MechanismState


class AfterReleaseState(NamedTuple):
  """States of a release and of the optimizer that follows. *Sensitive*."""

  mechanism: MechanismState
  optimizer: optax.OptState


@refuse_inject_hyperparams
def after_release(
  mechanism: Mechanism, key: Array, optimizer: optax.GradientTransformation
) -> optax.GradientTransformation:
  """``chain(mechanism.aggregate(key), optimizer)``, told ``noise_stddev``.

  Args:
    mechanism: releases the mean of the clipped gradients.
    key: noise key, kept in the state.
    optimizer: any optax optimizer.

  Returns:
    A transformation that takes per-example gradients.
  """
  release = mechanism.aggregate(key)
  optimizer = optax.with_extra_args_support(optimizer)

  def init_fn(params: PyTree) -> AfterReleaseState:
    return AfterReleaseState(release.init(params), optimizer.init(params))

  def update_fn(
    updates: Any, state: AfterReleaseState, params: Any = None
  ) -> tuple[PyTree, AfterReleaseState]:
    updates, release_state = release.update(updates, state.mechanism, params)
    stddev = mechanism.noise_stddev(release_state, updates)
    updates, optimizer_state = optimizer.update(
      updates, state.optimizer, params, noise_stddev=stddev
    )
    return updates, AfterReleaseState(release_state, optimizer_state)

  return optax.GradientTransformation(init_fn, update_fn)


@refuse_inject_hyperparams
def dp_sgd(
  mechanism: Mechanism,
  key: Array,
  learning_rate: optax.ScalarOrSchedule,
  momentum: float | None = None,
  nesterov: bool = False,
) -> optax.GradientTransformation:
  """DP-SGD: a release, then (momentum) SGD.

  Args:
    mechanism: see ``Mechanism``.
    key: noise key.
    learning_rate: a number or an optax schedule.
    momentum: decay of the momentum, which is post-processing; None for none.
    nesterov: as in ``optax.sgd``.

  References:
    Abadi et al. 2016, arXiv:1607.00133, Algorithm 1.
  """
  sgd = optax.sgd(learning_rate, momentum, nesterov)
  return after_release(mechanism, key, sgd)


@refuse_inject_hyperparams
def dp_adam(
  mechanism: Mechanism,
  key: Array,
  learning_rate: optax.ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
) -> optax.GradientTransformation:
  """DP-Adam: a release, then Adam.

  Args:
    mechanism: see ``Mechanism``.
    key: noise key.
    learning_rate: a number or an optax schedule.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.

  References:
    Kingma and Ba 2015, arXiv:1412.6980, after the release of Abadi et al.
  """
  return after_release(mechanism, key, optax.adam(learning_rate, b1, b2, eps))


@refuse_inject_hyperparams
def dp_adam_bc(
  mechanism: Mechanism,
  key: Array,
  learning_rate: optax.ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  floor: float = 1e-8,
) -> optax.GradientTransformation:
  """DP-AdamBC: a release, then ``adam_bc``, which reads the noise's variance.

  Args:
    mechanism: see ``Mechanism``.
    key: noise key.
    learning_rate: a number or an optax schedule.
    b1: decay of the first moment.
    b2: decay of the second moment.
    floor: smallest corrected second moment, see ``scale_by_adam_bc``.

  References:
    Tang et al. 2023, arXiv:2312.14334, Algorithm 1.
  """
  return after_release(mechanism, key, adam_bc(learning_rate, b1, b2, floor))


class ScaleByAdamBcState(NamedTuple):
  """Moments of the released means, and of the noise in them. Public."""

  count: Array  # type: ignore[assignment]  # shape=(), dtype=int32
  mu: PyTree  # like the parameters
  nu: PyTree  # like the parameters
  noise_nu: PyTree  # scalars by leaf: the same average of noise variances


def scale_by_adam_bc(
  b1: float = 0.9, b2: float = 0.999, floor: float = 1e-8
) -> optax.GradientTransformationExtraArgs:
  r"""Adam's scaling with the noise's share taken out of the second moment.

  .. math:: \hat m / \sqrt{\max(\hat v - \Phi, \gamma')}

  where Phi is the same exponential average as v, of the noise variances of the
  released means; with a constant noise it is (std / B)^2.

  Args:
    b1: decay of the first moment.
    b2: decay of the second moment.
    floor: gamma' > 0, the smallest value under the root; worth tuning.

  Returns:
    A transformation whose update needs ``noise_stddev``, a tree of scalars; it
    comes from ``after_release``, ``make_train_step`` or
    ``mechanism.noise_stddev``.

  Raises:
    ValueError: floor <= 0, or no ``noise_stddev`` was given.

  References:
    Tang et al. 2023, arXiv:2312.14334, Algorithm 1.
  """
  if not floor > 0:
    raise ValueError(f"floor must be > 0, got floor={floor}.")

  def init_fn(params: PyTree) -> ScaleByAdamBcState:
    return ScaleByAdamBcState(
      jnp.zeros((), jnp.int32),
      jax.tree.map(jnp.zeros_like, params),
      jax.tree.map(jnp.zeros_like, params),
      jax.tree.map(lambda p: jnp.zeros((), jnp.float32), params),
    )

  def update_fn(
    updates: PyTree,
    state: ScaleByAdamBcState,
    params: Any = None,
    *,
    noise_stddev: PyTree | None = None,
    **extra_args: Any,
  ) -> tuple[PyTree, ScaleByAdamBcState]:
    del params, extra_args
    if noise_stddev is None:
      raise ValueError(
        "adam_bc needs the noise's standard deviation. Use "
        "jaxdp.optimizers.dp_adam_bc(mechanism, key, ...) or make_train_step, "
        "or pass noise_stddev=mechanism.noise_stddev(state, params)."
      )
    count = optax.safe_increment(state.count)
    mu = optax.tree.update_moment(updates, state.mu, b1, 1)
    nu = optax.tree.update_moment(updates, state.nu, b2, 2)
    noise_nu = jax.tree.map(
      lambda old, s: b2 * old + (1 - b2) * jnp.square(s),
      state.noise_nu,
      noise_stddev,
    )
    steps = count.astype(jnp.float32)  # strict dtype promotion needs a float
    mu_hat = optax.tree.bias_correction(mu, b1, steps)
    nu_hat = optax.tree.bias_correction(nu, b2, steps)
    phi = optax.tree.bias_correction(noise_nu, b2, steps)
    scaled = jax.tree.map(
      lambda m, v, p: m / jnp.sqrt(jnp.maximum(v - p.astype(v.dtype), floor)),
      mu_hat,
      nu_hat,
      phi,
    )
    return scaled, ScaleByAdamBcState(count, mu, nu, noise_nu)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def adam_bc(
  learning_rate: optax.ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  floor: float = 1e-8,
) -> optax.GradientTransformation:
  """``scale_by_adam_bc`` and a learning rate: an optimizer for released means.

  Args:
    learning_rate: a number or an optax schedule.
    b1: decay of the first moment.
    b2: decay of the second moment.
    floor: smallest corrected second moment.
  """
  return optax.chain(
    scale_by_adam_bc(b1, b2, floor), optax.scale_by_learning_rate(learning_rate)
  )
