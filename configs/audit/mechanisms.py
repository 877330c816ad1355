"""Mechanisms against a canary in gradient space, by name.

    python scripts/audit.py --config=configs/audit/mechanisms.py:flat

Each is calibrated to epsilon 4 at delta 1e-5, and audited by 20,000 trials on
either side; some 10 seconds on one CPU core. The figures are in docs/audits.md.
"""

from typing import Any

import ml_collections

_FULL_BATCH = {"name": "FullBatch", "num_examples": 3}
_FLAT = {"name": "flat", "l2_clip_norm": 1.0}
_POISSON = {"name": "Poisson", "num_examples": 8, "expected_batch_size": 4.0}


def _poisson(max_batch_size: int | None = None, **values: Any) -> dict:
  return {**_POISSON, "max_batch_size": max_batch_size, **values}


# What differs from flat clipping of a full batch, in one step.
MECHANISMS: dict[str, dict[str, Any]] = {
  "flat": {},
  "normalized": {"rule": {"name": "normalized", "l2_clip_norm": 1.0}},
  "per_layer": {
    "rule": {
      "name": "per_layer", "l2_clip_norm": 1.0, "noise_allocation": "weighted",
    }
  },
  "groupwise": {
    "rule": {"name": "groupwise", "l2_clip_norms": {"head": 2.0, "body": 0.5}}
  },
  "automatic": {"rule": {"name": "automatic", "l2_clip_norm": 1.0}},
  "psac": {"rule": {"name": "psac", "l2_clip_norm": 1.0}},
  "psasc": {"rule": {"name": "psasc", "l2_clip_norm": 1.0, "r": 0.1, "s": 0.5}},
  "adaptive_layerwise": {
    "rule": {"name": "adaptive_layerwise", "l2_clip_norm": 1.0}
  },
  "preconditioned": {"rule": {"name": "preconditioned", "l2_clip_norm": 1.0}},
  "adaptive_quantile": {
    "rule": {
      "name": "adaptive_quantile", "initial_clip_norm": 1.0,
      "budget_fraction": 0.3,
    },
    "num_steps": 2,
  },
  "scheduled": {
    "rule": {**_FLAT, "schedule": ((0, 1.0), (1, 0.5))},
    "privacy": {"noise_schedule": ((0, 1.0), (1, 2.0))},
    "num_steps": 2,
  },
  "full_batch_zero_out": {
    "privacy": {"neighboring_relation": "REPLACE_SPECIAL"}
  },
  "full_batch_replace_one": {
    "privacy": {"neighboring_relation": "REPLACE_ONE"}
  },
  "views": {"unit": "views"},
  "inner_momentum": {"unit": "window", "num_steps": 2},
  "poisson": {"sampler": _poisson()},
  "poisson_steps": {"sampler": _poisson(), "num_steps": 4},
  "poisson_truncated": {
    "sampler": _poisson(12, num_examples=16, expected_batch_size=8.0)
  },
  "poisson_replace_one": {
    "sampler": _poisson(),
    "privacy": {"neighboring_relation": "REPLACE_ONE"},
  },
  "poisson_adaptive_quantile": {
    "rule": {
      "name": "adaptive_quantile", "initial_clip_norm": 1.0,
      "budget_fraction": 0.3,
    },
    "sampler": _poisson(),
  },
  "fixed_size": {
    "sampler": {"name": "FixedSize", "num_examples": 8, "batch_size": 4}
  },
  "shuffled": {
    "sampler": {"name": "Shuffled", "num_examples": 4, "batch_size": 2},
    "num_steps": 2,
  },
  "shuffled_replace_one": {
    "sampler": {"name": "Shuffled", "num_examples": 4, "batch_size": 2},
    "privacy": {"neighboring_relation": "REPLACE_ONE"},
    "num_steps": 2,
  },
  "buckets": {
    "sampler": {
      "name": "Buckets", "num_examples": 32, "expected_batch_size": 16.0,
      "num_buckets": 2,
    }
  },
}  # fmt: skip


def get_config(name: str = "flat") -> ml_collections.ConfigDict:
  if name not in MECHANISMS:
    raise ValueError(f"mechanism must be one of {[*MECHANISMS]}, got {name!r}.")
  values = dict(MECHANISMS[name])
  privacy = {
    "target_epsilon": 4.0,
    "noise_multiplier": None,
    "delta": 1e-5,
    "max_epsilon": None,
    "neighboring_relation": None,
    **values.get("privacy", {}),
  }
  return ml_collections.ConfigDict(
    {
      "name": name,
      "rule": values.get("rule", _FLAT),
      "sampler": values.get("sampler", _FULL_BATCH),
      "privacy": {
        key: ml_collections.FieldReference(value, field_type=object)
        for key, value in privacy.items()
      },
      "unit": values.get("unit", "example"),
      "audit": {
        "trials": 20_000,
        "num_steps": values.get("num_steps", 1),
        "confidence": 0.95,
        "seed": list(MECHANISMS).index(name),  # no two share their noise
      },
    }
  )
