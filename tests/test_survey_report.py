"""The report of a survey, on made-up runs whose answers are known."""

import html
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree

import numpy as np
import pandas as pd
import pytest

from jaxdp import studies
from jaxdp.studies import (
  _survey_compare,
  _survey_findings,
  _survey_report,
  design,
)
from jaxdp.studies._survey_report import Options
from tests.test_experiment import small

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIGURES = (
  "coverage",
  "importances",
  "interactions",
  "ridge",
  "ranks",
  "rate",
  "ice",
  "ale",
  "ale_interactions",
)
VERDICTS = ["conjecture", "verdict", "evidence", "confidence"]
REPORT = {
  "title": "Made <up> & small",
  "texts": ("lr < C & so on.",),
  "context": ("dataset", "model"),
  "factors": {
    "lr": {"low": 0.01, "high": 10.0, "scale": "log"},
    "C": {"low": 0.01, "high": 10.0, "scale": "log"},
    "epochs": {"low": 5, "high": 50, "step": 5},
    "q": "sample",
  },
  "num_trees": 12,
  "num_refits": 3,
  "num_bootstrap": 25,
}


def made_up(num_runs=120, seeds=True):
  """Accuracy is a ridge of lr C = 1; epochs and q do nothing."""
  cells = [
    {"set": s, "dataset": d, "model": "a<b>", "num_examples": 1000}
    for s, d in (("one", "x"), ("one", "y"), ("two", "z"))
  ]
  laws = [
    design.Factor("lr", 0.01, 10.0, scale="log"),
    design.Factor("C", 0.01, 10.0, scale="log"),
    design.Factor("batch_size", 16, 1000, step=16),
    design.Factor("epochs", 5, 50, step=5),
  ]
  runs = design.random(laws, num_runs, cells=cells, seed=3)
  if seeds:
    runs = design.repeat_seeds(runs, 20, 3)
  runs = design.with_steps(runs, nominal=True)
  noise = np.random.default_rng(0).normal(0, 0.02, len(runs))
  runs["accuracy"] = np.exp(-(np.log(runs.lr * runs.C) ** 2) / 8) + noise
  return runs.assign(epsilon=3.0, delta=2e-3)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """A workdir with a report of two sets, and its config."""
  folder = tmp_path_factory.mktemp("survey")
  runs = made_up()
  runs.to_parquet(folder / "design.parquet")
  runs[5:].to_parquet(folder / "runs.parquet")
  config = {"report": {**REPORT, "split": "set"}}
  page = studies.report_survey(config, folder, "python x --name='<a>'")
  assert page == folder / "report.html"
  return folder


def text_of(page):
  """What a reader reads."""
  page = re.sub(r"<style>.*?</style>|<svg.*?</svg>", "", page, flags=re.S)
  words = html.unescape(re.sub(r"<[^>]+>", " ", page))
  return re.sub(r"\s+", " ", words).replace("−", "-")


def test_tables_have_their_columns(written):
  for name in ("importances.csv", "importances_response.csv"):
    table = pd.read_csv(written / name)
    assert list(table) == ["set", "factors", "share", "low", "high"]
    assert set(table.set) == {"one", "two"}
    one = table[table.set == "one"].set_index("factors")
    assert {"lr", "C", "lr*C", "epochs*q", "lr*context"} <= set(one.index)
    assert (table.low <= table.share).all()
    assert (table.share <= table.high).all()
    assert one.share["lr*C"] > 0.2 > one.share["epochs"]
  # A set of one cell has no context.
  assert "context" not in set(table[table.set == "two"].factors)
  verdicts = pd.read_csv(written / "verdicts.csv")
  assert list(verdicts) == ["set", *VERDICTS]
  assert set(verdicts.verdict) <= {"supported", "not supported", "undecided"}


def test_what_was_built_in_is_found(written):
  table = pd.read_csv(written / "verdicts.csv")
  says = table[table.set == "one"].set_index("conjecture").verdict
  ridge = "Learning rate and clip norm are inversely related, lr C constant."
  assert says[ridge] == "supported"
  assert says["Learning rate and clip norm interact."] == "supported"
  through = "The clip norm matters only through the rate."
  assert says[through] == says[f"Where it is small, t{through[1:]}"]
  assert says[through] == "supported"
  assert says["Batch size matters most."] == "not supported"
  batch = "The nominal batch size is the one that trained."
  assert says[batch] == "not supported"


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_valid(written, name):
  from PIL import Image

  with Image.open(written / "figures" / f"{name}.png") as image:
    image.load()
    assert image.width > 1000
    assert np.ptp(np.asarray(image.convert("L"))) > 100
  root = xml.etree.ElementTree.parse(written / "figures" / f"{name}.svg")
  assert root.getroot().tag.endswith("svg")


