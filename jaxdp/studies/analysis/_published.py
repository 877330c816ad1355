"""The runs that the authors of arXiv:2411.02051 published, as our table.

Three CSV files, one a set. The batch size they state is nominal: the loader cut
the data into batches and handed their number on, so ``q`` and ``num_steps`` are
those of ``design.with_steps(nominal=True)``, which the recorded noise confirms.
"""

import os
import pathlib

import pandas as pd

from jaxdp.studies._laws import Factor, Sample
from jaxdp.studies.design import with_steps

SETS = ("image.simple", "image.advanced", "text.simple")
CONTEXT = ("dataset", "model", "epsilon")

_NAMES = {
  "dataset_size": "num_examples",
  "model_id": "model",
  "eps_targeted": "epsilon",
  "bs": "batch_size",
  "sigma": "noise_multiplier",
  "test_accuracy": "accuracy",
}


def read_published(folder: str | os.PathLike[str]) -> dict[str, pd.DataFrame]:
  """The sets "image.simple", "image.advanced" and "text.simple".

  Args:
    folder: with ``image_simple.csv`` and so on.

  Returns:
    By set its runs, with ``run``, ``dataset``, ``model``, ``epsilon``,
    ``num_examples``, ``lr``, ``C``, ``batch_size``, ``epochs``, ``q``,
    ``num_steps``, ``noise_multiplier``, ``accuracy``, and the authors' other
    columns.
  """
  tables = {}
  for name in SETS:
    path = pathlib.Path(folder) / f"{name.replace('.', '_')}.csv"
    if not path.is_file():
      raise FileNotFoundError(
        f"{path} is not there. The authors publish it with arXiv:2411.02051."
      )
    table = pd.read_csv(path).rename(columns=_NAMES)
    table.insert(0, "run", range(len(table)))
    tables[name] = with_steps(table, nominal=True)
  return tables


def published_factors(runs: pd.DataFrame) -> list[Factor | Sample]:
  """The law that the published runs were drawn from; of q as it came out."""
  return [
    Factor("lr", 1e-5, 10.0),
    Factor("C", 1e-5, 10.0),
    Factor("epochs", 25, 500, step=5),
    Sample("q", runs["q"].to_numpy()),
  ]
