"""Which hyperparameters of DP-SGD matter (arXiv:2411.02051), on digits.

    python scripts/study.py --config=configs/studies/rr_digits.py:published \
      --workdir=runs/rr_digits_published

Flat clipping and plain SGD at epsilon 3 and 7.5, 200 runs each:

- published: lr and C uniform on a linear scale, batch sizes as a loader
  realises them, as in the paper;
- log: lr, C and q uniform on a log scale, with the q that is stated;
- normalized: the same with `normalized` clipping, whose lr is lr C.
"""

from typing import Any

import ml_collections

from configs import digits

_LR = {"name": "lr", "low": 0.01, "high": 10.0, "scale": "log"}
_C = {"name": "C", "low": 0.01, "high": 10.0, "scale": "log"}
_Q = {"name": "q", "low": 16 / 1437, "high": 1.0, "scale": "log"}
_EPOCHS = {"name": "epochs", "low": 5, "high": 200, "scale": "log"}


def get_config(law: str = "published") -> ml_collections.ConfigDict:
  base = digits.get_config().to_dict()
  base["rule"] = {
    "name": "normalized" if law == "normalized" else "flat",
    "l2_clip_norm": 1.0,
  }
  base["model"] = {"name": "mlp", "seed": 0, "num_classes": 10}
  base["sampler"] = {"name": "Poisson", "max_batch_size": "auto"}
  base["privacy"] |= {"max_epsilon": None}
  base["optimizer"] |= {"momentum": None}
  base["training"] = {"num_steps": 1, "seed": 0}
  drawn: dict[str, Any] = {"name": "published"}
  if law != "published":
    drawn = {"name": "random", "factors": (_LR, _C, _Q, _EPOCHS)}
  config = ml_collections.ConfigDict(convert_dict=False)
  config.base = ml_collections.ConfigDict(base)
  config.law = {**drawn, "num_runs": 200, "seed": 0}
  config.nominal = law == "published"
  config.cells = tuple(
    {
      "dataset": "digits",
      "model": "mlp",
      "epsilon": epsilon,
      "num_examples": 1437,
    }
    for epsilon in (3.0, 7.5)
  )
  config.repeats = {"num_points": 10, "num_seeds": 5}
  config.options = {"title": "Hyperparameters of DP-SGD, on digits"}
  return config