def test_the_page_says_what_the_tables_say(written):
  page = (written / "report.html").read_text("utf-8")
  words = text_of(page)
  for row in pd.read_csv(written / "verdicts.csv").itertuples():
    assert row.conjecture in words
    assert f"{row.set} {row.verdict} {row.confidence} {row.evidence}" in words
  table = pd.read_csv(written / "importances_response.csv")
  row = table[(table.set == "one") & (table.factors == "lr*C")].iloc[0]
  assert f"lr × C {row.share:.1%}" in words
  assert page.count("<figure") == page.count("<svg") == len(FIGURES)


def test_the_page_says_how_far_it_can_be_trusted(written):
  words = text_of((written / "report.html").read_text("utf-8"))
  assert "395 runs of 400 that are planned" in words
  assert "lr log-uniform on (0.01, 10)" in words
  assert "points ran with 3 seeds each" in words
  assert "Between seeds the accuracy has a standard deviation of" in words
  assert "Tuning is not charged: 395 runs of this study saw this data" in words
  assert re.search(r"What runs saw: \d+ x, \d+ y, \d+ z\.", words)
  assert "δ is above 1/N" in words
  assert "The sampling probability that trained is between 0.5" in words


def test_the_page_stands_alone_and_is_escaped(written):
  page = (written / "report.html").read_text("utf-8")
  assert "Made &lt;up&gt; &amp; small" in page
  assert "lr &lt; C &amp; so on." in page
  assert "a&lt;b&gt;" in page
  assert "--name=&#39;&lt;a&gt;&#39;" in page
  assert "<script" not in page
  assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page)
  assert "<image" in page  # many curves are one picture, inside the page


def numbers_of(folder, **values):
  """A folder as a report leaves it: each number within 0.1."""
  folder.mkdir()
  rows = [("all", name, x, x - 0.1, x + 0.1) for name, x in values.items()]
  columns = ["set", "number", "value", "low", "high"]
  pd.DataFrame(rows, columns=columns).to_csv(
    folder / "numbers.csv", index=False
  )
  return folder


def test_surveys_are_compared_number_by_number(written, tmp_path):
  here = numbers_of(tmp_path / "a", one=0.5, two=0.5, three=1.0)
  there = numbers_of(tmp_path / "b", one=0.6, two=0.8, four=1.0)
  table = studies.compare_surveys([here, there, written])
  sets = [f"{written.name}, {name}" for name in ("one", "two")]
  assert list(dict.fromkeys(table.survey)) == ["a", "b", *sets]
  found = table[table.survey == "b"].set_index("number")
  assert found.difference["one"] == pytest.approx(0.1)
  reach = 0.1 * 2**0.5  # of two independent intervals
  assert found.difference_low["one"] == pytest.approx(0.1 - reach)
  assert found.difference_low["two"] > 0
  assert np.isnan(found.difference["four"])
  section = _survey_compare.section(table)
  rows = {row[0]: row for row in section.table}
  assert rows["two"][2].startswith("▲")
  assert not rows["one"][2].startswith("▲")
  assert rows["four"][1] == rows["three"][2] == ""
  with pytest.raises(FileNotFoundError, match="make that report first"):
    studies.compare_surveys([tmp_path])


def test_under_a_rule_that_divides_by_c_lr_is_the_rate():
  runs = pd.DataFrame({"lr": [2.0, 3.0], "C": [4.0, 5.0]})
  base = {"base": {"rule": {"name": "normalized"}}}
  rated = _survey_report._rated(runs, base)
  assert list(rated.rate) == [2, 3]
  base["base"]["rule"]["name"] = "flat"
  assert "rate" not in _survey_report._rated(runs, base)
  both = runs.assign(rule=["flat", "normalized"])
  assert list(_survey_report._rated(both, base).rate) == [8, 3]


def test_cells_without_runs_are_not_drawn():
  rng = np.random.default_rng(0)
  x = rng.random(400)
  runs = pd.DataFrame({"C": x, "lr": x + 0.01 * rng.random(400)})
  found = type("Found", (), {"points": runs, "model": lambda _, t: t.C * t.lr})
  from jaxdp.studies import _survey_curves

  _, _, effect = _survey_curves._second_order(found(), ("C", "lr"))
  assert np.isfinite(np.diag(effect)).all()
  assert np.isnan(effect[0, -1])
  assert np.isnan(effect[-1, 0])


def test_runs_that_diverged_are_the_worst_of_their_cell():
  runs = made_up(60, seeds=False)
  runs.loc[3, "accuracy"] = np.nan
  runs["diverged"] = runs.index == 7
  filled, count = _survey_findings._with_outcomes(runs, ["dataset"])
  assert count == 2
  least = runs.accuracy[runs.dataset == "x"].drop(7).min()
  assert filled.accuracy[3] == filled.accuracy[7] <= least
  assert (filled.accuracy.drop([3, 7]) == runs.accuracy.drop([3, 7])).all()


