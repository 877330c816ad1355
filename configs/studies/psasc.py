"""PSASC study (arXiv:2411.03059): does s do more than a learning rate?

    python scripts/study.py --config=configs/studies/psasc.py:digits \
      --workdir=runs/psasc_digits

digits: minutes on two CPU cores. mnist, cifar10 (with JAXDP_DATA_DIR set):
about 10 and 25 minutes of one H200. All local devices share the runs; --minutes
makes instalments.
"""

import ml_collections

# By data set: model, rows that train, delta, expected batch size, steps.
_TASKS = {
  "digits": ("mlp", 800, 1e-4, 256, 60),
  "mnist": ("tanh_cnn", 55_000, 1e-5, 1024, 300),
  "cifar10": ("dp_cnn", 45_000, 1e-5, 1024, 200),
}
_VALIDATION = {"digits": 600, "mnist": 5000, "cifar10": 5000}

_FLAT = {"name": "flat", "l2_clip_norm": 1.0}
_AUTO_S = {"name": "automatic", "l2_clip_norm": 1.0, "gamma": 0.01}
_PSAC = {"name": "psac", "l2_clip_norm": 1.0, "r": 0.1}
_PSASC = {"name": "psasc", "l2_clip_norm": 1.0, "r": 0.1, "s": 0.5}
# Of the iterates, and then of the updates.
_MOMENTUM = {
  "training.inner_momentum": {"num_iterates": 3, "decay": 0.5},
  "optimizer.momentum": 0.9,
}


def get_config(name: str = "digits") -> ml_collections.ConfigDict:
  if name not in _TASKS:
    raise ValueError(f"Give one of {', '.join(_TASKS)}, got {name!r}.")
  model, num_examples, delta, batch_size, num_steps = _TASKS[name]
  base = {
    "data": {
      "name": name,
      "data_dir": None,
      "cache_dir": None,
      "num_examples": num_examples,
    },
    "model": {"name": model, "seed": 0, "num_classes": 10},
    "rule": _FLAT,
    "sampler": {
      "name": "Poisson",
      "expected_batch_size": batch_size,
      "max_batch_size": "auto",
    },
    "privacy": {
      "target_epsilon": 3.0,
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
    "training": {"num_steps": num_steps, "seed": 0, "inner_momentum": None},
    "performance": {"method": "factored"},
  }
  config = ml_collections.ConfigDict(convert_dict=False)
  config.base = ml_collections.ConfigDict(base)
  config.settings = {"ε = 3": {}}
  config.arms = {
    "flat": {"rule": _FLAT},
    "flat, C = 1": {"rule": _FLAT},
    "AUTO-S": {"rule": _AUTO_S},
    "PSAC": {"rule": _PSAC},
    "PSASC": {"rule": _PSASC},
    "flat + momentum": {"rule": _FLAT, **_MOMENTUM},
    "AUTO-S + momentum": {"rule": _AUTO_S, **_MOMENTUM},
    "PSAC + momentum": {"rule": _PSAC, **_MOMENTUM},
    "PSASC + momentum": {"rule": _PSASC, **_MOMENTUM},
  }
  config.grids = {
    "flat": {"rule.l2_clip_norm": (0.03, 0.1, 0.3, 3.0)},
    "flat + momentum": {"rule.l2_clip_norm": (0.1, 1.0)},
  }
  config.rates = (0.5, 1.0, 2.0, 4.0)
  config.tuning_seeds = (100, 101, 102)
  config.seeds = tuple(range(1, 9)) if name != "cifar10" else (1, 2, 3, 4, 5)
  config.num_validation = _VALIDATION[name]
  config.options = {
    "title": "Clipping rules and the slope of PSASC",
    "reference": "flat",
    "sloped": "PSASC",
    "slopes": (0.1, 0.3, 1.0, 3.0, 10.0),
    "texts": (
      "PSASC weighs a gradient of norm x by C / (s x + r / (x + r)), and its "
      "noise is scaled to the bound C/s. A smaller s looks like a larger "
      "weight, but in units of the noise it is a smaller one; what is left is "
      "a learning rate. (i) Rules at C = 1, rates tuned. (ii) The clip norm of "
      "flat clipping tuned too. (iii) s swept with lr C/s held.",
      "Momentum is inner, over the last 3 iterates with decay 0.5 "
      "(normalised, clipped once), and outer, 0.9.",
    ),
  }
  return config
