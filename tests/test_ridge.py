"""Ridge, ranks, repeated seeds, comparisons and verdicts on made-up runs."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from jaxdp.studies import analysis, design
from jaxdp.studies.analysis import _ridge
from jaxdp.studies.analysis._verdicts import MATTERS

LAWS = [
  design.Factor("lr", 1e-3, 10.0, scale="log"),
  design.Factor("C", 1e-3, 10.0, scale="log"),
  design.Factor("batch_size", 16, 1600, step=16),
  design.Factor("epochs", 5, 50, step=5),
]
CELLS = [{"dataset": name, "num_examples": 3200} for name in ("a", "b")]


def study(accuracy, num_runs=300, nominal=False, noise=0.02, seed=0):
  runs = design.random(LAWS, num_runs, cells=CELLS, seed=seed)
  runs = design.with_steps(runs, nominal=nominal)
  rng = np.random.default_rng(seed)
  more = noise * rng.standard_normal(len(runs))
  return runs.assign(accuracy=accuracy(runs) + more)


def on_ridge(slope):
  """Best where log lr = slope log C - 2."""

  def accuracy(t):
    away = np.log(t.lr) - slope * np.log(t.C) + 2
    return np.exp(-((away / 3) ** 2))

  return accuracy


# Ridge.


@pytest.mark.parametrize("slope", (-1.0, -0.5))
def test_the_ridge_has_the_slope_it_was_made_with(slope):
  found = analysis.ridge(
    study(on_ridge(slope), noise=0.0),
    context=["dataset"],
    num_bootstrap=200,
  )
  assert found.mean == pytest.approx(slope, abs=0.05)
  assert found.low < slope < found.high
  assert found.num_seeds == 60


@pytest.mark.slow
def test_where_lr_is_the_rate_the_best_does_not_move():
  """A band wider than it is long: its axis may point anywhere."""

  def accuracy(t):
    return np.exp(-((np.log(t.lr) / 8) ** 2))

  runs = study(accuracy, noise=0.08)
  found = analysis.ridge(
    runs, context=["dataset"], orthogonal=False, num_bootstrap=200
  )
  assert -0.5 < found.low < 0 < found.high < 0.5
  assert analysis.rate_name(runs) == "lr C"
  told = judged(runs.assign(rate=runs.lr))
  still = "The best learning rate does not move with the clip norm."
  assert told.verdict[still] == "supported"
  assert told.verdict["The clip norm matters only through the rate."] == (
    "supported"
  )


def test_a_ridge_needs_runs():
  with pytest.raises(ValueError, match="a slope needs three"):
    analysis.ridge(study(on_ridge(-1), num_runs=15), context=["dataset"])


def test_ranks_are_scipys_and_the_median_is_over_cells():
  runs = study(lambda t: t.epochs * np.where(t.dataset == "a", 1, -1) / 50)
  parts = [
    stats.spearmanr(cell.epochs, cell.accuracy).statistic
    for _, cell in runs.groupby("dataset")
  ]
  found = analysis.rank_correlation(
    runs, "epochs", context=["dataset"], num_bootstrap=100
  )
  assert found.mean == pytest.approx(np.median(parts))
  assert found.low <= found.mean <= found.high
  ties = np.array([3.0, 1, 3, 2, 1])
  assert np.array_equal(_ridge.rank(ties), stats.rankdata(ties))


def test_the_lowest_quarter_is_where_lr_c_is_small():
  """More epochs help there, and nowhere else."""
  runs = study(
    lambda t: t.epochs / 50 * (t.lr * t.C < 0.002), num_runs=600, noise=1e-3
  )
  whole, lowest = (
    analysis.rank_correlation(
      runs, "epochs", context=["dataset"], lowest_rate=low, num_bootstrap=100
    )
    for low in (False, True)
  )
  assert lowest.num_seeds == 300
  assert lowest.mean > 0.5 > whole.mean + 0.2


def test_the_product_explains_what_depends_on_the_product():
  runs = study(on_ridge(-1), num_runs=120)
  one, both, none = (
    analysis.explained(runs, names, context=["dataset"])
    for names in (["rate"], ["lr", "C"], ["epochs"])
  )
  assert one > 0.95
  assert one == pytest.approx(both, abs=0.02)
  assert none < 0.1


def test_a_gain_is_the_share_of_all_components_with_a_column():
  """Of two independent factors, with noise: f = x + y + xy, x and y normal."""
  rng = np.random.default_rng(0)
  x, y = rng.standard_normal((2, 300))
  runs = pd.DataFrame({"x": x, "y": y})
  runs["accuracy"] = x + y + x * y + rng.standard_normal(300)
  found = analysis.gain(runs, ["y"], ["x"], num_bootstrap=200)
  assert found.low < 2 / 4 < found.high
  assert found.r2 == pytest.approx(3 / 4, abs=0.06)
  none = analysis.gain(runs.assign(accuracy=x), ["y"], ["x"], num_bootstrap=200)
  assert abs(none.mean) < 0.01


def through_lr_c(weight):
  """A ridge of lr C with slopes, and of C alone as much as the weight."""

  def accuracy(t):
    away = np.log(t.lr * t.C) + 4
    return np.exp(-((away / 4) ** 2)) + weight * np.log(t.C) / 9.2

  return accuracy


@pytest.mark.parametrize(
  "weight, verdict", [(0.0, "supported"), (0.5, "not supported")]
)
def test_whether_c_matters_but_through_the_rate_is_seen(weight, verdict):
  """The control: C alone with a seventh of the variance."""
  for small in (False, True):
    found = analysis.through_rate(
      study(through_lr_c(weight), num_runs=200),
      small=small,
      context=["dataset"],
      num_bootstrap=200,
    )
    says = max(found.high, -found.low) < MATTERS, found.low > MATTERS
    assert says == (verdict == "supported", verdict == "not supported")


# Seeds.


def test_holm_is_the_step_down():
  assert np.allclose(
    analysis.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02]
  )
  assert list(analysis.holm([0.9, 0.8])) == [1, 1]


def test_holm_makes_a_false_rejection_as_rarely_as_it_says():
  rng = np.random.default_rng(0)
  false = [(analysis.holm(rng.random(10)) < 0.05).any() for _ in range(4000)]
  assert abs(np.mean(false) - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 4000)


def test_arms_are_compared_seed_by_seed():
  rng = np.random.default_rng(0)
  base = rng.standard_normal(8)
  table = pd.concat(
    pd.DataFrame({"arm": arm, "seed": range(8), "accuracy": base + more})
    for arm, more in (
      ("flat", 0.0),
      ("same", 0.0),
      ("better", 0.2 + 0.01 * rng.standard_normal(8)),
      ("alike", 0.2 * rng.standard_normal(8)),
    )
  )
  found = analysis.compare(table, "arm", "flat").set_index("arm")
  assert found.p["same"] == 1
  assert found.p_holm["better"] < 1e-4
  assert found.p_holm["alike"] > 0.05
  better = table.accuracy[table.arm == "better"].to_numpy()
  assert found.p["better"] == pytest.approx(
    stats.ttest_rel(better, base).pvalue
  )
  assert found.difference["better"] == pytest.approx((better - base).mean())
  assert 0 < found.low["better"] < found.high["better"]
  with pytest.raises(ValueError, match="reference must be one of"):
    analysis.compare(table, "arm", "psac")
  one = table[table.seed == 0]
  assert (analysis.compare(one, "arm", "flat").p == 1).all()


def test_the_noise_floor_is_the_variance_between_seeds():
  runs = design.random(LAWS, 300)
  runs = design.repeat_seeds(runs, 60, 3)
  truth = np.log(runs.lr)  # variance log(1e4)^2 / 12
  noise = 1.0 * np.random.default_rng(0).standard_normal(len(runs))
  runs["accuracy"] = truth + noise
  found = analysis.noise_floor(runs, num_bootstrap=200)
  assert found.stddev == pytest.approx(1, abs=4 / np.sqrt(2 * 120))
  share = 1 / (1 + np.log(1e4) ** 2 / 12)
  assert found.low < share < found.high
  assert found.share == pytest.approx(share, abs=0.05)
  assert (found.num_points, found.num_runs) == (60, 180)
  with pytest.raises(ValueError, match="No point was repeated"):
    analysis.noise_floor(runs.drop_duplicates("point"))


# Verdicts.


def judged(runs):
  shares = analysis.fanova(
    runs,
    [*LAWS[:2], LAWS[3], design.Sample("q", runs.q)],
    context=["dataset"],
    num_trees=32,
    num_bootstrap=200,
  )
  table = analysis.verdicts(
    runs, shares, context=["dataset"], num_bootstrap=100
  )
  columns = ["conjecture", "verdict", "evidence", "confidence"]
  columns += ["number", "value", "low", "high"]
  assert list(table.columns) == columns
  return table.set_index("conjecture")


RIDGE = "Learning rate and clip norm are inversely related, lr C constant."
WORLDS = {
  "Batch size matters most.": ("not supported", "supported"),
  "Batch size and epochs interact.": ("not supported", "supported"),
  "Learning rate and clip norm interact.": ("supported", "not supported"),
  "The nominal batch size is the one that trained.": 2 * ("supported",),
}


@pytest.mark.slow
def test_verdicts_follow_the_runs():
  """Two worlds that differ in what matters get opposite verdicts."""
  ridge = judged(study(on_ridge(-1)))
  batch = judged(study(lambda t: 2 * t.q + t.q * t.epochs / 10))
  for conjecture, (first, second) in WORLDS.items():
    assert ridge.verdict[conjecture] == first, ridge.evidence[conjecture]
    assert batch.verdict[conjecture] == second, batch.evidence[conjecture]
  assert tuple(ridge.loc[RIDGE, ["verdict", "confidence"]]) == (
    "supported",
    "high",
  )
  assert batch.verdict[RIDGE] != "supported"
  better = "Larger batches are better."
  assert batch.verdict[better] == "supported"
  assert ridge.verdict[better] != "supported"
  assert "rank correlation with q: 0." in batch.evidence[better]


def test_nominal_batch_sizes_are_seen_to_be_confounded():
  runs = study(on_ridge(-1), nominal=True).assign(num_examples=1600)
  runs = design.with_steps(runs, nominal=True)
  _, verdict, evidence, _ = analysis.confounding(runs)
  assert verdict == "not supported"
  assert f"{np.isclose(runs.q, 0.5).mean():.0%} of runs trained at" in evidence


def test_doubts_lower_the_confidence():
  """Half as many runs, and a surrogate that says that it errs."""
  with pytest.warns(UserWarning, match="above 0.1"):
    few = judged(study(on_ridge(-1), num_runs=100, noise=0.15))
  clear = few.verdict != "undecided"
  assert (few.confidence[~clear] == "low").all()
  assert few.confidence[RIDGE] in ("medium", "low")
  by_shares = few.evidence.str.contains("main effects|share of")
  assert (few.confidence[clear & by_shares] == "low").all()


def test_verdicts_need_the_shares_they_judge_by():
  runs = study(on_ridge(-1))
  shares = analysis.fanova(runs, LAWS[:2], num_trees=8)
  with pytest.raises(ValueError, match=r"no main effect of \['epochs'"):
    analysis.verdicts(runs, shares)
