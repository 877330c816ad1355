"""Figures hold what they say."""

import numpy as np
import pytest

import jaxdp
from jaxdp import clipping

plots = pytest.importorskip("jaxdp.plots")


def test_weight_functions_are_shown_over_the_noise():
  norms = np.array([0.5, 1.0, 4.0])
  figure = plots.weight_functions(
    {"flat": clipping.flat(2.0), "slope": clipping.psasc(s=0.5)}, norms=norms
  )
  left, right = figure.axes
  flat, slope = right.get_lines()
  np.testing.assert_allclose(flat.get_ydata(), [0.25, 0.5, 1.0], 1e-6)
  assert (slope.get_ydata() < 1).all()
  np.testing.assert_allclose(left.get_lines()[0].get_ydata(), [0.5, 0.5, 0.25])
  assert [t.get_text() for t in right.get_legend().get_texts()] == [
    "flat",
    "slope",
  ]


def test_tradeoff_curves_are_those_of_the_mechanisms():
  mechanism = jaxdp.Mechanism(
    clipping.flat(1.0), jaxdp.sampling.FullBatch(100), 10.0
  )
  figure = plots.tradeoff_curves({"a": (mechanism, 4), "b": (mechanism, 100)})
  _, few, many = figure.axes[0].get_lines()
  # mu = sqrt(T) / sigma = 1: METHODS 1.3.
  power = 1 - np.interp(0.1, many.get_xdata(), many.get_ydata())
  assert power == pytest.approx(0.389144, abs=1e-3)
  assert (few.get_ydata() >= many.get_ydata()).all()