def test_one_set_has_no_column_of_sets_and_few_runs_no_verdicts(tmp_path):
  runs = made_up(20, seeds=False)
  runs.to_parquet(tmp_path / "runs.parquet")
  factors = {name: REPORT["factors"][name] for name in ("lr", "C", "q")}
  config = {"report": {**REPORT, "factors": factors}}
  page = studies.report_survey(config, tmp_path).read_text("utf-8")
  assert list(pd.read_csv(tmp_path / "verdicts.csv")) == VERDICTS
  assert "There are no verdicts: " in page


def test_bad_input_is_named(tmp_path, monkeypatch):
  monkeypatch.delenv("JAXDP_PUBLISHED_DIR", raising=False)
  config = {"report": {**REPORT, "published": "rr_2411_02051"}}
  with pytest.raises(FileNotFoundError, match="Set JAXDP_PUBLISHED_DIR"):
    studies.report_survey(config, tmp_path)
  with pytest.raises(FileNotFoundError, match=r"image_simple\.csv is not the"):
    studies.report_survey(config, tmp_path, published_dir=tmp_path)
  with pytest.raises(FileNotFoundError, match="run the survey first"):
    studies.report_survey({"report": REPORT}, tmp_path)
  with pytest.raises(ValueError, match=r"got \['titel'\]"):
    Options.from_config_dict({"report": {**REPORT, "titel": "x"}})
  runs = made_up(10, seeds=False)
  with pytest.raises(ValueError, match="30 runs are too few"):
    _survey_findings.find(runs, [], ["dataset"])


def test_the_law_of_a_survey_is_that_of_its_report():
  factor = {"name": "lr", "low": 0.1, "high": 1.0, "scale": "log"}
  config = {
    "base": small(sampler={"name": "Poisson", "expected_batch_size": 64}),
    "law": {"name": "random", "factors": (factor,), "num_runs": 9},
    "cells": ({"dataset": "x", "num_examples": 10},),
    "options": {"title": "A survey"},
  }
  options = Options.from_config_dict(config)
  law = design.Factor("lr", 0.1, 1.0, scale="log")
  assert options.laws(pd.DataFrame()) == [law]
  assert list(options.context) == ["dataset"]
  config["law"] = {"name": "published", "num_runs": 9}
  options = Options.from_config_dict(config)
  laws = options.laws(pd.DataFrame({"q": [0.5, 0.25]}))
  assert [law.name for law in laws] == ["lr", "C", "epochs", "q"]


@pytest.mark.slow
def test_the_published_runs_have_their_report(tmp_path):
  folder = os.environ.get("JAXDP_PUBLISHED_DIR")
  folder = pathlib.Path(folder or ROOT.parent / "shared" / "published")
  if not (folder / "rr_2411_02051").is_dir():
    pytest.skip(f"no rr_2411_02051 in {folder}; set JAXDP_PUBLISHED_DIR")
  subprocess.run(
    [
      sys.executable,
      ROOT / "scripts" / "report.py",
      f"--config={ROOT / 'configs' / 'studies' / 'rr_published.py'}",
      f"--workdir={tmp_path}",
      f"--published_dir={folder}",
      "--config.report.num_refits=3",
      "--config.report.num_bootstrap=200",
    ],
    check=True,
  )
  words = text_of((tmp_path / "report.html").read_text("utf-8"))
  assert "3,822 trainings in 3 sets" in words
  assert "On NEWS δ is above 1/N" in words
  shares = pd.read_csv(tmp_path / "importances.csv")
  shares = shares.set_index(["set", "factors"]).share
  # METHODS of the study, to its error of 0.02 and rounding.
  assert shares["image.simple", "lr"] == pytest.approx(0.37, abs=0.025)
  assert shares["text.simple", "lr*C"] == pytest.approx(0.04, abs=0.025)
  says = pd.read_csv(tmp_path / "verdicts.csv")
  says = says.set_index(["set", "conjecture"]).verdict
  most = "Learning rate and clip norm matter most."
  for name in ("image.simple", "image.advanced", "text.simple"):
    assert says[name, most] == "supported"
    assert says[name, "Batch size matters most."] == "not supported"


def test_the_config_of_the_published_runs_is_whole():
  path = ROOT / "configs" / "studies" / "rr_published.py"
  spec = importlib.util.spec_from_file_location("rr_published", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  options = Options.from_config_dict(module.get_config())
  laws = options.laws(pd.DataFrame({"q": [0.5, 0.25]}))
  assert [law.name for law in laws] == ["lr", "C", "epochs", "q"]
  assert options.sets == ("image.simple", "image.advanced", "text.simple")
  assert _survey_report.Options(title="x", factors={}).num_trees == 128
