"""Handwritten digits (1,437 real images of 8 x 8) with a tanh MLP.

The data comes with scikit-learn, so this runs anywhere, with no download:

    python scripts/train.py --config=configs/digits.py --workdir=runs/digits
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    {
      "data": {"name": "digits", "data_dir": None, "cache_dir": None},
      "model": {
        "name": "mlp",
        "seed": 0,
        "num_classes": 10,
        "hidden": (128,),
        "activation": "tanh",
      },
      "rule": {"name": "flat", "l2_clip_norm": 0.3},
      "sampler": {
        "name": "Poisson",
        "expected_batch_size": 256,
        "max_batch_size": "auto",
      },
      "privacy": {
        "target_epsilon": 3.0,
        "noise_multiplier": None,
        "delta": 1e-4,
        "max_epsilon": 3.0,
        "neighboring_relation": None,
      },
      "optimizer": {
        "name": "sgd",
        "learning_rate": 0.4,
        "schedule": "constant",
        "warmup_steps": 0,
        "momentum": 0.9,
      },
      "training": {
        "num_steps": 200,
        "seed": None,
        "ema_decay": 0.95,
        "eval_every": 20,
        "log_every": 10,
        "checkpoint_every": 100,
        "keep_checkpoints": 2,
        "diagnostics": False,
      },
      "performance": {
        "method": "auto",
        "microbatch_size": None,
        "steps_per_call": "auto",
        "data_on_device": "auto",
      },
    }
  )
