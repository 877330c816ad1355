"""Bad arguments of `jaxdp.fit`: changes of `toy.fit`."""

import numpy as np

import jaxdp
from tests import toy


def short(field):
  data = toy.dataset()
  return {**data, field: data[field][:-1]}


ROWS = {
  "data of another length": (
    {"dataset": toy.dataset(47)},
    r"47 rows but .* num_examples=48",
  ),
  "leaves that disagree": (
    {"dataset": short("label")},
    r"same first axis .*'label': \(47,\)",
  ),
  "a loss that is a vector": (
    {"loss_fn": lambda params, example: example["x"] @ params["kernel"]},
    r"one real scalar .*shape=\(3,\)",
  ),
  "a loss with auxiliary output": (
    {"loss_fn": lambda params, example: (toy.loss_fn(params, example), 1)},
    "has_aux=True",
  ),
  "no trainable leaf": (
    {"trainable": lambda name, leaf: False},
    "No parameter is trainable",
  ),
  "integer parameters": (
    {"params": {**toy.params(), "table": np.arange(3)}},
    "'table' has dtype int.*Freeze it",
  ),
  "no delta": ({"delta": None}, r"delta must be in \(0, 1\), got delta=None"),
  "a delta of one": ({"delta": 1.0}, "got delta=1.0"),
  "a delta that is not a number": ({"delta": float("nan")}, "got delta=nan"),
  "no noise": (
    {"mechanism": toy.mechanism(noise_multiplier=None)},
    "calibrate_noise",
  ),
  "no steps": ({"num_steps": 0}, "num_steps must be >= 1, got num_steps=0"),
  "half a step": ({"num_steps": 1.5}, "must be an integer, got num_steps=1.5"),
  "no checkpoints": ({"keep_checkpoints": 0}, "got keep_checkpoints=0"),
  "negative interval": ({"eval_every": -1}, "eval_every must be >= 1"),
  "no steps in a call": (
    {"performance": jaxdp.PerformanceFlags(steps_per_call=0)},
    "steps_per_call must be >= 1",
  ),
  "no budget": ({"max_epsilon": 0.0}, "max_epsilon must be > 0, got 0.0"),
  "a budget below one step": (
    {"max_epsilon": 0.01},
    "Not one step fits max_epsilon=0.01.*calibrate_noise",
  ),
  "a budget without privacy": (
    {"mechanism": None, "sampler": toy.full_batch(), "max_epsilon": 1.0},
    "max_epsilon needs a mechanism",
  ),
  "no sampler": ({"mechanism": None}, "fit needs a sampler"),
  "a second sampler": (
    {"sampler": toy.poisson()},
    "The mechanism has a sampler.*Leave sampler=None",
  ),
  "a decay above one": ({"ema_decay": 1.5}, r"must be in \[0, 1\), got 1.5"),
  "a reader on the device": (
    {
      "dataset": toy.Reader(),
      "performance": jaxdp.PerformanceFlags(data_on_device=True),
    },
    "needs arrays, got a reader of 48 examples",
  ),
  "an unknown method": (
    {
      "performance": jaxdp.PerformanceFlags(
        method="magic"  # type: ignore[arg-type]
      )
    },
    "got method='magic'",
  ),
}
