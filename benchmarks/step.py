"""Time and compiled memory of one DP step over one without privacy.

All variants of a model run in turn in one process, from the same parameters on
the same full batch: the step of ``make_train_step`` without a mechanism (an
ordinary batch gradient), the private one, its gradients, clip and sum alone,
and the same step and sum made with jax_privacy (from PyPI; left out if it is
not installed), whole and in microbatches.

  python benchmarks/step.py
  python benchmarks/step.py --models=wrn_16_4,dp_cnn,tanh_cnn    # on a GPU
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import app, flags

import jaxdp
from benchmarks import _models, _timing

_MODELS = flags.DEFINE_list(
  "models",
  ["tanh_cnn", "tanh_cnn_reduce_window", "lenet", "transformer"],
  "Of benchmarks/_models.py.",
)
_METHODS = flags.DEFINE_list("methods", ["auto"], "Engines of jaxdp.")
_MICROBATCH = flags.DEFINE_integer(
  "microbatch_size", None, "Of jaxdp; None for the whole batch."
)
_PEER = flags.DEFINE_enum(
  "peer",
  "both",
  ["both", "whole", "none"],
  "jax_privacy: on the whole batch, in microbatches too, or not.",
)

_CLIP_NORM = 1.0
_NOISE_MULTIPLIER = 1.0
_BASELINE = "non-private step"


def _mechanism(batch_size: int) -> jaxdp.Mechanism:
  # The cap is the expected size, so that a full batch has no padding rows.
  sampler = jaxdp.sampling.Poisson(
    num_examples=100 * batch_size,
    expected_batch_size=batch_size,
    max_batch_size=batch_size,
  )
  rule = jaxdp.clipping.flat(_CLIP_NORM)
  return jaxdp.Mechanism(rule, sampler, _NOISE_MULTIPLIER)


def _ours(task: _models.Task, mask: jax.Array) -> Iterator[_timing.Variant]:
  key = jax.random.key(0)
  mechanism = _mechanism(task.batch_size)
  methods: list[Any] = _METHODS.value
  steps: list[tuple[str, Any, Any]] = [(_BASELINE, None, "auto")]
  steps += [(f"jaxdp step, {name}", mechanism, name) for name in methods]
  for name, chosen, method in steps:
    step = jaxdp.make_train_step(
      task.loss_fn,
      chosen,
      optax.adam(1e-3),
      method=method,
      microbatch_size=_MICROBATCH.value,
    )
    state = step.init(task.params, key)
    yield _timing.stateful(name, step.jitted, state, task.batch, mask)
  args = task.params, task.batch, mask
  gradient = jax.jit(_models.gradient(task.loss_fn))
  yield _timing.stateless("non-private gradient", gradient, *args)
  for method in methods:
    clipped_sum = jaxdp.clipped_sum(
      task.loss_fn, mechanism.rule, method, _MICROBATCH.value
    )
    fun = jax.jit(lambda *args, clip=clipped_sum: clip(*args)[0].grads)
    yield _timing.stateless(f"jaxdp clip+sum, {method}", fun, *args)


def _peer(
  task: _models.Task, mask: jax.Array, microbatch_size: int
) -> Iterator[_timing.Variant]:
  """jax_privacy, as its examples put the pieces together."""
  try:
    import jax_privacy
  except ImportError:
    print("jax_privacy is not installed: pip install jax-privacy. Left out.")
    return
  optimizer = optax.adam(1e-3)
  micro = min(microbatch_size, task.batch_size // 2)
  sizes = [None] if _PEER.value == "whole" else [None, micro]
  for size in sizes:
    suffix = "" if size is None else f" mb={size}"
    clipped_grad = jax_privacy.clipped_grad(
      task.loss_fn,
      l2_clip_norm=_CLIP_NORM,
      normalize_by=task.batch_size,
      keep_batch_dim=False,
      microbatch_size=size,
    )
    privatizer = jax_privacy.noise_addition.gaussian_privatizer(
      stddev=_NOISE_MULTIPLIER * _CLIP_NORM / task.batch_size,
      prng_key=jax.random.key(0),
    )

    def step(
      state: Any, batch: Any, mask: Any, grad: Any = clipped_grad,
      privatizer: Any = privatizer,
    ) -> Any:  # fmt: skip
      params, opt_state, noise_state = state
      mean = grad(params, batch, is_padding_example=mask)
      noisy, noise_state = privatizer.update(mean, noise_state)
      updates, opt_state = optimizer.update(noisy, opt_state, params)
      params = optax.apply_updates(params, updates)
      return (params, opt_state, noise_state), optax.tree.norm(updates)

    params = jax.tree.map(jnp.array, task.params)  # the step donates them
    state = (params, optimizer.init(params), privatizer.init(params))
    jitted = jax.jit(step, donate_argnums=0)
    yield _timing.stateful(
      f"jax_privacy step{suffix}", jitted, state, task.batch, mask
    )

    def clip_and_sum(
      params: Any, batch: Any, mask: Any, grad: Any = clipped_grad
    ) -> Any:
      return grad(params, batch, is_padding_example=mask)

    yield _timing.stateless(
      f"jax_privacy clip+sum{suffix}",
      jax.jit(clip_and_sum),
      task.params,
      task.batch,
      mask,
    )


def _variants(
  task: _models.Task, peer_microbatch: int
) -> list[_timing.Variant]:
  """Those that compile and run once; others say why they are left out."""
  mask = jnp.zeros(task.batch_size, bool)
  found = []
  makers = [_ours(task, mask)]
  if _PEER.value != "none":
    makers.append(_peer(task, mask, peer_microbatch))
  for maker in makers:
    try:
      for variant in maker:
        jax.block_until_ready(variant.call())
        found.append(variant)
    except jax.errors.JaxRuntimeError as error:
      print(f"left out: {str(error).splitlines()[0][:200]}")
  return found


def _rows(model: str) -> list[dict[str, Any]]:
  make, size, peer_microbatch = _models.TASKS[model]
  size = 8 if _timing.QUICK.value else size
  variants = _variants(make(size), peer_microbatch)
  return _timing.compare(f"{model} {size}", variants)


def main(argv: list[str]) -> None:
  del argv
  _timing.prepare()
  rows: list[dict[str, Any]] = []
  for model in _MODELS.value:
    rows += _rows(model)
    _timing.report("step", rows)


if __name__ == "__main__":
  app.run(main)
