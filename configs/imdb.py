r"""IMDB reviews (25,000 texts), an LSTM on frozen random embeddings, epsilon 8.

Network of arXiv:2411.02051, with hashed words instead of a vocabulary: a
vocabulary of the reviews would be a release that no accountant charges.

    JAXDP_DATA_DIR=/path/to/tfds \
      python scripts/train.py --config=configs/imdb.py --workdir=runs/imdb
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    {
      "data": {"name": "imdb_reviews", "data_dir": None, "cache_dir": None},
      "model": {
        "name": "lstm",
        "seed": 0,
        "num_classes": 2,
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
        "name": "adam",
        "learning_rate": 0.002,
        "schedule": "constant",
        "warmup_steps": 0,
      },
      "training": {
        "num_steps": 500,
        "seed": None,
        "ema_decay": 0.99,
        "eval_every": 50,
        "log_every": 10,
        "checkpoint_every": 100,
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
