"""Self-contained HTML pages: of a run, and of a study.

`write_report` reads the files of a run directory and nothing else, so that a
report can be made again later, on another machine, without the data. Numbers
come from those files as they stand; the only arithmetic is what the
(epsilon, delta) of the statement says to an attacker. Read this file, then
`_report_view.py` (what is said), `_report_chart.py` and `templates/` (how it
looks).

    jaxdp.report.write_report("runs/digits")    # writes runs/digits/report.html

`write_study` puts sections of text, tables and figures on a page of its kind;
`jaxdp.studies` says what is in them.

Needs the extra ``jaxdp[studies]`` (jinja2) when called, not when imported.
"""

import dataclasses
import datetime
import io
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from jaxdp import _report_view as view
from jaxdp._report_chart import Panel, stacked_panels

_WIDTHS = {"wide": 820, "narrow": 380}  # pixels: a page, a phone


def write_report(workdir: str | os.PathLike[str]) -> pathlib.Path:
  """Writes ``report.html`` into a run directory and returns its path.

  Args:
    workdir: a run directory as `jaxdp.fit` leaves it. It must hold
      ``config.json``, ``metrics.jsonl`` and ``privacy_statement.json``;
      ``versions.json`` is shown if it is there.

  Guarantees:
    The page stands alone: no script, no request, all styles and figures inside.
    Text from the files is escaped.
    Sensitive diagnostics appear only if the metrics hold them, in a section
    marked as not covered by the guarantee.
    A displayed epsilon is never below the one in the statement.

  Edge cases:
    ==============================  =========================================
    epsilon null, NaN or infinite   the page says that the run is not private
    no evaluation in the metrics    the accuracy panel is left out
    last metrics line cut short     that line is ignored
    several lines for one step      merged; the later value wins
    a required file is missing      FileNotFoundError
    a damaged file                  ValueError with the file (and the line)
    ==============================  =========================================
  """
  workdir = pathlib.Path(workdir)
  if not workdir.is_dir():
    raise FileNotFoundError(
      f"no run directory at {workdir}; give the --workdir of a finished run"
    )
  return _write(_page(workdir), workdir / "report.html")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
  """A part of a study's page, its fields shown in this order.

  Attributes:
    title: its heading.
    texts: paragraphs.
    table: rows of cells, the first one the header.
    words: which of its columns, from 0, hold words: they are flush left.
    figure: of matplotlib, or one as the text of an ``<svg>`` element.
    caption: of the figure; also what a screen reader says.
    code: shown as it is.
  """

  title: str
  texts: Sequence[str] = ()
  table: Sequence[Sequence[str]] = ()
  words: Sequence[int] = (0,)
  figure: Any = None
  caption: str = ""
  code: str = ""


def write_study(
  path: str | os.PathLike[str],
  *,
  name: str,
  subtitle: str,
  sections: Sequence[Section],
) -> pathlib.Path:
  """Writes the page of a study and returns its path.

  Args:
    path: of the HTML file.
    name: the page's heading.
    subtitle: below it.
    sections: in their order.

  Guarantees:
    The page stands alone, as that of ``write_report``; text is escaped.
  """
  drawn = [
    dataclasses.replace(s, figure=None if s.figure is None else _svg(s.figure))
    for s in sections
  ]
  page = _render(
    "study.html.jinja", name=name, subtitle=subtitle, sections=drawn
  )
  return _write(page, pathlib.Path(path))


def _svg(figure: Any) -> str:
  """A figure of matplotlib as an ``<svg>`` element."""
  if isinstance(figure, str):
    return figure
  file = io.StringIO()
  figure.savefig(file, format="svg", metadata={"Date": None})
  text = file.getvalue()
  return text[text.index("<svg") :]


def _write(page: str, path: pathlib.Path) -> pathlib.Path:
  """Either the whole page or the one before."""
  partial = path.with_name(path.name + ".partial")
  partial.write_text(page, encoding="utf-8")
  partial.replace(path)
  return path


def _render(template: str, **values: Any) -> str:
  try:
    import jinja2
  except ImportError as error:
    raise ImportError(
      "jaxdp.report needs jinja2; run: pip install 'jaxdp[studies]'"
    ) from error
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("jaxdp"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  return environment.get_template(template).render(**values)


def _page(workdir: pathlib.Path) -> str:
  """The page's HTML, from the files of the run directory."""
  statement_path = workdir / "privacy_statement.json"
  config = _read_object(workdir / "config.json")
  metrics = _read_metrics(workdir / "metrics.jsonl")
  statement = _read_object(statement_path)
  versions_path = workdir / "versions.json"
  versions = _read_object(versions_path) if versions_path.exists() else {}
  finished = datetime.datetime.fromtimestamp(
    statement_path.stat().st_mtime, datetime.UTC
  )
  return _render(
    "run.html.jinja",
    name=str(config.get("name") or workdir.resolve().name),
    subtitle=view.subtitle(config, versions),
    finished=f"{finished:%d %B %Y, %H:%M} UTC".lstrip("0"),
    tiles=view.tiles(config, statement, metrics),
    figure=_figure(view.main_panels(config, statement, metrics), height=150),
    privacy=view.privacy(statement),
    config=config,
    versions=versions,
    sensitive=_figure(view.sensitive_panels(metrics), height=80),
  )


def _figure(panels: Sequence[Panel], height: int) -> dict[str, str]:
  """The drawing in each width, by CSS class; empty without panels."""
  return {
    css_class: stacked_panels(
      panels, width=width, x_label="step", height=height
    )
    for css_class, width in _WIDTHS.items()
    if panels
  }


def _read_text(path: pathlib.Path) -> str:
  if not path.exists():
    raise FileNotFoundError(
      f"no {path.name} in {path.parent}; a report needs config.json, "
      "metrics.jsonl and privacy_statement.json, which a run has written when "
      "it ends"
    )
  return path.read_text(encoding="utf-8")


def _read_object(path: pathlib.Path) -> dict[str, Any]:
  try:
    value = json.loads(_read_text(path))
  except ValueError as error:
    raise ValueError(f"{path} is not valid JSON: {error}") from error
  if not isinstance(value, dict):
    raise ValueError(
      f"{path} must hold a JSON object, got {type(value).__name__}"
    )
  return value


def _read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
  """One dict a step, in the order of steps."""
  by_step: dict[int, dict[str, Any]] = {}
  lines = _read_text(path).splitlines()
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
      by_step.setdefault(int(row["step"]), {}).update(row)
    except (ValueError, KeyError, TypeError) as error:
      if number == len(lines):  # cut short by a crash while it was written
        break
      raise ValueError(
        f"{path}, line {number}, is not a JSON object with a 'step': {line!r}"
      ) from error
  return [by_step[step] for step in sorted(by_step)]
