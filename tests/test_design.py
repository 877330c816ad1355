"""Designs: the laws they state, balance, and the same table for one seed."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from jaxdp.studies import design

FACTORS = (
  design.Factor("lr", 1e-3, 10.0, scale="log"),
  design.Factor("C", 0.5, 2.5),
  design.Factor("batch_size", 16, 96, step=16),
  design.Choice("rule", ("flat", "normalized", "psac")),
)
CELLS = tuple(
  {"dataset": name, "epsilon": eps} for name in ("a", "b") for eps in (1, 3)
)
DRAWN = {
  "random": design.random,
  "latin_hypercube": design.latin_hypercube,
  "sobol": design.sobol,
}


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_factors_have_the_law_they_state(draw):
  table = draw(FACTORS, 1024, seed=1)
  uniform = {
    "lr": np.log(table.lr / 1e-3) / np.log(1e4),
    "C": (table.C - 0.5) / 2,
  }
  for values in uniform.values():
    assert stats.kstest(values, "uniform").pvalue > 0.01
  for name, size in (("batch_size", 6), ("rule", 3)):
    counts = table[name].value_counts()
    assert len(counts) == size
    assert stats.chisquare(counts).pvalue > 0.01
  assert sorted(table.batch_size.unique()) == [16, 32, 48, 64, 80, 96]
  assert pd.api.types.is_integer_dtype(table.batch_size)


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_one_seed_is_one_design(draw):
  table = draw(FACTORS, 16, cells=CELLS, seed=7)
  assert table.equals(draw(FACTORS, 16, cells=CELLS, seed=7))
  assert not table.equals(draw(FACTORS, 16, cells=CELLS, seed=8))
  assert list(table.run) == list(range(64))
  assert not table.seed.duplicated().any()


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_a_cell_draws_its_own_points_whatever_the_others(draw):
  table = draw(FACTORS, 16, cells=CELLS, seed=7)
  parts = [part.lr.to_numpy() for _, part in table.groupby("dataset")]
  assert not np.isin(parts[0], parts[1]).any()
  alone = draw(FACTORS, 16, cells=CELLS[2:3], seed=7)
  same = table[(table.dataset == "b") & (table.epsilon == 1)]
  for name in ("lr", "C", "batch_size", "rule"):
    assert list(alone[name]) == list(same[name])


def test_a_latin_hypercube_has_one_run_in_every_range():
  table = design.latin_hypercube(FACTORS[:2], 40, seed=3)
  for factor in FACTORS[:2]:
    bins = np.floor(factor.quantile(table[factor.name]) * 40)
    assert sorted(bins) == list(range(40))


def test_a_full_factorial_has_every_combination_once():
  table = design.factorial(
    FACTORS, {"lr": 5, "C": 2, "batch_size": 3}, cells=CELLS
  )
  assert len(table) == 4 * 5 * 2 * 3 * 3
  names = ["dataset", "epsilon", *(factor.name for factor in FACTORS)]
  assert not table.duplicated(names).any()
  assert np.allclose(np.unique(table.lr), [1e-3, 1e-2, 1e-1, 1, 10])
  assert sorted(table.batch_size.unique()) == [16, 64, 96]


def test_a_fraction_is_balanced_and_its_columns_are_orthogonal():
  factors = [design.Factor(name, -1, 1) for name in "ABCDE"]
  table = design.fractional(factors, {"D": "A*B*C", "E": "-A*B"})
  signs = table[list("ABCDE")].to_numpy()
  assert len(table) == 8
  assert np.array_equal(signs.T @ signs, 8 * np.eye(5))
  assert (table.D == table.A * table.B * table.C).all()
  assert (table.E == -table.A * table.B).all()


def test_fractions_that_cannot_be_are_refused():
  factors = [design.Factor(name, -1, 1) for name in "ABC"]
  with pytest.raises(ValueError, match=r"name \['X'\], which are no factors"):
    design.fractional(factors, {"C": "A*X"})
  with pytest.raises(ValueError, match="have generators themselves"):
    design.fractional(factors, {"C": "A*B", "B": "A"})
  with pytest.raises(ValueError, match="3 values"):
    design.fractional([*factors, design.Choice("D", "xyz")], {})


# The published law.


def test_the_published_law_makes_half_of_all_runs_two_batches_an_epoch():
  cells = [{"dataset": "a", "num_examples": 50_000}]
  table = design.published(4000, cells=cells, seed=0)
  noise = 4 * np.sqrt(0.25 / 4000)
  # N/B uniform on (0, 1): ceil = 2 on [1/2, 1), 3 on [1/3, 1/2), ...
  for batches, share in ((2, 1 / 2), (3, 1 / 6), (4, 1 / 12)):
    assert abs(np.isclose(table.q, 1 / batches).mean() - share) < noise
  assert (table.num_steps == np.rint(table.epochs / table.q)).all()
  assert table.lr.between(1e-5, 10).all()
  assert abs((table.lr > 1).mean() - 0.9) < noise
  assert (table.batch_size % 16 == 0).all()
  assert table.batch_size.between(16, 50_000).all()
  assert sorted(table.epochs.unique()) == list(range(25, 501, 5))


def test_the_true_batch_size_keeps_the_points_and_changes_q():
  cells = [{"num_examples": 1600}]
  nominal = design.published(50, cells=cells, nominal=True)
  true = design.published(50, cells=cells, nominal=False)
  assert nominal.batch_size.equals(true.batch_size)
  assert np.allclose(true.q, true.batch_size / 1600)
  assert (nominal.q <= true.q + 1e-12).all()
  with pytest.raises(ValueError, match="needs num_examples"):
    design.published(50, cells=[{}])


@pytest.mark.parametrize("nominal", (True, False))
def test_the_whole_data_as_a_batch_is_q_one(nominal):
  table = pd.DataFrame(
    {"num_examples": [100], "batch_size": [100], "epochs": [7]}
  )
  done = design.with_steps(table, nominal=nominal)
  assert (done.q[0], done.num_steps[0]) == (1.0, 7)
  with pytest.raises(ValueError, match="<= num_examples"):
    design.with_steps(table.assign(num_examples=99), nominal=nominal)


# Seeds and files.


def test_repetitions_differ_in_their_seed_alone():
  table = design.random(FACTORS, 20, cells=CELLS)
  more = design.repeat_seeds(table, 5, 3)
  assert more.iloc[:80].equals(table)
  assert len(more) == 80 + 5 * 2
  assert not more.seed.duplicated().any()
  assert list(more.run) == list(range(90))
  sizes = more.groupby("point").size()
  assert (sizes == 3).sum() == 5
  names = ["dataset", "epsilon", *(factor.name for factor in FACTORS)]
  assert (more.groupby("point")[names].nunique() == 1).all(axis=None)
  with pytest.raises(ValueError, match="holds repetitions"):
    design.repeat_seeds(more, 5, 3)


def test_a_file_keeps_its_design(tmp_path):
  path = tmp_path / "study" / "design.parquet"
  table = design.random(FACTORS, 10, cells=CELLS)
  design.save(table, path)
  design.save(table, path)
  assert design.load(path).equals(table)
  with pytest.raises(ValueError, match="holds another design"):
    design.save(design.random(FACTORS, 10, cells=CELLS, seed=1), path)
  assert design.load(path).equals(table)
  assert [file.name for file in path.parent.iterdir()] == ["design.parquet"]


# Laws.


def test_quantiles_and_values_are_inverse():
  u = (np.arange(60) + 0.5) / 60
  for factor in FACTORS[:2]:
    assert np.allclose(factor.quantile(factor.at(u)), u)
  stepped = FACTORS[2]
  assert np.allclose(
    stepped.quantile(stepped.at(u)), np.floor(u * 6) / 6 + 1 / 6
  )
  assert np.allclose(
    stepped.quantile([15, 16, 40, 96, 99]), [0, 1, 2, 6, 6] / np.array(6)
  )
  sample = design.Sample("q", [0.5, 0.25, 0.5, 1.0])
  assert list(sample.at(np.array([0, 0.3, 0.6, 0.9]))) == [0.25, 0.5, 0.5, 1]
  assert list(sample.quantile([0.2, 0.25, 0.5, 2])) == [0, 0.25, 0.75, 1]


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: design.Factor("x", 1, 1), "low must be < high"),
    (lambda: design.Factor("x", 0, 1, scale="log"), "needs low > 0"),
    (lambda: design.Factor("x", 1, 2, scale="ln"), '"linear" or "log"'),
    (lambda: design.Factor("x", 1, 2, step=0), "step must be > 0"),
    (lambda: design.Choice("x", "aa"), "each once"),
    (lambda: design.sobol(FACTORS, 12), "Use 8 or 16"),
    (lambda: design.random([design.Factor("run", 0, 1)], 2), "none called"),
    (
      lambda: design.random(FACTORS, 2, cells=[{"a": 1}, {"b": 1}]),
      "same keys",
    ),
  ],
)
def test_designs_that_mislead_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()
