"""What the surveys after arXiv:2411.02051 share: their laws, and plain DP-SGD.

A survey runs under one of three laws:

- published: lr and C uniform on a linear scale, batch sizes as a loader
  realises them, as in the paper;
- log: lr, C and q uniform on a log scale, with the q that is stated;
- normalized: the same with `normalized` clipping, whose lr is lr C.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

_TEXTS = {
  "published": "The sampling law is that of arXiv:2411.02051: uniform on a "
  "linear scale, and batch sizes as a loader realises them, q = 1/⌈N/B⌉.",
  "log": "Factors are uniform on a log scale, and q is the one that is stated.",
  "normalized": "Factors are uniform on a log scale. Normalised clipping "
  "divides what it has clipped by C, so that lr is what lr·C is under flat "
  "clipping.",
}


def survey(
  law: str,
  *,
  dataset: str,
  model: Mapping[str, Any],
  num_examples: int,
  delta: float,
  epsilons: Sequence[float],
  epochs: tuple[int, int],
  published_epochs: tuple[int, int],
  num_runs: int,
  num_repeated: int,
  title: str,
) -> ml_collections.ConfigDict:
  """The config of a survey.

  Args:
    law: "published", "log" or "normalized".
    dataset: as ``jaxdp.data`` names it.
    model: its name, and options.
    num_examples: a fixed draw of so many rows trains.
    delta: of all runs.
    epsilons: targets; each a cell.
    epochs: range, on a log scale.
    published_epochs: range in steps of five, for the published law.
    num_runs: of each cell.
    num_repeated: points that run with five seeds instead of one.
    title: of the report.
  """
  laws = ("published", "log", "normalized")
  if law not in laws:
    raise ValueError(f"The law must be one of {', '.join(laws)}, got {law!r}.")
  low, high = epochs
  factors = (
    {"name": "lr", "low": 0.01, "high": 10.0, "scale": "log"},
    {"name": "C", "low": 0.01, "high": 10.0, "scale": "log"},
    {"name": "q", "low": 16 / num_examples, "high": 1.0, "scale": "log"},
    {"name": "epochs", "low": low, "high": high, "scale": "log"},
  )
  drawn: dict[str, Any] = (
    {"name": "published", "epochs": published_epochs}
    if law == "published"
    else {"name": "random", "factors": factors}
  )
  rule = "normalized" if law == "normalized" else "flat"
  config = ml_collections.ConfigDict(convert_dict=False)
  config.base = ml_collections.ConfigDict(
    {
      "data": {"name": dataset, "data_dir": None, "cache_dir": None},
      "model": {"seed": 0, **model},
      "rule": {"name": rule, "l2_clip_norm": 1.0},
      "sampler": {"name": "Poisson", "max_batch_size": "auto"},
      "privacy": {
        "target_epsilon": epsilons[0],
        "noise_multiplier": None,
        "delta": delta,
        "max_epsilon": None,
        "neighboring_relation": None,
      },
      "optimizer": {
        "name": "sgd",
        "learning_rate": 1.0,
        "schedule": "constant",
        "warmup_steps": 0,
        "momentum": None,
      },
      "training": {"num_steps": 1, "seed": 0},
      "performance": {"method": "auto"},
    }
  )
  config.law = {**drawn, "num_runs": num_runs, "seed": 0}
  config.nominal = law == "published"
  config.cells = tuple(
    {
      "dataset": dataset,
      "model": model["name"],
      "epsilon": epsilon,
      "num_examples": num_examples,
    }
    for epsilon in epsilons
  )
  config.repeats = {"num_points": num_repeated, "num_seeds": 5}
  config.options = {
    "title": f"{title}: {law} law",
    "texts": (
      "Which of batch size, epochs, learning rate and clip norm matter for the "
      "accuracy of DP-SGD, which interact, and do the field's conjectures "
      f"hold? Plain DP-SGD with Poisson sampling and {rule} clipping, its "
      "noise calibrated to ε. " + _TEXTS[law],
    ),
  }
  return config
