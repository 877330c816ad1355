r"""Functional ANOVA: the share of each factor and interaction in the variance.

Under a law with independent factors a function is a sum of components f_U, one
for each set U of factors, uncorrelated with each other; the share of U is
Var(f_U) / Var(f). A forest of extremely randomised trees is fitted to the runs,
and its components are exact (``_boxes``). But a forest is not the function. It
smooths: on the Ishigami function with 500 runs it keeps half of the variance,
of interactions less than of main effects. So two things can be asked for.

``of="response"`` (the default) asks for the function that made the runs. With
g the forest's component and h = f_U - g what it misses of f_U,

.. math:: E f_U^2 = E g^2 + 2 E[g h] + E h^2.

The first term is exact. The second is 2 E[g (y - f)] over runs that the forest
was not fitted to (cross-fitting), since f - forest has the component h. The
third is taken without bias from pairs of such runs, along the first few cosines
of each factor. Before that g is stretched to fit the held-out runs, its part
along these cosines and the rest apart, which narrows the interval. As bias only
what h has beyond the cosines remains: next to nothing for smooth functions, a
few percent of the share for an interaction of two jumps.

Shares are of the variance of the response; what components leave over is noise
and higher interactions. The interval is a bootstrap of the rows in all three
terms, and covers the share of the function under the law, *if the runs are
drawn from that law* (a random or Latin design): at 95 % in 91 to 99 % of 200 of
functions with known shares, ``tests/test_fanova.py``. A share that is 0 comes
out as 0 or a little more, with an interval from 0. Not for Sobol points: each
lies where the others are not, so that what is held out is harder than what the
law draws, and shares come out too large (Ishigami, no noise: 0.51 for 0.44).

``of="surrogate"`` is the published protocol: shares of the variance of the
forest itself. Its interval says how they move with the runs (half-samples, as
duplicates of a bootstrap would act as weights in trees that interpolate), and
nothing about the bias; it need not cover the function's shares.

References:
  Hutter, Hoos and Leyton-Brown 2014, ICML, for marginals from boxes.
  Geurts, Ernst and Wehenkel 2006, for the trees.
  Morsbach et al. 2024, arXiv:2411.02051, for the protocol.
  Robins et al. 2008, for the second-order term.
  Zou and Donner 2008, for intervals of differences.
"""

import dataclasses
import functools
import itertools
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd

from jaxdp.studies._laws import Choice, Factor, Sample
from jaxdp.studies._summary import Interval, difference
from jaxdp.studies.analysis._shares import (
  Subset,
  of_response,
  of_surrogate,
)
from jaxdp.studies.analysis._surrogate import (
  MAX_FEATURES,
  NUM_TREES,
  fit_forest,
  folds,
  scaled,
  space,
)

MAX_ERROR = 0.1  # of the hold-out, in units of the scaled response


@dataclasses.dataclass(frozen=True)
class Fanova:
  """Shares of the variance, and what they rest on.

  Attributes:
    table: one row a component: ``factors`` (joined by ``*``), ``share``, and
      its 95 % interval ``low``, ``high``.
    of: whose variance, "response" or "surrogate".
    mae: mean absolute error of the forest on runs held out, each once, in units
      of the response scaled to [0, 1] in each cell.
    r2: its share of their variance that the forest predicts.
    num_runs: that it was fitted to.
    warning: why not to trust the shares; None without a reason.
  """

  table: pd.DataFrame
  of: str
  mae: float
  r2: float
  num_runs: int
  warning: str | None

  def share(self, factors: str) -> float:
    """The share of one component, such as ``"lr*C"``."""
    return float(self.table.set_index("factors").share[factors])

  def closed(self, *factors: str) -> float:
    """The summed shares of the components, as far as there, of these alone."""
    inside = self.table.factors.map(lambda x: set(x.split("*")) <= set(factors))
    return float(self.table.share[inside].sum())

  def matrix(self) -> pd.DataFrame:
    """Shares of main effects (the diagonal) and interactions of two.

    NaN where a share was not asked for.
    """
    sets = {name: name.split("*") for name in self.table.factors}
    names = list(
      dict.fromkeys(part for parts in sets.values() for part in parts)
    )
    matrix = pd.DataFrame(np.nan, names, names)
    for name, parts in sets.items():
      if len(parts) <= 2:
        one, other = parts[0], parts[-1]
        matrix.loc[one, other] = matrix.loc[other, one] = self.share(name)
    return matrix

  def difference(self, other: "Fanova", factors: str) -> Interval:
    """By how much a share exceeds that of another, independent set of runs."""
    mine, theirs = (
      Interval(share, low, high, found.num_runs)
      for found in (self, other)
      for share, low, high in [
        found.table.set_index("factors").loc[factors].to_numpy(float)
      ]
    )
    return difference(mine, theirs)


