r"""CIFAR-10 (50,000 images) with DP-CNN (550,570 parameters) at epsilon 8.

Network of arXiv:2411.02051; large batches after De et al. 2022,
arXiv:2204.13650.

    JAXDP_DATA_DIR=/path/to/tfds \
      python scripts/train.py --config=configs/cifar10.py --workdir=runs/cifar10
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    {
      "data": {"name": "cifar10", "data_dir": None, "cache_dir": None},
      "model": {
        "name": "dp_cnn",
        "seed": 0,
        "num_classes": 10,
      },
      "rule": {"name": "flat", "l2_clip_norm": 1.0},
      "sampler": {
        "name": "Poisson",
        "expected_batch_size": 1024,
        "max_batch_size": "auto",
      },
      "privacy": {
        "target_epsilon": 8.0,
        "noise_multiplier": None,
        "delta": 1e-5,
        "max_epsilon": 8.0,
        "neighboring_relation": None,
      },
      "optimizer": {
        "name": "sgd",
        "learning_rate": 0.2,
        "schedule": "constant",
        "warmup_steps": 0,
        "momentum": 0.9,
      },
      "training": {
        "num_steps": 2000,
        "seed": None,
        "ema_decay": 0.99,
        "eval_every": 200,
        "log_every": 50,
        "checkpoint_every": 500,
        "keep_checkpoints": 2,
        "diagnostics": False,
      },
      "performance": {
        "method": "auto",
        "microbatch_size": "auto",
        "steps_per_call": "auto",
        "data_on_device": "auto",
      },
    }
  )
