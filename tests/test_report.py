"""The run report, on a made-up run directory."""

import html.parser
import json
import math
import pathlib
import re

import pytest

from jaxdp import report
from jaxdp._report_chart import Panel, stacked_panels

_STATEMENT = {
  "epsilon": 2.98123,
  "delta": 1e-4,
  "neighboring_relation": "ADD_OR_REMOVE_ONE",
  "privacy_unit": "example",
  "accountant": "pld",
  "dp_event": "SelfComposedDpEvent(event=GaussianDpEvent(2.3), count=40)",
  "num_steps": 40,
  "noise_multiplier": 2.3,
  "sampler": {"sampler": "Poisson", "expected_batch_size": 100},
  "rule": "Flat(l2_clip_norm=1.0)",
  "seed_policy": "os",
  "assumptions": ["Tuning is not charged.", "Seeds stay secret."],
  "warnings": [],
}
_CONFIG = {
  "data": {"name": "digits"},
  "model": {"name": "mlp", "hidden": [128, 64]},
  "privacy": {"target_epsilon": 3.0},
}


def _metrics(**extra):
  rows = []
  for step in range(10, 41, 10):
    rows.append({"step": step, "epsilon": step / 14, **extra})
    rows[-1]["examples_per_second"] = 500.0
    if step % 20 == 0:
      rows[-1]["test_accuracy"] = 0.9 + step / 1000
  return rows


@pytest.fixture
def run(tmp_path):
  """Writes a run directory with these parts and returns its report's text."""

  def write(config=_CONFIG, statement=_STATEMENT, metrics=None, **files):
    rows = _metrics() if metrics is None else metrics
    texts = {
      "config.json": json.dumps(config),
      "privacy_statement.json": json.dumps(statement),
      "metrics.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
      "versions.json": json.dumps({"jaxdp": "0.1.0", "device": "1 x cpu"}),
      **files,
    }
    for name, text in texts.items():
      if text is None:
        (tmp_path / name).unlink(missing_ok=True)
      else:
        (tmp_path / name).write_text(text)
    path = report.write_report(tmp_path)
    assert path == tmp_path / "report.html"
    return path.read_text(encoding="utf-8")

  return write


class _Page(html.parser.HTMLParser):
  """Tags with their attributes; fails on a tag closed out of turn."""

  VOID = frozenset({"meta", "link", "wbr"})

  def __init__(self, text):
    super().__init__()
    self.tags, self._open = [], []
    self.feed(text)
    assert self._open == []

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in self.VOID:
      self._open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self._open.pop() == tag


def _words(text):
  """What a reader sees, in one line."""
  body = text[text.index("<body>") :]
  return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", body)))


def test_the_page_stands_alone(run):
  page = _Page(run(metrics=_metrics(sensitive={"train_loss": 1.0})))
  for tag, attrs in page.tags:
    assert tag not in {"script", "img", "iframe", "object", "embed", "form"}
    assert not any(name.startswith("on") for name in attrs)
    for name in ("src", "href", "xlink:href", "action"):
      assert attrs.get(name, "#").startswith(("#", "data:"))
  text = run()
  for outside in ("http:", "https:", "url(", "@import"):
    assert outside not in text
  assert "default-src 'none'" in text


def test_headline_numbers_come_from_the_files(run):
  words = _words(run())
  assert "Test accuracy 94.0 % at step 40" in words
  assert "Privacy loss ε 2.99 at δ = 10⁻⁴" in words
  assert "Steps 40 ≈ 100 examples each" in words
  assert "Examples / s 500 median" in words
  assert "Training time 8.0 s" in words  # 40 steps of 100 at 500 a second
  assert "digits · mlp · 1 x cpu" in words


def test_the_guarantee_is_said_in_words(run):
  words = _words(run())
  assert "(2.99, 10⁻⁴)-differentially private" in words
  assert "adding or removing one example of the training data" in words
  # min(e^eps 1% + delta, 1 - e^-eps (99% - delta)), eps = 2.98123
  assert "rightly says yes in at most 19.8 % of cases" in words
  for assumption in _STATEMENT["assumptions"]:
    assert assumption in words
  assert "Warning" not in words
  assert "not private" not in words


@pytest.mark.parametrize(
  ("relation", "said"),
  [
    ("REPLACE_ONE", "replacing one user by any other"),
    ("REPLACE_SPECIAL", "blanking out one user (zero-out)"),
    ("NeighboringRelation.REPLACE_ONE", "replacing one user by any other"),
    ("exchange-two", "with respect to exchange-two of"),
  ],
)
def test_relation_and_unit_are_those_of_the_statement(run, relation, said):
  changed = {"neighboring_relation": relation, "privacy_unit": "user"}
  assert said in _words(run(statement=_STATEMENT | changed))


def test_warnings_are_shown(run):
  statement = _STATEMENT | {"warnings": ["delta is at least 1/N"]}
  assert "Warning delta is at least 1/N" in _words(run(statement=statement))


@pytest.mark.parametrize("epsilon", [None, math.inf, math.nan, "inf"])
def test_without_a_finite_epsilon_the_page_says_not_private(run, epsilon):
  rows = [row | {"epsilon": None} for row in _metrics()]
  text = run(statement=_STATEMENT | {"epsilon": epsilon}, metrics=rows)
  words = _words(text)
  assert "This run is not private: ε = ∞" in words
  assert "Privacy loss ε ∞ no guarantee" in words
  assert "no guarantee to state" in words
  assert "-differentially private" not in words
  assert "Privacy loss ε at" not in text  # no panel


