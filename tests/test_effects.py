"""ICE, partial dependence and ALE: known functions, also of correlated inputs,
and the same as scikit-learn's where it has them."""

import numpy as np
import pandas as pd
import pytest
from sklearn import inspection
from sklearn.ensemble import ExtraTreesRegressor

from jaxdp.studies import analysis


def runs(num=400, correlation=0.0, seed=0):
  """Uniform x and y in [0, 1]: y is x plus a little, or independent."""
  rng = np.random.default_rng(seed)
  x, y = rng.random((2, num))
  if correlation:
    width = 1 - correlation
    y = np.clip(x + width * (y - 0.5), 0, 1)
  return pd.DataFrame({"x": x, "y": y})


def additive(t):
  return (t.x**2 + t.y).to_numpy()


def apart(t):
  """x + y where the runs are, and far more where x and y never are."""
  far = np.maximum(abs(t.x - t.y) - 0.2, 0)
  return (t.x + t.y + 20 * far * t.x).to_numpy()


def test_ice_moves_one_factor_and_holds_the_rest():
  curves = analysis.ice(additive, runs(), "x", num_points=5, num_curves=30)
  assert curves.values.shape == (30, 5)
  expected = curves.grid[None, :] ** 2 + curves.runs.y.to_numpy()[:, None]
  assert np.allclose(curves.values, expected)


def test_centred_ice_starts_at_zero_and_its_slope_is_the_derivative():
  table = runs()
  centred = analysis.ice(additive, table, "x", kind="centred")
  assert (centred.values[:, 0] == 0).all()
  slope = analysis.ice(additive, table, "x", kind="derivative")
  assert np.allclose(slope.values, 2 * slope.grid)
  assert slope.values.shape[1] == centred.values.shape[1] - 1
  with pytest.raises(ValueError, match="kind must be"):
    analysis.ice(additive, table, "x", kind="centered")


def test_partial_dependence_and_ice_are_scikit_learns():
  table = runs(100)
  forest = ExtraTreesRegressor(10, random_state=0).fit(table, additive(table))
  mine = analysis.pdp(forest, table, "x", num_points=8, num_curves=100)
  theirs = inspection.partial_dependence(
    forest,
    table,
    ["x"],
    kind="both",
    custom_values={"x": mine.value.to_numpy()},
  )
  assert np.allclose(mine.effect, theirs["average"][0])
  curves = analysis.ice(forest, table, "x", num_points=8, num_curves=100)
  assert np.allclose(curves.values, theirs["individual"][0])
  surface = analysis.pdp_surface(
    forest, table, ("x", "y"), num_points=4, num_curves=100
  )
  theirs = inspection.partial_dependence(
    forest,
    table,
    ["x", "y"],
    custom_values={name: surface[name].unique() for name in "xy"},
  )
  assert np.allclose(surface.effect, theirs["average"][0].ravel())


def test_models_fitted_to_arrays_read_tables_too():
  table = runs(50)
  forest = ExtraTreesRegressor(5, random_state=0)
  forest.fit(table.to_numpy(), additive(table))
  by_function = analysis.ale(
    lambda t: forest.predict(t.to_numpy()), table, "x", num_bootstrap=5
  )
  assert analysis.ale(forest, table, "x", num_bootstrap=5).equals(by_function)


@pytest.mark.parametrize("correlation", (0.0, 0.9))
def test_ale_is_the_additive_effect_whatever_the_correlation(correlation):
  table = runs(2000, correlation)
  found = analysis.ale(additive, table, "x", num_bootstrap=20)
  expected = found.value**2 - (table.x**2).mean()
  assert np.allclose(found.effect, expected, atol=2e-3)
  assert found.runs.iloc[1:].sum() == 2000


