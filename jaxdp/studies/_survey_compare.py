"""Surveys beside each other: the same numbers under other laws.

Surveys are independent runs, so that a difference of two numbers has an
interval made from theirs (``_summary.difference``).
"""

import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from jaxdp.report import Section
from jaxdp.studies import _survey_words as words
from jaxdp.studies._summary import Interval, difference
from jaxdp.studies._survey_findings import Findings
from jaxdp.studies._survey_style import symbol

_FEWEST = 0.05  # interactions are shown from this share on, in some survey


def numbers(sets: Mapping[str, Findings]) -> pd.DataFrame:
  """All that the conclusions rest on: ``set, number, value, low, high``.

  Shares are of the response, see ``analysis.fanova``.
  """
  rows: list[list[object]] = []
  for name, found in sets.items():
    rows += [
      [name, f"share of {row.factors}", row.share, row.low, row.high]
      for row in found.response.table.itertuples()
    ]
    if len(found.verdicts):
      told = found.verdicts[found.verdicts["number"] != ""]
      told = told[["number", "value", "low", "high"]]
      rows += [[name, *row] for row in told.to_numpy().tolist()]
    if (noise := found.noise) is not None:
      share = noise.share, noise.low, noise.high
      rows.append([name, "share of the seed", *share])
  return pd.DataFrame(rows, columns=["set", "number", "value", "low", "high"])


def compare_surveys(folders: Sequence[str | os.PathLike[str]]) -> pd.DataFrame:
  """The numbers of several surveys, and by how much they differ from the first.

  Args:
    folders: of ``report_survey``, each with its ``numbers.csv``.

  Returns:
    Rows of ``number``, ``survey`` (the folder's name, and the set if it has
    several), ``value``, ``low``, ``high``; and ``difference``,
    ``difference_low``, ``difference_high``, to the first survey, with a 95 %
    interval for one comparison.
  """
  tables: dict[str, pd.DataFrame] = {}
  for folder in map(pathlib.Path, folders):
    path = folder / "numbers.csv"
    if not path.is_file():
      raise FileNotFoundError(
        f"{path} is not there: make that report first, with scripts/report.py."
      )
    table = pd.read_csv(path)
    several = table["set"].nunique() > 1
    for name, part in table.groupby("set", sort=False):
      survey = folder.resolve().name + f", {name}" * several
      tables[survey] = part.set_index("number")[["value", "low", "high"]]
  first = next(iter(tables.values()))
  rows = []
  for survey, table in tables.items():
    for number, *values in table.itertuples():
      mine = Interval(values[0], values[1], values[2], 0)
      change: Sequence[float] = [np.nan] * 3
      if number in first.index:
        value, low, high = first.loc[number].to_numpy(float)
        theirs = Interval(value, low, high, 0)
        change = difference(mine, theirs)[:3]
      rows.append([number, survey, *values, *change])
  changes = ["difference", "difference_low", "difference_high"]
  columns = ["number", "survey", "value", "low", "high", *changes]
  return pd.DataFrame(rows, columns=columns)


def section(table: pd.DataFrame) -> Section:
  """A column a survey; what differs from the first is marked."""
  surveys = list(dict.fromkeys(table.survey))
  top = table.groupby("number", sort=False).value.max()
  rows = [["", *surveys]]
  for number, value in top.items():
    name = str(number)
    if name.count("*") and value < _FEWEST and name != "share of lr*C":
      continue
    found = table[table.number == name].set_index("survey")
    cells = [_cell(found, survey) for survey in surveys]
    rows.append([symbol(name), *cells])
  return Section(
    title="Beside other surveys",
    texts=[
      "Each law asks a question of its own: shares are of the variance under "
      f"that law. ▲ more and ▼ less than in {surveys[0]}, by an interval of "
      "the difference that leaves out 0; these are many comparisons, so about "
      "one in 20 that are equal would be marked. Interactions with at least "
      f"{_FEWEST:.0%} in one of them, and lr × C."
    ],
    table=words.minus(rows),
  )


def _cell(found: pd.DataFrame, survey: str) -> str:
  if survey not in found.index:
    return ""
  row = found.loc[survey]
  sign = "▲ " if row.difference_low > 0 else ""
  sign = "▼ " if row.difference_high < 0 else sign
  digits = 3 if str(found.number.iloc[0]).startswith("C beyond") else 2
  text = words.interval((row.value, row.low, row.high), digits)
  return words.whole(sign + text)
