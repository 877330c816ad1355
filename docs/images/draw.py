"""Draws docs/images/digits.svg from the files of a finished run.

make train
.venv/bin/python docs/images/draw.py runs/digits
"""

import json
import pathlib
import sys
from typing import Any

import matplotlib
from matplotlib import pyplot as plt

_ACCURACY, _EPSILON = "#2359c4", "#7a3fb8"
_STYLE: dict[Any, Any] = {
  "axes.spines.top": False,
  "axes.spines.right": False,
  "font.size": 10,
  "svg.fonttype": "none",  # text stays text
  "svg.hashsalt": "jaxdp",  # the same file for the same run
}


def draw(workdir: pathlib.Path, path: pathlib.Path) -> None:
  """Test accuracy and epsilon over the steps of a run."""
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  statement = json.loads((workdir / "privacy_statement.json").read_text())
  panels = (
    ("test_accuracy", "Test accuracy", _ACCURACY, "{:.1%}"),
    ("epsilon", f"ε at δ = {statement['delta']:g}", _EPSILON, "{:.2f}"),
  )
  with matplotlib.rc_context(_STYLE):
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
    for ax, (name, title, color, label) in zip(axes, panels, strict=True):
      points = [(row["step"], row[name]) for row in rows if name in row]
      ax.plot(*zip(*points, strict=True), color=color, marker=".", lw=1.5)
      ax.annotate(
        label.format(points[-1][1]),
        points[-1],
        xytext=(8, -4),
        textcoords="offset points",
        color=color,
        weight="bold",
      )
      ax.set(title=title, xlabel="step", xlim=(0, None))
      ax.grid(alpha=0.3)
    axes[0].yaxis.set_major_formatter("{x:.0%}")
    axes[1].set_ylim(0, None)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
  draw(pathlib.Path(sys.argv[1]), pathlib.Path(__file__).parent / "digits.svg")
