"""The plan of a survey: its design, and the noise that meets each target."""

import functools
import multiprocessing
import os
import pathlib
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from jaxdp.experiment import ExperimentConfig
from jaxdp.mechanism import Mechanism
from jaxdp.studies import _noise, design
from jaxdp.studies._survey import Survey

_MANY = 16  # searches for noise, which other processes are started for


def plan(
  survey: Survey, workdir: pathlib.Path, *, progress: bool = True
) -> pd.DataFrame:
  """The table of the survey with every run's noise; both files are written.

  Noise that meets a target is searched for in several processes.
  """
  table = survey.table()
  design.save(table, workdir / "design.parquet")
  path = workdir / "plan.parquet"
  if path.exists():
    return design.load(path)
  targets = [_target(survey.config(row)) for row in as_rows(table)]
  unique = list(dict.fromkeys(targets))
  noise = dict(zip(unique, _searched(unique, progress), strict=True))
  table = table.assign(noise_multiplier=[noise[t] for t in targets])
  design.save(table, path)
  return table


def as_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
  """The runs of a table, in Python numbers."""
  return [
    {
      str(k): v.item() if isinstance(v, np.generic) else v
      for k, v in row.items()
    }
    for row in table.to_dict("records")
  ]


_Target = tuple[Mechanism, float | None, float, int]


def _target(config: ExperimentConfig) -> _Target:
  """What the noise of a run depends on; with noise given, no epsilon."""
  mechanism = _noise.without_rule(config, config.data["num_examples"])
  privacy = config.privacy
  if (sigma := privacy["noise_multiplier"]) is not None:
    mechanism = mechanism.replace(noise_multiplier=sigma)
  return (
    mechanism,
    privacy["target_epsilon"],
    privacy["delta"],
    config.training["num_steps"],
  )


def _search(target: _Target) -> float:
  mechanism, epsilon, delta, num_steps = target
  if epsilon is None:
    return mechanism.sigma
  return _noise.calibrated(mechanism, epsilon, delta, num_steps)


def _searched(targets: Sequence[_Target], progress: bool) -> list[float]:
  """The noise of each, by several processes if they are many."""
  bar = functools.partial(
    tqdm, total=len(targets), desc="noise", disable=not progress
  )
  if len(targets) < _MANY:
    return list(bar(map(_search, targets)))
  context = multiprocessing.get_context("spawn")
  with ProcessPoolExecutor(
    os.cpu_count(), mp_context=context, initializer=_end_with_parent
  ) as pool:
    return list(bar(pool.map(_search, targets)))


def _end_with_parent() -> None:
  """Processes of a pool outlive a parent that was killed, unless they look."""
  parent = multiprocessing.parent_process()
  assert parent is not None

  def look() -> None:
    parent.join()
    os._exit(1)

  threading.Thread(target=look, daemon=True).start()
