"""Many trainings: as lanes of one program, one after another, in a loop.

``lanes`` is what surveys do (``jaxdp/studies/_lanes.py``), as wide as measured;
``alone`` the same program with one run at a time; ``loop`` a Python loop over
steps of ``vmap(grad)``, compiled once for all runs. Each makes the same runs,
which differ in learning rate and seed; compilation and the start of the first
runs are left out.

  PYTHONPATH=. python benchmarks/runs.py --model=logistic --batch_size=16
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

import jaxdp
from benchmarks import _models, _timing
from jaxdp import noise
from jaxdp.studies._lanes import Job, Lanes, best
from jaxdp.studies._stream import Program
from jaxdp.studies._survey_groups import chunk_size

_MODEL = flags.DEFINE_string(
  "model", "logistic", "logistic, mlp, or one of benchmarks/_models.py."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Expected.")
_RUNS = flags.DEFINE_integer("runs", 64, "How many.")
_STEPS = flags.DEFINE_integer("steps", 200, "Of each.")
_WIDTH = flags.DEFINE_integer("width", None, "Of the lanes; None measures it.")
_NUM_EXAMPLES = 1437


def _digits(name: str) -> _models.Task:
  """Real digits, for a model as small as they are."""
  from jaxdp import data, models

  arrays = data.load("digits", "train")
  options: dict[str, Any] = {"hidden": ()} if name == "logistic" else {}
  params, apply_fn = models.create(
    "mlp", seed=0, num_classes=10, input_shape=(8, 8, 1), **options
  )
  loss_fn = models.classification_loss(apply_fn, data.preprocess("digits"))
  batch = {key: jnp.asarray(x) for key, x in arrays.items()}
  return _models.Task(loss_fn, params, batch, _NUM_EXAMPLES)


def _task() -> _models.Task:
  name = _MODEL.value
  if name in ("logistic", "mlp"):
    return _digits(name)
  return _models.TASKS[name].make(10_000)


def _job(task: _models.Task, seed: int) -> Job:
  sampler = jaxdp.sampling.Poisson(
    num_examples=task.batch_size, expected_batch_size=_BATCH_SIZE.value
  )
  mechanism = jaxdp.Mechanism(jaxdp.clipping.flat(1.0), sampler, 2.0)
  return Job(seed, mechanism, 0.01 * (1 + seed % 7), _STEPS.value, seed)


def _loop(task: _models.Task, jobs: Sequence[Job]) -> Callable[[], Any]:
  step = jaxdp.make_train_step(
    task.loss_fn,
    jobs[0].mechanism,
    optax.inject_hyperparams(optax.sgd)(learning_rate=0.1),
    method="stacked",
  )
  fetch = jax.jit(lambda rows: jax.tree.map(lambda x: x[rows], task.batch))

  def one(job: Job, num_steps: int) -> Any:
    state = step.init(task.params, noise.make_key(job.seed))
    rate = jnp.float32(job.learning_rate)
    state.opt_state.hyperparams["learning_rate"] = rate
    for t in range(num_steps):
      batch = job.mechanism.sampler.sample(job.seed, t)
      rows = fetch(batch.indices)
      state, _ = step(state, rows, jnp.asarray(batch.is_padding_example))
    return state.params

  jax.block_until_ready(one(jobs[0], 2))
  return lambda: [one(job, job.num_steps) for job in jobs]


def _lanes(task: _models.Task, jobs: Sequence[Job], width: int | None) -> Any:
  program = Program(task.loss_fn, optax.sgd)
  n = task.batch_size
  size = chunk_size({"q": _BATCH_SIZE.value / n, "num_examples": n})

  def make(width: int) -> Lanes:
    return Lanes(program, task.batch, lambda job: task.params, size, width)

  lanes = best(make, jobs) if width is None else make(width)
  lanes.seconds(jobs[:1])
  list(lanes(job._replace(num_steps=1) for job in jobs))
  return lanes


def main(argv: list[str]) -> None:
  del argv
  _timing.prepare()
  count = 4 if _timing.QUICK.value else _RUNS.value
  task = _task()
  jobs = [_job(task, seed) for seed in range(count)]
  wide = _lanes(task, jobs, _WIDTH.value)
  alone = _lanes(task, jobs, 1)
  variants = {
    "loop over vmap(grad)": _loop(task, jobs),
    "alone": lambda: [state.params for _, state in alone(jobs)],
    f"{wide.width} lanes": lambda: [state.params for _, state in wide(jobs)],
  }
  rounds = 1 if _timing.QUICK.value else min(_timing.ROUNDS.value, 3)
  seconds = np.empty((len(variants), rounds))
  for r in range(rounds):
    for i, call in enumerate(variants.values()):
      start = time.perf_counter()
      jax.block_until_ready(call())
      seconds[i, r] = time.perf_counter() - start
  steps = count * _STEPS.value
  rows = [
    {
      "model": f"{_MODEL.value} {_BATCH_SIZE.value}",
      "variant": name,
      "steps/s": steps / float(np.median(times)),
      "runs/h": 3600 * count / float(np.median(times)),
      "x loop": float(np.median(seconds[0] / times)),
      "x alone": float(np.median(seconds[1] / times)),
      "samples": times.tolist(),
    }
    for name, times in zip(variants, seconds, strict=True)
  ]
  _timing.report("runs", rows)


if __name__ == "__main__":
  app.run(main)
