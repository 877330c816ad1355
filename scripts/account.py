r"""What a plan costs, or the noise, steps or batch size for a target epsilon.

Of these three, one is left out when there is a target:

    account.py --num_examples=60000 --batch_size=256 --noise_multiplier=1.1 \
        --num_steps=14062 --delta=1e-5
    account.py --num_examples=60000 ... --target_epsilon=3
    account.py --config=configs/mnist.py --num_examples=60000
"""

import sys

from absl import app, flags
from ml_collections import config_flags

from jaxdp import NeighboringRelation, budget, experiment

_CONFIG = config_flags.DEFINE_config_file("config", None, lock_config=True)
_EXAMPLES = flags.DEFINE_integer("num_examples", None, "Rows of the data.")
_BATCH = flags.DEFINE_float("batch_size", None, "Expected batch size.")
_NOISE = flags.DEFINE_float("noise_multiplier", None, "Noise / sensitivity.")
_STEPS = flags.DEFINE_integer("num_steps", None, "Steps of training.")
_DELTA = flags.DEFINE_float("delta", None, "Delta of the claim.")
_TARGET = flags.DEFINE_float("target_epsilon", None, "Epsilon to meet.")
_SAMPLER = flags.DEFINE_enum("sampler", "Poisson", budget.SAMPLERS, "Batches.")
_RELATION = flags.DEFINE_enum(
  "relation", None, [r.name for r in NeighboringRelation], "Neighbours."
)
_JSON = flags.DEFINE_bool("json", False, "Print JSON instead of a table.")


def plan() -> budget.Budget:
  if _CONFIG.value is not None:
    return experiment.plan(_CONFIG.value, _EXAMPLES.value)
  if _EXAMPLES.value is None or _DELTA.value is None:
    raise ValueError("give --num_examples and --delta, or a --config.")
  return budget.plan(
    num_examples=_EXAMPLES.value,
    delta=_DELTA.value,
    batch_size=_BATCH.value,
    noise_multiplier=_NOISE.value,
    num_steps=_STEPS.value,
    target_epsilon=_TARGET.value,
    sampler=str(_SAMPLER.value),
    neighboring_relation=(
      NeighboringRelation[_RELATION.value] if _RELATION.value else None
    ),
  )


def main(_: list[str]) -> None:
  try:
    result = plan()
  except ValueError as error:
    sys.exit(f"error: {error}")
  print(result.to_json() if _JSON.value else result)


if __name__ == "__main__":
  app.run(main)
