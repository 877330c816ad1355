"""Functional ANOVA: exact marginals, known shares, intervals that hold."""

import numpy as np
import pandas as pd
import pytest

from jaxdp.studies import analysis, design
from jaxdp.studies.analysis import _axes, _boxes, _surrogate

ISHIGAMI = [design.Factor(name, -np.pi, np.pi) for name in "abc"]
# Sobol and Levitan 1999; Saltelli et al., "Global Sensitivity Analysis", 2008.
ISHIGAMI_SHARES = {
  "a": 0.3139,
  "b": 0.4424,
  "c": 0.0,
  "a*b": 0.0,
  "a*c": 0.2437,
  "b*c": 0.0,
}
UNIT = [design.Factor(name, 0.0, 1.0) for name in "abc"]
MIXED = [*UNIT[:2], design.Choice("c", (1, 2, 3))]


def ishigami(t):
  return np.sin(t.a) + 7 * np.sin(t.b) ** 2 + 0.1 * t.c**4 * np.sin(t.a)


def additive(t):
  return t.a + 2 * t.b + np.cos(np.pi * t.c)


def product(t):
  return t.a * t.b * t.c


def product_shares(means, variances):
  """Of a product: variances inside times squared means outside."""
  total = np.prod(means**2 + variances) - np.prod(means**2)
  return {
    "*".join("abc"[j] for j in inside): np.prod(
      [variances[j] if j in inside else means[j] ** 2 for j in range(3)]
    )
    / total
    for inside in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2))
  }


ADDITIVE_SHARES = {
  name: v / (1 / 12 + 4 / 12 + 1 / 2)
  for name, v in zip("abc", (1 / 12, 4 / 12, 1 / 2), strict=True)
} | {"a*b": 0.0, "a*c": 0.0, "b*c": 0.0}
PRODUCT_SHARES = product_shares(
  np.array([0.5, 0.5, 2.0]), np.array([1 / 12, 1 / 12, 2 / 3])
)
KNOWN = {
  "additive": (UNIT, additive, ADDITIVE_SHARES),
  "product": (MIXED, product, PRODUCT_SHARES),
  "ishigami": (ISHIGAMI, ishigami, ISHIGAMI_SHARES),
}


def drawn(factors, function, num_runs, seed=0, noise=0.0):
  runs = design.random(factors, num_runs, seed=seed)
  rng = np.random.default_rng(seed)
  more = noise * rng.standard_normal(num_runs)
  return runs.assign(accuracy=function(runs) + more)


# Marginals.


def forest(factors, function, context=(), num_trees=7, num_runs=300):
  runs = drawn(factors, function, num_runs)
  axes = _surrogate.space(runs, factors, context, num_cells=8)
  x = np.concatenate([axis.encode(runs) for axis in axes], axis=1)
  rng = np.random.default_rng(0)
  y = runs.accuracy.to_numpy()
  return axes, _surrogate.fit_forest(x, y, num_trees, 2, rng)


LAWS = [
  design.Factor("a", 1e-3, 10.0, scale="log"),
  design.Factor("b", 5, 50, step=5),
  design.Choice("c", ("x", "y", "z")),
  design.Sample("d", [1, 2, 2, 4, 4, 4]),
]


def of_all_laws(t):
  return np.log(t.a) * t.b / 10 + t.d * (t.c == "y") + (t.c == "z")


def test_marginals_of_boxes_are_those_of_brute_force():
  """A million draws of the law through the same forest, cell by cell."""
  axes, fitted = forest(LAWS, of_all_laws)
  subsets = [(0,), (1,), (2,), (3,), (0, 1), (1, 2), (0, 2, 3)]
  exact = _boxes.marginals(_boxes.boxes(fitted), axes, subsets)
  rng = np.random.default_rng(1)
  u = rng.random((1 << 18, 4))
  x = np.concatenate([a.draw(v) for a, v in zip(axes, u.T, strict=True)], 1)
  y = fitted.predict(x)
  edges = [np.append(0, np.cumsum(axis.probabilities)) for axis in axes]
  cells = [
    np.clip(np.searchsorted(e, v, "right") - 1, 0, len(e) - 2)
    for e, v in zip(edges, u.T, strict=True)
  ]
  for subset in subsets:
    shape = exact[subset].shape
    flat = np.ravel_multi_index([cells[j] for j in subset], shape)
    counts = np.bincount(flat, minlength=exact[subset].size)
    mean = np.bincount(flat, y, minlength=counts.size) / counts
    error = 5 * y.std() / np.sqrt(counts)
    assert (abs(exact[subset].ravel() - mean) < error).all()


