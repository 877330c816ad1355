r"""What a plan costs, or the noise, steps or batch size for a target epsilon.

Of these three, one is left out when there is a target:

    account.py --num_examples=60000 --batch_size=256 --noise_multiplier=1.1 \
        --num_steps=14062 --delta=1e-5
    account.py --num_examples=60000 ... --target_epsilon=3
    account.py --config=configs/mnist.py --num_examples=60000
    account.py ... --selection=poisson --selection_mean=10
"""

from absl import flags
from ml_collections import config_flags

from jaxdp import NeighboringRelation, accounting, budget, errors, experiment

_CONFIG = config_flags.DEFINE_config_file("config", None, lock_config=True)
_EXAMPLES = flags.DEFINE_integer("num_examples", None, "Rows of the data.")
_BATCH = flags.DEFINE_float("batch_size", None, "Expected batch size.")
_CAP = flags.DEFINE_integer("max_batch_size", None, "Cut of Poisson batches.")
_NOISE = flags.DEFINE_float("noise_multiplier", None, "Noise / sensitivity.")
_STEPS = flags.DEFINE_integer("num_steps", None, "Steps of training.")
_DELTA = flags.DEFINE_float("delta", None, "Delta of the claim.")
_TARGET = flags.DEFINE_float("target_epsilon", None, "Epsilon to meet.")
_SAMPLER = flags.DEFINE_enum("sampler", "Poisson", budget.SAMPLERS, "Batches.")
_NAMES, _LAWS = [*NeighboringRelation.__members__], accounting.Selection.SHAPES
_RELATION = flags.DEFINE_enum("relation", None, _NAMES, "Neighbours.")
_SELECTION = flags.DEFINE_enum("selection", None, _LAWS, "Law of their number.")
_MEAN = flags.DEFINE_float("selection_mean", 10.0, "Runs to expect.")
_JSON = flags.DEFINE_bool("json", False, "Print JSON instead of a table.")


def plan() -> budget.Budget:
  law, name = _SELECTION.value, _RELATION.value
  selection = accounting.Selection(_MEAN.value, law) if law else None
  values: list = [_EXAMPLES, _DELTA, _BATCH, _NOISE, _STEPS, _TARGET, _SAMPLER]
  if _CONFIG.value:
    given = [v.name for v in [*values[1:], _CAP, _RELATION] if v.present]
    if given:
      raise ValueError(f"The --config says what {given} are; leave them out.")
    return experiment.plan(_CONFIG.value, _EXAMPLES.value, selection)
  if None in (_EXAMPLES.value, _DELTA.value):
    raise ValueError("Give --num_examples and --delta, or a --config.")
  return budget.plan(
    **{value.name: value.value for value in values},
    max_batch_size=_CAP.value if _CAP.present else "auto",
    neighboring_relation=NeighboringRelation[name] if name else None,
    selection=selection,
  )


def main(_: list[str]) -> None:
  result = plan()
  print(result.to_json() if _JSON.value else result)


if __name__ == "__main__":
  errors.run(main)
