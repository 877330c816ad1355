"""Time of a private step with K augmented views over that of one.

Views cost computing and no privacy, so K of them should cost K times one view
and little more. DP-CNN on CIFAR-sized images, random crop and flip.

  python benchmarks/views.py            # on a GPU
  python benchmarks/views.py --quick
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import app, flags

import jaxdp
from benchmarks import _models, _timing

_VIEWS = flags.DEFINE_list("views", ["1", "2", "4", "8"], "K, the first of 1.")
_BATCH = flags.DEFINE_integer("batch_size", 1024, "Examples.")
_METHOD = flags.DEFINE_string("method", "auto", "Engine.")
_MICROBATCH = flags.DEFINE_integer("microbatch_size", None, "None for all.")


def main(_: list[str]) -> None:
  _timing.prepare()
  batch_size = 4 if _timing.QUICK.value else _BATCH.value
  task = _models.images("dp_cnn", (32, 32, 3), batch_size)
  mechanism = jaxdp.Mechanism(
    jaxdp.clipping.flat(1.0), jaxdp.sampling.FullBatch(batch_size), 1.0
  )
  mask = jnp.zeros(batch_size, bool)
  method: Any = _METHOD.value
  variants = []
  for views in map(int, _VIEWS.value):
    loss_fn = jaxdp.units.mean_over_views(
      task.loss_fn, jaxdp.units.random_crop_and_flip, views
    )
    step = jaxdp.make_train_step(
      loss_fn,
      mechanism,
      optax.sgd(1.0),
      method=method,
      has_key=True,
      microbatch_size=_MICROBATCH.value,
    )
    state = step.init(task.params, jax.random.key(0))
    variants.append(
      _timing.stateful(f"K = {views}", step.jitted, state, task.batch, mask)
    )
  _timing.report("views", _timing.compare(f"dp_cnn {batch_size}", variants))


if __name__ == "__main__":
  app.run(main)