def test_leaves_tile_the_space():
  """A tree's boxes: every point lies in one, with the tree's value."""
  axes, fitted = forest(LAWS, of_all_laws, num_trees=1)
  leaves = _boxes.boxes(fitted)
  u = np.random.default_rng(0).random((200, 4))
  x = np.concatenate([a.draw(v) for a, v in zip(axes, u.T, strict=True)], 1)
  inside = (leaves.low < x[:, None]) & (x[:, None] <= leaves.high)
  inside = inside.all(axis=2)
  assert (inside.sum(axis=1) == 1).all()
  assert np.allclose(inside @ leaves.value, fitted.predict(x))


def test_components_sum_to_the_forest_and_are_uncorrelated():
  axes, fitted = forest(UNIT[:2], lambda t: t.a * t.b)
  whole = _boxes.marginals(_boxes.boxes(fitted), axes, [(0,), (1,), (0, 1)])
  parts = {s: _boxes.component(g, axes, s) for s, g in whole.items()}
  mean = whole[0, 1].mean()
  summed = mean + parts[0,][:, None] + parts[1,][None, :] + parts[0, 1]
  assert np.allclose(summed, whole[0, 1])
  variances = [_boxes.variance(g, axes, s) for s, g in parts.items()]
  assert sum(variances) == pytest.approx(whole[0, 1].var())


def test_waves_are_orthonormal_under_any_law():
  runs = drawn(LAWS, of_all_laws, 100)
  for axis in _surrogate.space(runs, LAWS, ()):
    waves = _axes.basis(axis, 8)
    p = axis.probabilities[:, None]
    assert waves.shape[1] == min(8, len(p) - 1)
    assert np.allclose(waves.T @ (p * waves), np.eye(waves.shape[1]))
    assert np.allclose((p * waves).sum(axis=0), 0)


# Shares.


@pytest.mark.parametrize("factors, function, shares", KNOWN.values(), ids=KNOWN)
def test_shares_of_known_functions(factors, function, shares):
  runs = drawn(factors, function, 1000)
  found = analysis.fanova(runs, factors, num_trees=64, max_features=3)
  for name, share in shares.items():
    assert found.share(name) == pytest.approx(share, abs=0.035), name
  assert found.warning is None
  assert found.r2 > 0.9


def test_the_published_protocol_flattens_interactions():
  """Why the default is not of the surrogate: it keeps 2/3 of this share."""
  runs = drawn(ISHIGAMI, ishigami, 500)
  found = analysis.fanova(
    runs, ISHIGAMI, of="surrogate", num_trees=64, max_features=3, num_refits=4
  )
  assert found.share("a*c") < 0.75 * ISHIGAMI_SHARES["a*c"]
  assert found.closed("a", "b", "c") < 1
  assert (found.table.low <= found.table.share).all()


def test_an_interaction_of_three_is_found():
  rows = drawn(
    [design.Factor(name, -1.0, 1.0) for name in "abc"], product, 1000
  )
  laws = [design.Factor(name, -1.0, 1.0) for name in "abc"]
  found = analysis.fanova(rows, laws, effects=3, num_trees=32)
  assert list(found.table.factors)[-1] == "a*b*c"
  assert found.share("a*b*c") > 0.8
  assert found.table.share[:-1].max() < 0.1


def test_context_is_a_factor_and_the_response_is_scaled_in_its_cells():
  laws = UNIT[:2]
  cells = [{"dataset": d, "model": m} for d in "xyz" for m in "pq"]
  runs = design.random(laws, 100, cells=cells)
  size = runs.dataset.map({"x": 1.0, "y": 10.0, "z": 100.0})
  shape = np.where(runs.model == "p", runs.a, 1 - runs.a)
  runs["accuracy"] = size * shape
  found = analysis.fanova(
    runs, laws, context=["dataset", "model"], num_trees=64
  )
  assert found.share("context") < 0.02
  assert found.share("a*context") > 0.9


def test_shares_with_noise_are_of_the_whole_or_of_what_is_left():
  runs = drawn(UNIT, additive, 1000, noise=0.957)  # as much as the function
  whole, left = (
    analysis.fanova(runs, UNIT, effects=1, num_trees=64, noise_share=share)
    for share in (0.0, 0.5)
  )
  assert np.allclose(left.table.share, 2 * whole.table.share)
  assert left.share("c") == pytest.approx(ADDITIVE_SHARES["c"], abs=0.1)


def test_a_surrogate_that_predicts_badly_warns():
  runs = drawn(UNIT, additive, 100)
  coin = np.random.default_rng(0).integers(2, size=len(runs))
  with pytest.warns(UserWarning, match=r"error is 0\.4.*above 0.1"):
    found = analysis.fanova(runs.assign(accuracy=coin), UNIT, num_trees=8)
  assert "above 0.1" in found.warning
  assert found.mae > 0.4
  assert found.table.low.max() < 0.1


