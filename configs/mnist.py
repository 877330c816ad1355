r"""MNIST (60,000 images) with the 26,010-parameter tanh CNN of DP tutorials.

Abadi et al. 2016, arXiv:1607.00133; the network and plan of the tutorials of
TensorFlow Privacy and Opacus (60 epochs of batch 256 at noise 1.1), with tanh
after Papernot et al. 2021, arXiv:2007.14191.

    JAXDP_DATA_DIR=/path/to/tfds \
      python scripts/train.py --config=configs/mnist.py --workdir=runs/mnist
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    {
      "data": {"name": "mnist", "data_dir": None, "cache_dir": None},
      "model": {
        "name": "tanh_cnn",
        "seed": 0,
        "num_classes": 10,
      },
      "rule": {"name": "flat", "l2_clip_norm": 1.0},
      "sampler": {
        "name": "Poisson",
        "expected_batch_size": 256,
        "max_batch_size": "auto",
      },
      "privacy": {
        "target_epsilon": None,
        "noise_multiplier": 1.1,
        "delta": 1e-5,
        "max_epsilon": 2.4,
        "neighboring_relation": None,
      },
      "optimizer": {
        "name": "sgd",
        "learning_rate": 0.25,
        "schedule": "constant",
        "warmup_steps": 0,
        "momentum": None,
      },
      "training": {
        "num_steps": 14062,
        "seed": None,
        "ema_decay": 0.999,
        "eval_every": 1000,
        "log_every": 250,
        "checkpoint_every": 2000,
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
