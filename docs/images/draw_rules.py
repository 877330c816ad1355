"""Draws docs/images/rules.svg: weights and contributions of the scalar rules.

.venv/bin/python docs/images/draw_rules.py
"""

import pathlib

import matplotlib

from jaxdp import clipping, plots

RULES = {
  "flat, normalized": clipping.flat(1.0),
  "AUTO-V": clipping.automatic(gamma=0.0),
  "AUTO-S, γ = 0.1": clipping.automatic(gamma=0.1),
  "PSAC, r = 0.1": clipping.psac(r=0.1),
  "PSASC, r = 0.1, s = 0.5": clipping.psasc(r=0.1, s=0.5),
  "PSASC, r = 0.1, s = 2": clipping.psasc(r=0.1, s=2.0),
}


def draw(path: pathlib.Path) -> None:
  """Saves the figure, the same file every time."""
  style = {"svg.fonttype": "none", "svg.hashsalt": "jaxdp", "font.size": 10}
  with matplotlib.rc_context(style):
    figure = plots.weight_functions(RULES)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
  draw(pathlib.Path(__file__).parent / "rules.svg")