def test_a_bare_non_private_statement_is_enough(run):
  text = run(statement={"epsilon": None, "warnings": ["NOT private"]})
  assert "This run is not private" in _words(text)
  assert "What was accounted" not in text


@pytest.mark.parametrize(
  ("epsilon", "shown"),
  [
    (1.1, "1.10"),
    (2.0000001, "2.01"),
    (0.00123, "0.0013"),
    (1234.5, "1,234.50"),
  ],
)
def test_epsilon_is_rounded_up_and_never_twice(run, epsilon, shown):
  text = run(statement=_STATEMENT | {"epsilon": epsilon})
  assert f"({shown}, 10⁻⁴)-differentially" in _words(text)


def test_the_sensitive_section_is_there_only_with_sensitive_metrics(run):
  assert "sensitive diagnostics" not in _words(run()).lower()
  values = {"train_loss": 0.51, "grad_norm_quantiles": [0.1, 0.2, 0.3]}
  text = run(metrics=_metrics(sensitive=values))
  words = _words(text)
  assert "Do not publish this page." in words
  assert "Sensitive diagnostics: not covered by the guarantee" in words
  assert text.index('id="sensitive"') < text.index("Train loss")
  assert "Grad norm quantiles (bold: the middle of 3)" in words
  assert "Train loss" not in text[: text.index('id="sensitive"')]


def test_text_from_the_files_is_escaped(run):
  bad = "<script>alert('x')</script>&"
  text = run(
    config={"name": bad, bad: {bad: [bad]}},
    statement=_STATEMENT
    | {"warnings": [bad], "rule": bad, "dp_event": bad, "privacy_unit": bad},
    metrics=_metrics(sensitive={bad: 1.0}),
    **{"versions.json": json.dumps({bad: bad})},
  )
  assert "<script" not in text.lower()
  assert bad in html.unescape(text)
  _Page(text)


def test_the_whole_config_is_shown(run):
  config = {"a": {"b": {"c": [1, 2]}}, "none": None, "yes": True, "empty": {}}
  words = _words(run(config=config))
  assert "a b c 1, 2 none none yes true empty empty" in words


def test_lines_of_one_step_merge_and_a_cut_last_line_is_ignored(run):
  lines = '{"step": 20, "test_accuracy": 0.5}\n{"step": 10, "epsilon": 1.5}\n'
  lines += '{"step": 20, "epsilon": 2.5}\n{"step": 20, "test_accuracy": 0.75}\n'
  text = run(**{"metrics.jsonl": lines + '{"step": 30, "eps'})
  assert "Test accuracy: 75.0 % at step 20; " in text
  assert "ε = 2.50 at step 20" in text


def test_without_metrics_and_versions_the_page_is_still_written(run):
  text = run(**{"metrics.jsonl": "", "versions.json": None})
  assert "neither a test accuracy nor a finite ε" in _words(text)
  assert "Versions" not in text
  assert "<svg" not in text


@pytest.mark.parametrize(
  "name", ["config.json", "metrics.jsonl", "privacy_statement.json"]
)
def test_a_missing_required_file_is_named(run, name):
  with pytest.raises(FileNotFoundError, match=f"no {name} in "):
    run(**{name: None})


def test_a_missing_run_directory_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no run directory at .*absent"):
    report.write_report(tmp_path / "absent")


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    ("config.json", "{", "config.json is not valid JSON"),
    ("config.json", "[]", "must hold a JSON object, got list"),
    ("metrics.jsonl", '{"step": 1}\n{"st\n{"step": 3}\n', "line 2, is not"),
    ("metrics.jsonl", '{"loss": 1}\n{"step": 3}\n', "line 1, is not"),
  ],
)
def test_a_damaged_file_is_named(run, name, text, message):
  with pytest.raises(ValueError, match=message):
    run(**{name: text})


def test_a_failed_report_leaves_the_one_before(run, tmp_path):
  before = run()
  with pytest.raises(ValueError, match="not valid JSON"):
    run(**{"config.json": "{"})
  assert (tmp_path / "report.html").read_text(encoding="utf-8") == before
  assert not list(pathlib.Path(tmp_path).glob("*.partial"))


def test_a_long_curve_is_thinned_and_keeps_its_ends():
  values = [float(i) for i in range(100_000)]
  svg = stacked_panels(
    [Panel(title="x", steps=values, values=values)], width=800, x_label="step"
  )
  points = re.search(r'points="([^"]+)"', svg)[1].split()
  assert len(points) == 400
  assert points[0].startswith("56.0,")
  assert points[-1].startswith("728.0,")
  assert "99,999" in svg


@pytest.mark.parametrize("values", [[0.5], [0.0, 0.0], [1e-9, 1e9], [-3, -2]])
def test_every_curve_stays_inside_its_panel(values):
  steps = list(range(len(values)))
  panel = Panel(title="x", steps=steps, values=values, reference=(1.0, "one"))
  svg = stacked_panels([panel, panel], width=380, x_label="step")
  height = float(re.search(r'viewBox="0 0 380 ([\d.]+)"', svg)[1])
  for points in re.findall(r'points="([^"]+)"', svg):
    for point in points.split():
      x, y = map(float, point.split(","))
      assert 0 <= x <= 380
      assert 0 <= y <= height


def test_non_finite_values_are_left_out_and_none_left_raises():
  panel = Panel(title="x", steps=[1, 2, 3], values=[1.0, math.nan, 3.0])
  svg = stacked_panels([panel], width=380, x_label="step")
  assert svg.count("<circle") == 2
  with pytest.raises(ValueError, match="'y' has no finite value among 1"):
    stacked_panels(
      [Panel(title="y", steps=[1], values=[math.inf])],
      width=380,
      x_label="step",
    )
