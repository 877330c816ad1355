"""What a survey consists of: a base experiment, and runs at points of a design.

A comparison (``Design``) asks which arm is better; a survey asks which factors
matter. Its runs are a table (``jaxdp.studies.design``), whose columns change
the base: ``lr``, ``C``, ``batch_size`` or ``q``, ``epochs``, ``dataset``,
``model``, ``epsilon``, ``num_examples``, or a dotted path of the config, such
as ``rule.r``.
"""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from jaxdp.experiment import ExperimentConfig
from jaxdp.studies import design

_PATHS = {
  "dataset": "data.name",
  "num_examples": "data.num_examples",
  "model": "model.name",
  "rule": "rule.name",
  "epsilon": "privacy.target_epsilon",
  "lr": "optimizer.learning_rate",
  "C": "rule.l2_clip_norm",
  "num_steps": "training.num_steps",
  "noise_multiplier": "privacy.noise_multiplier",
}
_LAWS = ("random", "latin_hypercube", "sobol", "factorial", "published")


@dataclasses.dataclass(frozen=True)
class Survey:
  """A survey as its config states it.

  Attributes:
    base: an experiment's config, see ``jaxdp.experiment.ExperimentConfig``.
    law: ``name``, a function of ``jaxdp.studies.design``, and its arguments but
      the cells; ``factors`` as dicts, of ``Factor`` or of ``Choice``.
    cells: changes of the base, by column; all factors are drawn anew in each.
      Each states ``num_examples``, how many rows train.
    nominal: how a batch size is realised, see ``design.with_steps``.
    repeats: ``num_points`` and ``num_seeds`` of ``design.repeat_seeds``, or
      empty.
    options: for the report: ``title``, ``texts``.
  """

  base: Mapping[str, Any]
  law: Mapping[str, Any]
  cells: Sequence[Mapping[str, Any]]
  nominal: bool = False
  repeats: Mapping[str, int] = dataclasses.field(default_factory=dict)
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    base = self.base
    if (name := base["sampler"]["name"]) != "Poisson":
      raise ValueError(
        f"base.sampler.name is {name!r}; the batches of a survey are drawn by "
        "Poisson sampling, so that runs of all batch sizes share a program."
      )
    if (schedule := base["optimizer"]["schedule"]) != "constant":
      raise ValueError(
        f"base.optimizer.schedule is {schedule!r}, but runs of all lengths "
        "share a program. Use 'constant'."
      )
    options = ("inner_momentum", "ema_decay", "public_every")
    if given := [o for o in options if base["training"].get(o) is not None]:
      raise ValueError(
        f"A survey has no {given} (base.training). Compare them as arms, see "
        "configs/studies/psasc.py."
      )

  @classmethod
  def from_config_dict(cls, config: Any) -> "Survey":
    """Reads an ``ml_collections.ConfigDict`` (or a plain nested dict)."""
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    try:
      return cls(**values)
    except TypeError as error:
      raise ValueError(f"This is no config of a survey: {error}") from error

  def factors(self) -> list[design.Factor | design.Choice]:
    """The factors of the law; the published law has its own."""
    return [
      design.Choice(**factor) if "values" in factor else design.Factor(**factor)
      for factor in self.law.get("factors", ())
    ]

  def table(self) -> pd.DataFrame:
    """The runs, one a row, with ``q`` and ``num_steps``."""
    law = dict(self.law)
    name = law.pop("name")
    if name not in _LAWS:
      raise ValueError(f"law.name must be one of {_LAWS}, got {name!r}.")
    if any("num_examples" not in cell for cell in self.cells):
      raise ValueError("Every cell needs num_examples, the rows that train.")
    seed = law.get("seed", 0)
    if name == "published":
      table = design.published(cells=self.cells, nominal=self.nominal, **law)
    else:
      law["factors"] = self.factors()
      table = getattr(design, name)(cells=self.cells, **law)
      table = self._with_steps(table)
    if self.repeats:
      table = design.repeat_seeds(table, **self.repeats, seed=seed)
    return table

  def _with_steps(self, table: pd.DataFrame) -> pd.DataFrame:
    if "batch_size" in table:
      return design.with_steps(table, nominal=self.nominal)
    if "q" in table and "num_steps" not in table:
      steps = np.maximum(np.rint(table["epochs"] / table["q"]), 1)
      table = table.assign(num_steps=steps.astype(int))
    if missing := {"q", "num_steps"} - {*table}:
      raise ValueError(
        f"The design lacks {sorted(missing)}: give factors batch_size and "
        "epochs, q and epochs, or q and num_steps."
      )
    return table.assign(batch_size=table["q"] * table["num_examples"])

  def config(self, row: Mapping[str, Any]) -> ExperimentConfig:
    """The experiment of a run, a row of the table."""
    values = copy.deepcopy(dict(self.base))
    changes = {
      _PATHS.get(column, column): _plain(value) for column, value in row.items()
    }
    changes["sampler.expected_batch_size"] = float(
      row["q"] * row["num_examples"]
    )
    changes["model.seed"] = changes["training.seed"] = int(row["seed"])
    # The one that a run states takes the place of what the base states.
    if "noise_multiplier" in row:
      changes["privacy.target_epsilon"] = None
    elif "epsilon" in row:
      changes["privacy.noise_multiplier"] = None
    for path, value in changes.items():
      section, _, name = path.partition(".")
      if name:
        values[section] = {**values[section], name: value}
    return ExperimentConfig.from_config_dict(values)


def _plain(value: Any) -> Any:
  return value.item() if isinstance(value, np.generic) else value