def test_one_seed_is_one_table_and_effects_can_be_named():
  runs = drawn(UNIT, additive, 200)
  tables = [
    analysis.fanova(runs, UNIT, effects=["c", "b*a"], num_trees=8, seed=3).table
    for _ in range(2)
  ]
  assert tables[0].equals(tables[1])
  assert list(tables[0].factors) == ["c", "a*b"]
  assert list(tables[0].columns) == ["factors", "share", "low", "high"]


def test_shares_are_laid_out_and_compared():
  runs = [drawn(UNIT, f, 400) for f in (additive, lambda t: t.a * t.b)]
  first, second = (
    analysis.fanova(table, UNIT, num_trees=16, num_bootstrap=200)
    for table in runs
  )
  matrix = first.matrix()
  assert list(matrix.columns) == list(matrix.index) == ["a", "b", "c"]
  assert matrix.loc["c", "c"] == first.share("c")
  assert matrix.loc["b", "a"] == matrix.loc["a", "b"] == first.share("a*b")
  assert matrix.notna().all(axis=None)
  change = second.difference(first, "a*b")
  # 1/7 of x y is its interaction.
  assert 0 < change.low < change.high
  assert change.mean == pytest.approx(1 / 7, abs=0.03)
  back = first.difference(second, "a*b")
  assert back[:3] == pytest.approx((-change.mean, -change.high, -change.low))


def test_of_runs_of_one_point_the_first_counts():
  """Pairs of them would be taken for interactions."""
  runs = drawn(UNIT, additive, 60)
  more = design.repeat_seeds(runs, 30, 3)
  parts = _surrogate.folds(more, 5, np.random.default_rng(0))
  assert sorted(np.concatenate(parts)) == list(range(len(more)))
  points = [set(more.point.iloc[part]) for part in parts]
  assert sum(map(len, points)) == len(set.union(*points))
  first, second = (
    analysis.fanova(t, UNIT, num_trees=8, num_bootstrap=20)
    for t in (runs, more)
  )
  assert second.table.equals(first.table)
  assert second.num_runs == 60


def test_what_cannot_be_analysed_is_refused():
  runs = drawn(UNIT, additive, 100)
  with pytest.raises(ValueError, match="1 runs have no finite accuracy"):
    analysis.fanova(runs.assign(accuracy=[np.nan, *runs.accuracy[1:]]), UNIT)
  with pytest.raises(ValueError, match="all accuracy agree"):
    analysis.fanova(runs.assign(accuracy=1.0), UNIT)
  with pytest.raises(ValueError, match=r"\['x'\] are no factors"):
    analysis.fanova(runs, UNIT, effects=["a*x"])
  with pytest.raises(ValueError, match="too few for 5 folds"):
    analysis.fanova(runs[:40], UNIT)
  with pytest.raises(ValueError, match='"response" or "surrogate"'):
    analysis.fanova(runs, UNIT, of="y")
  with pytest.raises(ValueError, match="is no level of c"):
    analysis.fanova(runs, [*UNIT[:2], design.Choice("c", (1, 2))])


def test_a_surrogate_predicts_scaled_responses_of_tables():
  runs = drawn(MIXED, product, 400)
  model = analysis.surrogate(runs, MIXED, num_trees=32)
  y = analysis.scaled(runs, "accuracy", ())
  assert np.allclose(model(runs), y)  # leaves of one run
  assert isinstance(runs, pd.DataFrame)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The surrogate's hold-out error")
@pytest.mark.parametrize(
  "name, num_runs, noise",
  [("additive", 400, 0.3), ("product", 400, 0.3), ("ishigami", 500, 0.0)],
)
def test_intervals_cover_the_truth(name, num_runs, noise):
  """200 designs of each function. Shares that are 0 lie on the border of what
  can be, and intervals may cover them always. Small forests predict worse, and
  their intervals must cover all the same."""
  factors, function, shares = KNOWN[name]
  spread = np.var(function(design.random(factors, 1 << 16)))
  scale = spread / (spread + noise**2)
  covered = dict.fromkeys(shares, 0)
  for seed in range(200):
    found = analysis.fanova(
      drawn(factors, function, num_runs, seed, noise),
      factors,
      num_trees=8,
      max_features=3,
      num_bootstrap=200,
      seed=seed,
    ).table
    for part, _, low, high in found.itertuples(index=False):
      covered[part] += low <= shares[part] * scale <= high
  print(name, {part: count / 200 for part, count in covered.items()})
  for part, count in covered.items():
    most = 0.99 if shares[part] else 1.0
    assert 0.9 <= count / 200 <= most, covered