def fanova(
  runs: pd.DataFrame,
  factors: Sequence[Factor | Choice | Sample],
  response: str = "accuracy",
  *,
  context: Sequence[str] = (),
  effects: int | Sequence[str] = 2,
  of: str = "response",
  noise_share: float = 0.0,
  num_trees: int = NUM_TREES,
  max_features: int = MAX_FEATURES,
  num_folds: int = 5,
  num_bootstrap: int = 1000,
  num_refits: int = 20,
  num_cells: int = 32,
  seed: int = 0,
) -> Fanova:
  """Shares of main effects and interactions in the variance of a response.

  Args:
    runs: one row a run. Of runs with equal ``point`` the first counts: the
      law draws points, and pairs of one point would act as interactions.
    factors: the input law, by factor: uniform on its scale, or a ``Sample``.
    response: the column that is explained.
    context: columns, such as dataset and model, whose combinations are cells.
      The response is scaled to [0, 1] within them, and they are one more
      factor, ``context``, at the frequencies of the runs.
    effects: up to which order, or the components by name, such as ``"lr*C"``.
    of: "response" or "surrogate", see the module.
    noise_share: the share of the response's variance that is seed noise, from
      ``noise_floor``; shares are then of what is left. For "response" only.
    num_trees: of each forest.
    max_features: columns that a split chooses from.
    num_folds: each is held out once; 5 makes splits of 80/20.
    num_bootstrap: resamplings of the rows, for "response".
    num_refits: half-samples, for "surrogate".
    num_cells: of a number's axis, on which its marginals are averaged.
    seed: determines all.

  Returns:
    The table, and the surrogate's error beside it.

  Warns:
    UserWarning: the hold-out error is above 0.1.
  """
  if of not in ("response", "surrogate"):
    raise ValueError(f'of must be "response" or "surrogate", got {of!r}.')
  if not 0 <= noise_share < 1:
    raise ValueError(f"noise_share must be in [0, 1), got {noise_share}.")
  if "point" in runs:
    runs = runs.drop_duplicates("point")
  if len(runs) < 10 * num_folds:
    raise ValueError(f"{len(runs)} runs are too few for {num_folds} folds.")
  y = scaled(runs, response, context)
  axes = space(runs, factors, context, num_cells)
  x = np.concatenate([axis.encode(runs) for axis in axes], axis=1)
  subsets = _subsets([axis.name for axis in axes], effects)
  rng = np.random.default_rng(seed)
  fit = functools.partial(
    fit_forest, num_trees=num_trees, max_features=max_features, rng=rng
  )
  parts = folds(runs, num_folds, rng)
  held_out = np.zeros(len(y))
  forests = []
  for part in parts:
    forest = fit(np.delete(x, part, 0), np.delete(y, part))
    held_out[part] = forest.predict(x[part])
    forests.append(forest if of == "response" else None)
  residual = y - held_out
  if of == "response":
    cells = [axis.cells(runs, rng) for axis in axes]
    shares = of_response(
      forests, axes, subsets, cells, parts, y, residual, num_bootstrap, rng
    )
    shares = shares / (1 - noise_share)
  else:
    shares = of_surrogate(fit, axes, subsets, x, y, num_refits, rng)
  mae = float(np.abs(residual).mean())
  warning = None
  if mae > MAX_ERROR:
    warning = (
      f"The surrogate's hold-out error is {mae:.3f} of the response's range, "
      f"above {MAX_ERROR}: its marginals may not be the response's."
    )
    warnings.warn(warning, stacklevel=2)
  table = pd.DataFrame(shares, columns=["share", "low", "high"])
  names = ["*".join(axes[j].name for j in subset) for subset in subsets]
  table.insert(0, "factors", names)
  return Fanova(
    table=table,
    of=of,
    mae=mae,
    r2=float(1 - np.mean(residual**2) / y.var()),
    num_runs=len(y),
    warning=warning,
  )


def _subsets(
  names: Sequence[str], effects: int | Sequence[str]
) -> list[Subset]:
  every = range(len(names))
  if isinstance(effects, int):
    orders = range(1, min(effects, len(names)) + 1)
    return [s for k in orders for s in itertools.combinations(every, k)]
  subsets = []
  for effect in effects:
    parts = effect.split("*")
    if unknown := sorted(set(parts) - set(names)):
      raise ValueError(f"{unknown} are no factors; there are {list(names)}.")
    subsets.append(tuple(sorted({names.index(part) for part in parts})))
  return subsets
