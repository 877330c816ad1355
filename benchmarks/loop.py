"""Steps a second of ``fit`` over one dispatch a step of the same train step.

Logistic regression (10,000 examples of 50 features, expected batch 256): the
arithmetic is next to nothing, so this is what the loop around it costs. The
dispatched loop samples on the host, gathers the rows, puts them on the device
and calls the step, and waits only at its end. ``fit`` runs with a ledger in
memory, and in a workdir, where every call is charged on disk and checkpoints
are written. The bare scan is what no loop can be faster than: steps over rows
that lie ready, with and without privacy. Compilation and the first calls are
left out.

  python benchmarks/loop.py
"""

import itertools
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

import jaxdp
from benchmarks import _timing

_STEPS = flags.DEFINE_integer("steps", 8000, "Steps of one call of fit.")
_DISPATCHED = flags.DEFINE_integer("dispatched", 1000, "Steps of the loop.")

_NUM_EXAMPLES, _DIM, _DELTA = 10_000, 50, 1e-5


def loss_fn(params: Any, example: Any) -> jax.Array:
  logit = example["x"] @ params["w"] + params["b"]
  return jnp.logaddexp(0.0, -example["y"] * logit)


def _dataset() -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  x = rng.standard_normal((_NUM_EXAMPLES, _DIM), np.float32)
  y = np.sign(x @ rng.standard_normal(_DIM, np.float32))
  return {"x": x, "y": y}


def _dispatch(
  step: jaxdp.training.TrainStep, params: Any, data: Any, num_steps: int
) -> float:
  """Steps a second, one dispatch each."""
  assert step.mechanism is not None
  sampler = step.mechanism.sampler
  state = step.init(params, jax.random.key(0))
  start = 0.0
  for t in range(-3, num_steps):
    if t == 0:
      jax.block_until_ready(state)
      start = time.perf_counter()
    ids = sampler.sample(0, max(t, 0))
    rows = {name: values[ids.indices] for name, values in data.items()}
    rows, mask = jax.device_put((rows, ids.is_padding_example))
    state, _ = step(state, rows, mask)
  jax.block_until_ready(state)
  return num_steps / (time.perf_counter() - start)


def _scan(step: jaxdp.training.TrainStep, params: Any, rows: Any) -> float:
  """Steps a second of one program over rows [steps, units, ...] and masks."""
  state = step.init(params, jax.random.key(0))
  scan = jax.jit(
    lambda state, rows: jax.lax.scan(
      lambda state, x: step.run(state, None, *x), state, rows
    )
  )
  times = []
  for _ in range(6):
    start = time.perf_counter()
    jax.block_until_ready(scan(state, rows))
    times.append(time.perf_counter() - start)
  return len(rows[1]) / float(np.median(times[1:]))


def _fit(
  mechanism: jaxdp.Mechanism, params: Any, data: Any, workdir: str | None
) -> float:
  """Steps a second: the median over stretches after the first."""
  num_steps = 400 if _timing.QUICK.value else _STEPS.value
  times = []

  def eval_fn(params: Any) -> dict[str, float]:
    del params
    times.append(time.perf_counter())
    return {}

  every = num_steps // 8
  jaxdp.fit(
    loss_fn,
    params,
    data,
    mechanism,
    optax.sgd(0.1),
    num_steps=num_steps,
    delta=_DELTA,
    seed=0,
    eval_fn=eval_fn,
    eval_every=every,
    workdir=workdir,
    progress=False,
  )
  gaps = [after - before for before, after in itertools.pairwise(times)]
  return every / float(np.median(gaps))


def main(argv: list[str]) -> None:
  del argv
  _timing.prepare()
  data = _dataset()
  params = {"w": jnp.zeros(_DIM), "b": jnp.zeros(())}
  mechanism = jaxdp.Mechanism(
    jaxdp.clipping.flat(1.0),
    jaxdp.sampling.Poisson(num_examples=_NUM_EXAMPLES, expected_batch_size=256),
    1.0,
  )
  step = jaxdp.make_train_step(loss_fn, mechanism, optax.sgd(0.1))
  plain = jaxdp.make_train_step(loss_fn, None, optax.sgd(0.1))
  ids = mechanism.sampler.sample_many(0, 0, 200)
  rows = jax.device_put(
    (
      {name: values[ids.indices] for name, values in data.items()},
      ids.is_padding_example,
    )
  )
  rates: dict[str, list[float]] = {
    "one dispatch a step": [],
    "bare scan, no privacy": [],
    "bare scan": [],
    "fit": [],
    "fit in a workdir": [],
  }
  for _ in range(1 if _timing.QUICK.value else 5):
    rates["one dispatch a step"].append(
      _dispatch(step, params, data, _DISPATCHED.value)
    )
    rates["bare scan, no privacy"].append(_scan(plain, params, rows))
    rates["bare scan"].append(_scan(step, params, rows))
    rates["fit"].append(_fit(mechanism, params, data, None))
    with tempfile.TemporaryDirectory() as workdir:
      rates["fit in a workdir"].append(_fit(mechanism, params, data, workdir))
  base = np.array(rates["one dispatch a step"])
  table = [
    {
      "variant": name,
      "steps/s": float(np.median(values)),
      "us a step": 1e6 / float(np.median(values)),
      "x speed": float(np.median(np.array(values) / base)),
      "samples": values,
    }
    for name, values in rates.items()
  ]
  _timing.report("loop", table)


if __name__ == "__main__":
  app.run(main)
