"""Batch clipping and adaptive layerwise clipping (arXiv:2307.11939).

    python scripts/study.py --config=configs/studies/batch_clipping.py:digits \
      --workdir=runs/batch_clipping_digits

digits: an MLP, which has no BatchNorm; minutes on two CPU cores. cifar10 (with
JAXDP_DATA_DIR set): ResNet-18, with BatchNorm in buckets and GroupNorm without;
about 30 minutes of one H200. All local devices share the runs; --minutes makes
instalments.
"""

from typing import Any

import ml_collections

# By data set: model, rows that train, delta, expected batch size, records a
# bucket, steps, public and validation rows.
_MLP: dict[str, Any] = {"name": "mlp", "hidden": (64, 64, 64)}
_TASKS: dict[str, tuple] = {
  "digits": (_MLP, 800, 1e-4, 256, 8, 60, 100, 500),
  "cifar10": ({"name": "resnet18"}, 40_000, 1e-5, 1024, 16, 200, 512, 5000),
}
# sigma of the published runs, as noise over sensitivity.
_PUBLISHED_NOISE = 0.01875

_RULES = {
  "flat": {"name": "flat", "l2_clip_norm": 1.0},
  "per layer": {"name": "per_layer", "l2_clip_norm": 1.0},
  "ALC": {"name": "adaptive_layerwise", "l2_clip_norm": 1.0},
  "ALC, 2 groups": {
    "name": "adaptive_layerwise",
    "l2_clip_norm": 1.0,
    "num_clusters": 2,
  },
  "preconditioned": {"name": "preconditioned", "l2_clip_norm": 1.0},
}


def get_config(name: str = "digits") -> ml_collections.ConfigDict:
  if name not in _TASKS:
    raise ValueError(f"Give one of {', '.join(_TASKS)}, got {name!r}.")
  (
    model, num_examples, delta, batch_size, bucket, num_steps, public, held_out,
  ) = _TASKS[name]  # fmt: skip
  base = {
    "data": {
      "name": name,
      "data_dir": None,
      "cache_dir": None,
      "num_examples": num_examples,
      "public_examples": public,
    },
    "model": {**model, "seed": 0, "num_classes": 10},
    "rule": _RULES["flat"],
    "sampler": {
      "name": "Poisson",
      "expected_batch_size": batch_size,
      "max_batch_size": "auto",
    },
    "privacy": {
      "target_epsilon": 8.0,
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
      "momentum": 0.9,
    },
    "training": {"num_steps": num_steps, "seed": 0, "public_every": 10},
    "performance": {"method": "factored"},
  }
  config = ml_collections.ConfigDict(convert_dict=False)
  config.base = ml_collections.ConfigDict(base)
  config.settings = {
    "ε = 8": {},
    "σ as published": {
      "privacy.target_epsilon": None,
      "privacy.noise_multiplier": _PUBLISHED_NOISE,
    },
  }
  deep = model["name"] == "resnet18"
  alone: dict[str, Any] = {"model.norm": "group"} if deep else {}
  together: dict[str, Any] = {
    "sampler": {
      "name": "Buckets",
      "expected_batch_size": batch_size,
      "num_buckets": batch_size // bucket,
    },
    **({"model.norm": "batch"} if deep else {}),
  }
  norms = ("IC + GroupNorm", "BC + BatchNorm") if deep else ("IC", "BC")
  config.arms = {
    f"{norm}, {rule}": {"rule": _RULES[rule], **way}
    for norm, way in zip(norms, (alone, together), strict=True)
    for rule in _RULES
  }
  config.grids = {}
  config.rates = (0.25, 0.5, 1.0, 2.0)
  config.tuning_seeds = (100, 101)
  config.seeds = tuple(range(1, 6 if deep else 7))
  config.num_validation = held_out
  config.options = {
    "title": "Batch clipping and adaptive layerwise clipping",
    "reference": f"{norms[0]}, flat",
    "texts": (
      f"Individual clipping (IC) bounds every example; batch clipping (BC) "
      f"bounds the mean of a bucket of about {bucket} examples, and one "
      "example may turn its bucket around: the sensitivity is twice the "
      "bound, for a sum over fewer units. In exchange a bucket may use "
      "statistics of its own, as BatchNorm does.",
      "Radii by layer come from public examples, which do not train. All arms "
      "of a setting have the same noise multiplier, and so the same ε. The "
      "published noise is shown for what it is.",
    ),
  }
  return config
