"""Figures of rules and mechanisms, by matplotlib: plain functions.

Needs the extra ``jaxdp[studies]`` when imported.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from jaxdp.clipping import ClippingRule
from jaxdp.mechanism import Mechanism

_LINES = ("-", "--", "-.", ":")


def weight_functions(
  rules: Mapping[str, ClippingRule], *, norms: Any = None
) -> Figure:
  """What rules do to a unit: weight and contribution, by its gradient's norm.

  Args:
    rules: by label; with one weight a unit and no state.
    norms: x > 0, in units of the gradient; None for 0.01 to 100.

  Returns:
    Two panels, w(x) and x w(x), both over the noise's scale, so that rules with
    equal noise multipliers can be compared: no contribution is above 1.
  """
  x = np.logspace(-2, 2, 400) if norms is None else np.asarray(norms)
  figure = Figure(figsize=(9, 3.4), layout="constrained")
  left, right = figure.subplots(1, 2)
  for i, (label, rule) in enumerate(rules.items()):
    weights = rule.weights(jnp.asarray(x, jnp.float32)[None], ())[0]
    shaped = np.asarray(weights) / np.asarray(rule.noise_shape(()))
    style = {"lw": 1.6, "ls": _LINES[i // 10 % len(_LINES)], "label": label}
    left.loglog(x, shaped, **style)
    right.semilogx(x, x * shaped, **style)
  left.set(title="weight", ylabel="w(x) / noise scale")
  right.set(title="contribution", ylabel="x w(x) / noise scale", ylim=(0, 1.05))
  right.legend(fontsize=8, frameon=False)
  for axes in (left, right):
    _tidy(axes, "norm of the gradient, x")
  return figure


def tradeoff_curves(
  mechanisms: Mapping[str, tuple[Mechanism, int]],
) -> Figure:
  """f-DP side by side: what an attacker misses, for what he falsely accuses.

  Args:
    mechanisms: by label, a mechanism and its number of steps.

  Returns:
    One panel of type II error over type I error; the diagonal tells nothing.

  References:
    Dong, Roth, Su 2019, arXiv:1905.02383.
  """
  figure = Figure(figsize=(4.6, 4.2), layout="constrained")
  axes = figure.subplots()
  axes.plot([0, 1], [1, 0], color="0.7", lw=1)
  for label, (mechanism, num_steps) in mechanisms.items():
    curve = mechanism.tradeoff(num_steps)
    axes.plot(curve.alpha, curve.beta, lw=1.6, label=label)
  axes.set(ylabel="type II error (missed)", xlim=(0, 1), ylim=(0, 1))
  axes.legend(fontsize=8, frameon=False)
  _tidy(axes, "type I error (falsely accused)")
  return figure


def _tidy(axes: Any, label: str) -> None:
  axes.set_xlabel(label)
  axes.grid(alpha=0.3)
  axes.spines[["top", "right"]].set_visible(False)
