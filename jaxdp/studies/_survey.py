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

from jaxdp import _types
from jaxdp.experiment import ExperimentConfig, check_sections, set_value
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
_COLUMNS = (*_PATHS, "batch_size", "q", "epochs", "run", "point", "seed")
_REPEATS = ("num_points", "num_seeds")
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
    check_sections("base", base)
    for section, name in (("sampler", "name"), ("optimizer", "schedule")):
      if name not in base[section]:
        raise ValueError(f"base.{section} lacks {name}.")
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
    _types.check_call("the config of a survey", cls, values)
    return cls(**values)

  def factors(self) -> list[design.Factor | design.Choice]:
    """The factors of the law; the published law has its own."""
    factors = self.law.get("factors", ())
    _types.check("law.factors", factors, Sequence[Mapping])
    return [design.factor(dict(factor)) for factor in factors]

  def table(self) -> pd.DataFrame:
    """The runs, one a row, with ``q`` and ``num_steps``."""
    law = dict(self.law)
    name = law.pop("name", None)
    if name not in _LAWS:
      raise ValueError(f"law.name must be one of {_LAWS}, got {name!r}.")
    self._check_cells()
    given = {**law, "cells": self.cells}
    if name != "published":
      given["factors"] = self.factors()
    _types.check_call(f"law ({name})", getattr(design, name), given)
    seed = law.get("seed", 0)
    if not 0 <= seed < 2**63:
      raise ValueError(f"law.seed must be >= 0 and < 2**63, got {seed}.")
    if name == "published":
      table = design.published(cells=self.cells, nominal=self.nominal, **law)
    else:
      law["factors"] = self.factors()
      table = getattr(design, name)(cells=self.cells, **law)
      table = self._with_steps(table)
    if unknown := [c for c in table if "." not in c and c not in _COLUMNS]:
      raise ValueError(
        f"No config has {unknown[0]!r}; "
        f"{_types.did_you_mean(unknown[0], _COLUMNS)}, or a dotted path."
      )
    if self.repeats:
      _types.check_names("repeats", self.repeats, _REPEATS, _REPEATS)
      table = design.repeat_seeds(table, **self.repeats, seed=seed)
    return table

  def _check_cells(self) -> None:
    if not self.cells:
      raise ValueError("A survey needs cells, each with its num_examples.")
    for cell in self.cells:
      if "num_examples" not in cell:
        raise ValueError("Every cell needs num_examples, the rows that train.")
      _types.check("num_examples of a cell", cell["num_examples"], int)

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
      if "." in path:
        set_value(values, path, value)
    return ExperimentConfig.from_config_dict(values)


def _plain(value: Any) -> Any:
  return value.item() if isinstance(value, np.generic) else value
