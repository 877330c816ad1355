"""``fit``: what training takes, and the checks before anything runs.

``_run.py`` has what it then does.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import PyTree

from jaxdp import accounting, per_example, probe, units
from jaxdp.inner_momentum import InnerMomentum
from jaxdp.mechanism import Mechanism
from jaxdp.public_batch import PublicBatch
from jaxdp.sampling import Sampler
from jaxdp.training import _feed
from jaxdp.training._run import History, PerformanceFlags, Run
from jaxdp.training._seeds import Seeds
from jaxdp.training._step import TrainState, make_train_step


def fit(
  loss_fn: Callable,
  params: PyTree,
  dataset: PyTree | _feed.Reader,
  mechanism: Mechanism | None,
  optimizer: optax.GradientTransformation,
  *,
  num_steps: int,
  delta: float | None = None,
  max_epsilon: float | None = None,
  seed: int | None = None,
  sampler: Sampler | None = None,
  trainable: per_example.Trainable = None,
  has_aux: bool = False,
  has_key: bool = False,
  public_batch: PublicBatch | None = None,
  inner_momentum: InnerMomentum | None = None,
  ema_decay: float | None = None,
  eval_fn: Callable[[PyTree], dict[str, float]] | None = None,
  eval_every: int | None = None,
  log_every: int | None = None,
  workdir: str | pathlib.Path | None = None,
  config: dict[str, Any] | None = None,
  checkpoint_every: int | None = None,
  keep_checkpoints: int = 3,
  diagnostics: bool = False,
  progress: bool = True,
  performance: PerformanceFlags | None = None,
  facts: accounting.RunFacts | None = None,
) -> tuple[TrainState, History]:
  """Trains for a number of steps, with a true (epsilon, delta) at every one.

  Args:
    loss_fn: for ONE example, see ``jaxdp.per_example_grads``.
    params: initial parameters, which must not depend on the data.
    dataset: a tree of arrays with the examples on the first axis, or a reader
      (``len`` and ``reader[indices]``) for data larger than memory.
    mechanism: rule, sampler and noise. None trains without privacy; ``sampler``
      is then needed.
    optimizer: any optax optimizer, for the released mean gradients.
    num_steps: steps in all, those before a resume included.
    delta: at which epsilon is reported; needed with a mechanism.
    max_epsilon: stop before the step that would exceed it.
    seed: None takes all randomness from the operating system. A number makes a
      research run: repeatable, and said so in the statement.
    sampler: only without a mechanism.
    trainable: which leaves train, see ``jaxdp.partition_params``.
    has_aux: the loss returns ``(loss, aux)``.
    has_key: the loss takes a key of its example, as third argument.
    public_batch: for rules that follow public data, see ``make_train_step``.
    inner_momentum: see ``InnerMomentum``.
    ema_decay: evaluate and release averaged parameters, see
      ``make_train_step``.
    eval_fn: ``eval_fn(params) -> {name: number}`` on data that may be shown.
    eval_every: steps between evaluations; None for the end alone.
    log_every: steps between rows of metrics; None for about 40 rows.
    workdir: where checkpoints, ledger, metrics, statement and release go. A
      workdir with a checkpoint is resumed. None keeps nothing.
    config: what is written to ``config.json``; a resume must come with the
      same.
    checkpoint_every: steps between checkpoints; None for about 10.
    keep_checkpoints: how many to keep.
    diagnostics: report un-noised losses and norms, marked *sensitive*.
    progress: show a progress bar.
    performance: see ``PerformanceFlags``.
    facts: what the caller knows of parameters and data, so that the statement
      need not assume it: ``params_given``, ``preprocessed``, ``held_out``.

  Returns:
    ``(state, history)``. ``state`` is *sensitive*: it holds the noise key. The
    parameters in it, and all of ``history`` but ``sensitive`` rows, are covered
    by ``history.statement``.

  Guarantees:
    A step is charged, on disk, before it runs. After a crash the same command
    goes on from the last checkpoint: on the same machine, versions and flags
    the lost steps come out bit for bit the same and are not charged again;
    otherwise they get fresh randomness and are charged again.

  Raises:
    ValueError: for anything that does not fit together, before any compile; or
      a leaf has no gradient (see ``probe.check_gradients``), which one small
      program on made-up examples finds before training.
  """
  performance = performance or PerformanceFlags()
  _check_counts(
    num_steps=num_steps,
    keep_checkpoints=keep_checkpoints,
    eval_every=eval_every,
    log_every=log_every,
    checkpoint_every=checkpoint_every,
    steps_per_call=performance.steps_per_call,
  )
  sampler = _validate(mechanism, sampler, delta, max_epsilon)
  sampler.check(_feed.num_rows(dataset))
  flags: Any = {
    "trainable": trainable, "has_aux": has_aux, "has_key": has_key,
  }  # fmt: skip
  made_up = _made_up_batch(dataset, sampler)
  _check_loss(loss_fn, params, made_up, flags)
  step = make_train_step(
    loss_fn,
    mechanism,
    optimizer,
    method=performance.method,
    microbatch_size=performance.microbatch_size,
    **flags,
    public_batch=public_batch,
    inner_momentum=inner_momentum,
    ema_decay=ema_decay,
    mesh=performance.mesh,
    diagnostics=diagnostics,
  )
  log_every = log_every or max(1, num_steps // 40)
  run = Run(
    step=step,
    sampler=sampler,
    num_steps=num_steps,
    delta=delta,
    max_epsilon=max_epsilon,
    workdir=None if workdir is None else pathlib.Path(workdir),
    config=config,
    eval_fn=eval_fn,
    every={
      "log": log_every,
      "eval": eval_every or num_steps,
      "save": checkpoint_every
      or -(-max(1, num_steps // 10) // log_every) * log_every,
    },
    keep_checkpoints=keep_checkpoints,
    progress=progress,
    performance=performance,
    facts=dataclasses.replace(
      facts or accounting.RunFacts(),
      own_loop=False,
      part_frozen=trainable is not None,
      rows_are_users=isinstance(_feed.first_row(dataset), units.Records),
      public_batch=public_batch is not None,
      evaluated=eval_fn is not None,
      diagnostics=diagnostics,
    ),
  )
  on_device = performance.data_on_device
  feed = _feed.Feed(
    dataset,
    sampler,
    performance.mesh,
    None if on_device == "auto" else on_device,
  )
  run.check_workdir(params)
  seeds = Seeds.make(seed)
  # Last, since this is the one check that compiles.
  key = jax.random.key(0, impl="threefry2x32")
  probe.check_gradients(loss_fn, params, made_up, key=key, **flags)
  return run(params, feed, seeds)


def _check_counts(**counts: Any) -> None:
  for name, value in counts.items():
    if value is None or (name, value) == ("steps_per_call", "auto"):
      continue
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
      raise ValueError(f"{name} must be an integer, got {name}={value!r}.")
    if not 1 <= value < 2**31:
      wanted = ">= 1" if value < 1 else "< 2**31"
      raise ValueError(f"{name} must be {wanted}, got {name}={value}.")


def _made_up_batch(dataset: PyTree | _feed.Reader, sampler: Sampler) -> PyTree:
  """Four units of the same shapes, without looking at a value."""
  key = jax.random.key(0, impl="threefry2x32")
  row = _feed.first_row(dataset)
  shape = (4, *sampler.unit_shape)
  rows = probe.made_up_examples(row, math.prod(shape), key)
  if not sampler.unit_shape:
    return rows
  records = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), rows)
  return units.Records(records, np.zeros(shape, bool))


def _check_loss(
  loss_fn: Callable, params: PyTree, batch: PyTree, flags: dict[str, Any]
) -> None:
  """Traces the gradient of a unit, which raises if it is not right."""
  grads_fn = per_example.per_example_grads(loss_fn, "stacked", **flags)
  key = jax.random.key(0, impl="threefry2x32") if flags["has_key"] else None
  out = jax.eval_shape(lambda p, b: grads_fn(p, b, key=key), params, batch)
  if flags["has_aux"]:
    probe.check_aux(out[1])


def _validate(
  mechanism: Mechanism | None,
  sampler: Sampler | None,
  delta: float | None,
  max_epsilon: float | None,
) -> Sampler:
  if mechanism is None:
    if sampler is None:
      raise ValueError(
        "Without a mechanism, fit needs a sampler for its batches: "
        "fit(..., mechanism=None, sampler=jaxdp.sampling.Shuffled(...))."
      )
    if max_epsilon is not None:
      raise ValueError(
        "max_epsilon needs a mechanism: nothing is private here."
      )
    return sampler
  if sampler is not None and sampler != mechanism.sampler:
    raise ValueError(
      "The mechanism has a sampler, which is the only one that its epsilon "
      "speaks of. Leave sampler=None."
    )
  if delta is None or not 0 < delta < 1:
    raise ValueError(
      f"delta must be in (0, 1), got delta={delta}. Choose it before training, "
      f"below 1 / num_examples = {1 / mechanism.sampler.num_examples:.2g}."
    )
  if max_epsilon is not None and not max_epsilon > 0:
    raise ValueError(f"max_epsilon must be > 0, got {max_epsilon}.")
  mechanism.dp_event(1)  # raises if no noise was chosen
  if max_epsilon is None:
    return mechanism.sampler
  one_step = mechanism.epsilon(1, delta)
  if one_step > max_epsilon:
    raise ValueError(
      f"Not one step fits max_epsilon={max_epsilon}: it costs epsilon="
      f"{one_step:.4g} at delta={delta}. Use more noise: "
      f"jaxdp.calibrate_noise(mechanism, target_epsilon={max_epsilon}, "
      f"target_delta={delta}, num_steps=...)."
    )
  return mechanism.sampler
