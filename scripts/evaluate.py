"""Accuracy and loss of a finished run's released parameters.

    evaluate.py --config=configs/digits.py --workdir=runs/digits

`--workdir` may be the run directory or a copy of its `release/` folder. On the
private data (`--split=train`) the numbers are sensitive: no noise covers them.
"""

import json

from absl import flags
from ml_collections import config_flags

from jaxdp import errors, experiment

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "The run directory.")
_SPLIT = flags.DEFINE_string("split", "test", "Which part of the data set.")
_JSON = flags.DEFINE_bool("json", False, "Print JSON instead of a table.")
flags.mark_flags_as_required(["config", "workdir"])


def main(_: list[str]) -> None:
  split = str(_SPLIT.value)
  result = experiment.evaluate(_CONFIG.value, str(_WORKDIR.value), split)
  if _JSON.value:
    print(json.dumps({"split": split, **result}, indent=2))
    return
  for name, value in result.items():
    print(f"{split + ' ' + name:<22}{value:.4f}")
  if split != "test":
    print("! If this split is private, these numbers are sensitive.")


if __name__ == "__main__":
  errors.run(main)
