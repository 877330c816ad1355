"""The page, figures and tables of a survey, from its runs alone.

A survey samples factors by a design and asks which of them matter. ``write``
makes, in a folder,

| file | columns |
|---|---|
| `importances.csv` | `set, factors, share, low, high`, of the surrogate |
| `importances_response.csv` | the same, of the response |
| `verdicts.csv` | `conjecture, verdict, evidence, confidence`, and `set` |
| `numbers.csv` | `set, number, value, low, high`: what the verdicts rest on |
| `comparison.csv` | see `compare_surveys`; if other surveys are named |
| `figures/*.png`, `figures/*.svg` | |
| `report.html` | self-contained |

``importances.csv`` has the estimand of the published protocol, to compare with
it; verdicts are made from the response's shares, whose intervals cover what
they say (``analysis.fanova``). ``set`` is left out of the verdicts of one set.

Read this, then ``_survey_findings.py`` (the numbers), ``_survey_sections.py``
(the words), ``_survey_figures.py`` and ``_survey_curves.py`` (the figures),
``_survey_rate.py`` (the clip norm) and ``_survey_compare.py`` (other surveys).
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from jaxdp import _types, report
from jaxdp.studies import analysis, design
from jaxdp.studies._laws import Choice, Factor, Sample
from jaxdp.studies._survey import Survey
from jaxdp.studies._survey_compare import compare_surveys, numbers
from jaxdp.studies._survey_compare import section as comparison
from jaxdp.studies._survey_findings import Findings, find
from jaxdp.studies._survey_run import read_runs
from jaxdp.studies._survey_sections import sections

_DIR = "JAXDP_PUBLISHED_DIR"
_UNITLESS = ("normalized",)  # rules that divide what they clip by C
_ORDER = ("lr", "C", "epochs", "q", "batch_size")  # of the factors, if there


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """What a report says of a survey: the ``report`` of its config.

  Without one, factors and context are those of the config's ``law`` and
  ``cells``, and the rest is in its ``options``.

  Attributes:
    title: of the page.
    texts: its first paragraphs: the question, the data, what was tuned on what.
    context: columns whose combinations are cells.
    factors: by name the fields of a ``Factor``, ``{"values": ..}`` of a
      ``Choice``, or ``"sample"`` for the law of the runs.
    published: the folder of published runs in ``JAXDP_PUBLISHED_DIR``; empty
      for ``runs.parquet`` of the workdir.
    sets: which of the published sets; empty for all.
    split: the column whose values are sets; empty for one set.
    num_trees: of each forest.
    num_refits: for intervals of the surrogate's shares.
    num_bootstrap: for all other intervals.
  """

  title: str
  texts: Sequence[str] = ()
  context: Sequence[str] = ()
  factors: Mapping[str, Any]
  published: str = ""
  sets: Sequence[str] = ()
  split: str = ""
  num_trees: int = 128
  num_refits: int = 20
  num_bootstrap: int = 1000

  @classmethod
  def from_config_dict(cls, config: Any) -> "Options":
    """From the ``report`` of a survey's config."""
    names = [field.name for field in dataclasses.fields(cls)]
    if hasattr(config, "to_dict"):
      config = config.to_dict()
    given = config.get("report") or {}
    _types.check("config.report", given, Mapping)
    if not given and config.get("law"):
      Survey.from_config_dict(config)
      given = _of_survey(config)
    if not given or (unknown := sorted(set(given) - set(names))):
      raise ValueError(
        "The config of a survey has a `report` with some of "
        f"{names}; got {sorted(unknown) if given else 'none'}."
      )
    _types.check_call("config.report", cls, given)
    for name, law in given["factors"].items():
      if law != "sample":
        _types.check(f"config.report.factors.{name}", law, Mapping)
        design.factor({**law, "name": name})
    return cls(**given)

  def laws(self, runs: pd.DataFrame) -> list[Factor | Choice | Sample]:
    """The laws of the factors."""
    # A ConfigDict sorts its names, and "lr*C" is not to become "C*lr".
    first = [name for name in _ORDER if name in self.factors]
    names = dict.fromkeys([*first, *self.factors])
    return [_law(name, self.factors[name], runs) for name in names]


def _of_survey(config: Any) -> dict[str, Any]:
  """Of a config that states the law its runs are drawn from."""
  laws = {law["name"]: dict(law) for law in config["law"].get("factors", ())}
  for law in laws.values():
    del law["name"]
  return {
    "factors": laws or _published_law(config["law"]),
    "context": [
      name for name in analysis.CONTEXT if name in config["cells"][0]
    ],
    **dict(config["options"]),
  }


def _published_law(law: Mapping[str, Any]) -> dict[str, Any]:
  """That of ``design.published``."""
  low, high = law.get("epochs", (25, 500))
  return {
    "lr": {"low": 1e-5, "high": 10.0},
    "C": {"low": 1e-5, "high": 10.0},
    "epochs": {"low": low, "high": high, "step": 5},
    "q": "sample",
  }


def _law(name: str, law: Any, runs: pd.DataFrame) -> Factor | Choice | Sample:
  if law == "sample":
    return Sample(name, runs[name].to_numpy())
  if "values" in law:
    return Choice(name, law["values"])
  return Factor(name, **law)