def test_ale_stays_where_runs_are_and_others_do_not():
  """Of x + y on the diagonal: slope 1. Partial dependence reads the model where
  no run is, and the plain regression on x takes y's effect for x's."""
  table = runs(2000, correlation=0.9)
  local = analysis.ale(apart, table, "x", num_bootstrap=20)
  held = analysis.pdp(apart, table, "x", num_bootstrap=20)
  slopes = [np.polyfit(t.value, t.effect, 1)[0] for t in (local, held)]
  marginal = np.polyfit(table.x, apart(table), 1)[0]
  assert slopes[0] == pytest.approx(1, abs=1e-6)
  assert slopes[1] > 2
  assert marginal > 1.8


def test_a_forests_ale_of_correlated_inputs_holds_the_slope():
  """The same with a model that has only seen the diagonal."""
  table = runs(1000, correlation=0.6)
  rng = np.random.default_rng(0)
  y = table.x + 2 * table.y + 0.05 * rng.standard_normal(len(table))
  forest = ExtraTreesRegressor(64, min_samples_leaf=2, random_state=0)
  forest.fit(table, y)
  local = analysis.ale(forest, table, "x", num_bins=20, num_bootstrap=20)
  inside = local[local.value.between(0.1, 0.9)]
  slope = np.polyfit(inside.value, inside.effect, 1)[0]
  assert slope == pytest.approx(1, abs=0.35)
  assert np.polyfit(table.x, y, 1)[0] > 2.5


def test_second_order_ale_is_the_interaction_alone():
  table = runs(4000)

  def model(t):
    return (3 * t.x + t.y**2 + 4 * t.x * t.y).to_numpy()

  found = analysis.ale_interaction(model, table, ("x", "y"), num_bootstrap=10)
  expected = 4 * (found.x - 0.5) * (found.y - 0.5)
  assert np.allclose(found.effect, expected, atol=0.06)
  assert (found.runs > 0).all()
  none = analysis.ale_interaction(additive, table, ("x", "y"), num_bootstrap=10)
  assert np.allclose(none.effect, 0, atol=1e-9)


def test_second_order_ale_says_where_no_runs_are():
  table = runs(2000, correlation=0.9)
  found = analysis.ale_interaction(
    apart, table, ("x", "y"), num_bins=8, num_bootstrap=5
  )
  far = abs(found.x - found.y) > 0.4
  assert (found.runs[far] == 0).all()
  assert (found.runs[abs(found.x - found.y) < 0.02] > 0).all()
  assert np.isfinite(found.effect).all()


def test_values_that_repeat_make_fewer_bins():
  table = runs().assign(x=np.tile([1, 2, 2, 2], 100))
  found = analysis.ale(additive, table, "x", num_bootstrap=5)
  assert list(found.value) == [1, 2]
  assert np.allclose(np.diff(found.effect), 3)
  with pytest.raises(ValueError, match="one value only"):
    analysis.ale(additive, table.assign(x=1.0), "x")


def test_intervals_hold_the_effect_and_refits_widen_them():
  def model(t):
    return (t.x * (1 + 4 * (t.y - 0.5))).to_numpy()

  held = []
  for seed in range(100):
    table = runs(200, seed=seed)
    found = analysis.ale(
      model, table, "x", num_bins=4, num_bootstrap=100, seed=seed
    )
    # Of slope 1 on average over y, and of mean 0.
    truth = found.value - (found.value[1:].mean() + found.value[:-1].mean()) / 2
    last = found.iloc[-1]
    held.append(last.low <= truth.iloc[-1] <= last.high)
  assert 0.88 < np.mean(held) < 1

  def refit(table):
    rng = np.random.default_rng(0)
    y = model(table) + rng.standard_normal(len(table))
    return ExtraTreesRegressor(8, random_state=0).fit(table, y)

  table = runs(200)
  fitted = refit(table)
  widths = [
    (t.high - t.low).mean()
    for more in (None, refit)
    for t in [
      analysis.ale(fitted, table, "x", num_bins=5, num_bootstrap=20, refit=more)
    ]
  ]
  assert widths[1] > widths[0]
