"""The documents: their code runs, their links and names exist.

A fence that begins with "```python run" is run, block after block of one page
in one namespace. "needs=name" after it skips the page's block where that
package is missing.
"""

import importlib
import pathlib
import re
import runpy

import pytest

import jaxdp
from jaxdp import clipping, optimizers, sampling
from tests import test_statement

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_PAGES = [*sorted(_ROOT.glob("docs/*.md")), *sorted(_ROOT.glob("*.md"))]
_FENCE = re.compile(r"^```python run(.*?)$(.*?)^```$", re.M | re.S)


def _page(path):
  return pytest.param(path, id=str(path.relative_to(_ROOT)))


every_page = pytest.mark.parametrize("path", [_page(p) for p in _PAGES])


@pytest.mark.parametrize(
  "path", [_page(p) for p in _PAGES if _FENCE.search(p.read_text())]
)
# What other libraries warn of is no matter of these pages.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_code_of_a_page_runs(path):
  text = path.read_text()
  names = {"__name__": "docs"}
  for fence in _FENCE.finditer(text):
    needed = re.search(r"needs=([\w,]+)", fence[1])
    packages = needed[1].split(",") if needed else []
    if any(importlib.util.find_spec(name) is None for name in packages):
      continue
    # Blank lines before the code keep the line numbers of a traceback right.
    lines_before = text.count("\n", 0, fence.start(2))
    code = compile("\n" * lines_before + fence[2], str(path), "exec")
    exec(code, names)


@every_page
def test_links_lead_to_files(path):
  for target in re.findall(r"\]\((?!https?://)([^)#]+)", path.read_text()):
    assert (path.parent / target).exists(), target


@every_page
def test_tests_that_a_page_names_exist(path):
  found = re.findall(
    r"`(?:tests/)?(test_\w+)\.py(?:::(\w+))?`", path.read_text()
  )
  for module, name in found:
    file = _ROOT / "tests" / f"{module}.py"
    assert file.exists(), file
    assert f"def {name}" in file.read_text(), f"{module}.py::{name}"


def test_the_threat_model_speaks_of_every_assumption_and_of_no_other():
  """Its table quotes the sentences of statements."""
  text = (_ROOT / "docs" / "threat_model.md").read_text()
  table = text[text.index("## Assumptions") : text.index("## Seeds")]
  rows = re.findall(r"^\| (\".*?) \|(.*)$", table, re.M)
  quoted = [piece for cell, _ in rows for piece in re.findall('"(.*?)"', cell)]
  sentences = {
    sentence
    for run in test_statement.RUNS
    for sentence in test_statement.statement_of(run).assumptions
  }
  for sentence in sentences:
    assert any(piece in sentence for piece in quoted), sentence
  for piece in quoted:
    assert any(piece in sentence for sentence in sentences), piece
  assert "test_noise.py::" in text
  assert "test_rounding.py::" in text


def test_every_public_name_is_in_the_table_of_the_readme():
  text = (_ROOT / "README.md").read_text()
  table = text[text.index("## Public API") : text.index("## Scripts")]
  words = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", table))))
  modules = {"accounting", "clipping", "noise", "optimizers", "sampling"}
  public = {name for name in jaxdp.__all__ if not name.startswith("_")}
  rules = {name for name in clipping.__all__ if name.islower()}
  rules -= {"assign_groups", "rule_from_dict"}
  samplers = {
    name
    for name in sampling.__all__
    if isinstance(getattr(sampling, name), type)
    and hasattr(getattr(sampling, name), "sample")
  } - {"Sampler"}
  chains = {name for name in vars(optimizers) if re.match(r"dp_\w+", name)}
  assert public | rules | samplers | chains | modules <= words


def test_the_figure_is_drawn_from_the_files_of_a_run(tmp_path):
  pytest.importorskip("matplotlib")
  (tmp_path / "metrics.jsonl").write_text(
    '{"step": 1, "epsilon": 0.5, "test_accuracy": 0.4}\n'
    '{"step": 2, "epsilon": 0.75}\n'
    '{"step": 3, "epsilon": 1.0, "test_accuracy": 0.9}\n'
  )
  (tmp_path / "privacy_statement.json").write_text('{"delta": 1e-5}')
  draw = runpy.run_path(str(_ROOT / "docs" / "images" / "draw.py"))["draw"]
  draw(tmp_path, tmp_path / "digits.svg")
  text = (tmp_path / "digits.svg").read_text()
  assert "90.0%" in text
  assert "1.00" in text