def report_survey(
  config: Any,
  workdir: str | os.PathLike[str],
  command: str = "",
  published_dir: str | os.PathLike[str] | None = None,
  beside: Sequence[str | os.PathLike[str]] = (),
) -> pathlib.Path:
  """Writes the report of a survey into its workdir, from the runs there are.

  Args:
    config: of the survey; its ``report`` is read, see ``Options``.
    workdir: with ``runs.parquet`` and ``design.parquet``, unless the runs are
      published ones.
    command: how to make it again, to be shown.
    published_dir: the folder of published runs; None for the environment's
      ``JAXDP_PUBLISHED_DIR``.
    beside: workdirs of other surveys, with their reports, to compare with.

  Returns:
    The path of the page.
  """
  options = Options.from_config_dict(config)
  workdir = pathlib.Path(workdir)
  planned = None
  if options.published:
    tables = _published(options, published_dir or os.environ.get(_DIR))
  else:
    tables, planned = _own(options, workdir)
    tables = {name: _rated(runs, config) for name, runs in tables.items()}
  laws = {name: options.laws(runs) for name, runs in tables.items()}
  return write(
    tables,
    laws,
    workdir,
    options=options,
    command=command,
    planned=planned,
    beside=beside,
  )


def _published(
  options: Options, folder: str | os.PathLike[str] | None
) -> dict[str, pd.DataFrame]:
  if not folder:
    raise FileNotFoundError(
      f"The runs of {options.published} are published, not made here. Set "
      f"{_DIR}, or --published_dir, to the folder that holds "
      f"{options.published}/."
    )
  tables = analysis.read_published(pathlib.Path(folder) / options.published)
  return {name: tables[name] for name in options.sets or tables}


def _own(
  options: Options, workdir: pathlib.Path
) -> tuple[dict[str, pd.DataFrame], int | None]:
  """The runs by set, and how many the design has."""
  path, design = workdir / "runs.parquet", workdir / "design.parquet"
  runs = pd.read_parquet(path) if path.is_file() else read_runs(workdir)
  planned = len(pd.read_parquet(design)) if design.is_file() else None
  if not options.split:
    return {"all": runs}, planned
  groups = runs.groupby(options.split)
  return {str(name): part for name, part in groups}, planned


def _rated(runs: pd.DataFrame, config: Any) -> pd.DataFrame:
  """With the ``rate``, if lr itself is it: the rule divides by its bound."""
  rule = config["base"]["rule"]["name"] if config.get("base") else ""
  rules = runs["rule"] if "rule" in runs else pd.Series(rule, runs.index)
  itself = rules.isin(_UNITLESS)
  if not itself.any() or not {"lr", "C"} <= set(runs.columns):
    return runs
  return runs.assign(rate=runs["lr"].where(itself, runs["lr"] * runs["C"]))


def write(
  tables: Mapping[str, pd.DataFrame],
  laws: Mapping[str, Sequence[Factor | Choice | Sample]],
  folder: str | os.PathLike[str],
  *,
  options: Options,
  command: str = "",
  planned: int | None = None,
  beside: Sequence[str | os.PathLike[str]] = (),
) -> pathlib.Path:
  """Writes page, figures and tables.

  Args:
    tables: the runs by set, with the columns of ``analysis``.
    laws: of the factors, by set.
    folder: made if it is not there.
    options: texts and numbers of resamplings.
    command: how to make it again, to be shown.
    planned: how many runs the design has, if more than there are.
    beside: folders of other surveys to compare with.

  Returns:
    The path of ``report.html``.
  """
  folder = pathlib.Path(folder)
  (folder / "figures").mkdir(parents=True, exist_ok=True)
  sets = {
    name: find(
      runs,
      laws[name],
      options.context,
      num_trees=options.num_trees,
      num_refits=options.num_refits,
      num_bootstrap=options.num_bootstrap,
    )
    for name, runs in tables.items()
  }
  for file, of in (
    ("importances.csv", "surrogate"),
    ("importances_response.csv", "response"),
  ):
    _shares(sets, of).to_csv(folder / file, index=False)
  verdicts(sets).to_csv(folder / "verdicts.csv", index=False)
  numbers(sets).to_csv(folder / "numbers.csv", index=False)
  others = []
  if beside:
    table = compare_surveys([folder, *beside])
    table.to_csv(folder / "comparison.csv", index=False)
    others.append(comparison(table))
  parts = []
  for name, section in sections(
    sets,
    texts=options.texts,
    planned=planned,
    command=command,
    beside=others,
  ):
    if name:
      path = folder / "figures" / f"{name}.svg"
      section.figure.savefig(path.with_suffix(".png"))
      section.figure.savefig(path, metadata={"Date": None})
      text = path.read_text("utf-8")
      section = dataclasses.replace(section, figure=text[text.index("<svg") :])
    parts.append(section)
  total = sum(len(runs) for runs in tables.values())
  return report.write_study(
    folder / "report.html",
    name=options.title,
    subtitle=f"{total:,} trainings"
    + f" in {len(sets)} sets: {', '.join(sets)}" * (len(sets) > 1),
    sections=parts,
  )


def _shares(sets: Mapping[str, Findings], of: str) -> pd.DataFrame:
  tables = []
  for name, found in sets.items():
    table = getattr(found, of).table.copy()
    table.insert(0, "set", name)
    tables.append(table)
  return pd.concat(tables, ignore_index=True)


def verdicts(sets: Mapping[str, Findings]) -> pd.DataFrame:
  """The verdicts of all sets; the column ``set`` only if they are several."""
  columns = ["conjecture", "verdict", "evidence", "confidence"]
  tables = []
  for name, found in sets.items():
    table = found.verdicts.reindex(columns=columns)
    if len(sets) > 1:
      table.insert(0, "set", name)
    tables.append(table)
  return pd.concat(tables, ignore_index=True)
