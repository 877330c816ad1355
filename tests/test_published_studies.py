"""The runs in docs/studies: whole, of the configs, and what the docs say."""

import importlib.util
import pathlib
import shutil

import pytest

from jaxdp import studies
from jaxdp.studies import _report

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = (ROOT / "docs" / "studies.md").read_text("utf-8")
NAMES = [
  ("psasc", "digits"),
  ("psasc", "mnist"),
  ("psasc", "cifar10"),
  ("batch_clipping", "digits"),
  ("batch_clipping", "cifar10"),
]


def design_of(config, data):
  path = ROOT / "configs" / "studies" / f"{config}.py"
  spec = importlib.util.spec_from_file_location(config, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return studies.Design.from_config_dict(module.get_config(data))


@pytest.mark.parametrize(
  "config, data",
  [
    pytest.param(*name, marks=() if "digits" in name else pytest.mark.slow)
    for name in NAMES
  ],
)
def test_no_run_is_missing_and_the_page_is_drawn(tmp_path, config, data):
  design = design_of(config, data)
  shutil.copytree(
    ROOT / "docs" / "studies" / f"{config}_{data}", tmp_path / "study"
  )
  workdir = tmp_path / "study"
  assert studies.run(design, workdir, minutes=0.0, progress=False)
  page = studies.report(design, workdir).read_text("utf-8")
  assert ("does not survive" in page) == (config == "psasc")


@pytest.mark.parametrize("config, data", [n for n in NAMES if n[1] != "digits"])
def test_the_tables_of_the_docs_are_those_of_the_runs(config, data):
  design = design_of(config, data)
  folder = ROOT / "docs" / "studies" / f"{config}_{data}"
  rows = studies.Results(folder / "results.jsonl").rows
  rows = [row for row in rows if row["stage"] == "evaluation"]
  reference = design.options["reference"]
  told = 0
  for setting in design.settings:
    for arm in design.arms:
      one = studies.summarize(rows, setting, arm, reference)
      if config == "psasc" and arm in ("AUTO-S + momentum", "PSAC + momentum"):
        continue
      value = (
        _report.percent(one.accuracy)
        if one.difference is None
        else _report.percent(one.difference, sign=True)
      )
      assert f"| {value} |" in DOCS, (setting, arm)
      told += 1
  assert told == {"psasc": 7, "batch_clipping": 20}[config]
