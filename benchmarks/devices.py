"""Time of one DP step on 1, 2, ... devices of one host, batch unchanged.

Every device clips and sums its share of the rows; the sums are added, and the
noise is drawn once. The speed-up is the median over rounds of two times of the
same round.

  python benchmarks/devices.py                         # on several GPUs
  XLA_FLAGS=--xla_force_host_platform_device_count=2 \
    JAX_PLATFORMS=cpu python benchmarks/devices.py --quick
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

import jaxdp
from benchmarks import _models, _timing

_MODEL = flags.DEFINE_string("model", "wrn_16_4", "Of benchmarks/_models.py.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 512, "Rows of a batch.")


def _variant(count: int, task: _models.Task) -> _timing.Variant:
  sampler = jaxdp.sampling.FixedSize(
    num_examples=100 * task.batch_size, batch_size=task.batch_size
  )
  step = jaxdp.make_train_step(
    task.loss_fn,
    jaxdp.Mechanism(jaxdp.clipping.flat(1.0), sampler, 1.0),
    optax.sgd(1e-3),
    mesh=jaxdp.training.data_mesh(jax.devices()[:count]),
  )
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:count]), ("data",))
  P = jax.sharding.PartitionSpec
  whole = jax.sharding.NamedSharding(mesh, P())
  rows = jax.sharding.NamedSharding(mesh, P("data"))
  state = jax.device_put(step.init(task.params, jax.random.key(0)), whole)
  mask = jnp.zeros(task.batch_size, bool)
  batch, mask = jax.device_put((task.batch, mask), rows)
  return _timing.stateful(f"{count} devices", step.jitted, state, batch, mask)


def main(argv: list[str]) -> None:
  del argv
  size = 8 if _timing.QUICK.value else _BATCH_SIZE.value
  task = _models.TASKS[_MODEL.value].make(size)
  counts = [2**i for i in range(jax.device_count().bit_length())]
  variants = [_variant(n, task) for n in counts if n <= jax.device_count()]
  timings = _timing.interleave(variants)
  rows: list[dict[str, Any]] = [
    {
      "model": f"{_MODEL.value} {size}",
      "variant": name,
      "ms": timing.median * 1e3,
      "iqr %": timing.spread * 100,
      "speed-up": timings["1 devices"].over(timing),
      "samples": timing.seconds.tolist(),
    }
    for name, timing in timings.items()
  ]
  _timing.report("devices", rows)


if __name__ == "__main__":
  app.run(main)
