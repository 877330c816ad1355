"""Designs: which runs a study makes, as a table fixed before anything runs.

A factor has a law on a scale. A design draws points from the laws of several
factors, anew in every cell (say, of dataset and model), and gives a table with
one row a run:

| column | what |
|---|---|
| `run` | 0, 1, ..: the run's name for good |
| `point` | runs of one point differ in nothing but their seed |
| `seed` | of initial parameters, sampling and noise |
| the keys of the cells | `dataset`, `model`, `epsilon`, `num_examples`, .. |
| the names of the factors | `lr`, `C`, `batch_size`, `epochs`, .. |

All is determined by one integer, and a cell's points neither by the other cells
nor by their order. Read `Factor`, `random`, `published`, `save`.

Example:
  >>> factors = [Factor("lr", 1e-3, 10.0, scale="log"), Choice("net", "ab")]
  >>> table = latin_hypercube(factors, 4, cells=[{"dataset": "digits"}])
  >>> list(table.columns)
  ['run', 'point', 'seed', 'dataset', 'lr', 'net']
  >>> sorted(table.net)
  ['a', 'a', 'b', 'b']
"""

import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import qmc

from jaxdp import _types
from jaxdp.studies._laws import Choice, Factor, Law, Sample

_MOST_RUNS = 1_000_000  # of a cell

__all__ = [
  "Choice",
  "Factor",
  "Law",
  "Sample",
  "factorial",
  "fractional",
  "latin_hypercube",
  "load",
  "published",
  "random",
  "repeat_seeds",
  "save",
  "sobol",
  "with_steps",
]

Cell = Mapping[str, Any]

# Designs.


def factor(values: Mapping[str, Any]) -> Factor | Choice:
  """A ``Choice`` if ``values`` are among its fields, else a ``Factor``."""
  kind: Any = Choice if "values" in values else Factor
  _types.check_call(f"factor {values.get('name')!r}", kind, values)
  made: Factor | Choice = kind(**values)
  return made


def factorial(
  factors: Sequence[Factor | Choice],
  levels: int | Mapping[str, int] = 2,
  *,
  cells: Sequence[Cell] = ({},),
  seed: int = 0,
) -> pd.DataFrame:
  """Every combination of levels: of a choice all values, else ``levels``.

  Args:
    factors: what varies.
    levels: how many values of a ``Factor``, at equal distances on its scale
      from low to high; one number, or one by name of the factor.
    cells: in each of which all combinations run.
    seed: of the runs' seeds.
  """

  def values(factor: Factor | Choice) -> np.ndarray:
    if isinstance(factor, Choice):
      return np.asarray(factor.values)
    count = levels if isinstance(levels, int) else levels[factor.name]
    if count < 2:
      raise ValueError(f"levels of {factor.name} must be >= 2, got {count}.")
    return factor.at(np.linspace(0, 1, count))

  grid = list(itertools.product(*map(values, factors)))
  columns = [np.asarray(column) for column in zip(*grid, strict=True)]
  return _table(factors, lambda _: columns, cells, seed)


def fractional(
  factors: Sequence[Factor | Choice],
  generators: Mapping[str, str],
  *,
  cells: Sequence[Cell] = ({},),
  seed: int = 0,
) -> pd.DataFrame:
  """A two-level fraction: some factors are products of the others.

  With levels written as -1 and 1, a full factorial of the factors without a
  generator, and each of the others the product its generator states. What is
  confounded follows from the products: with ``{"D": "A*B*C"}`` each main effect
  is confounded with an interaction of three (resolution IV).

  Args:
    factors: each at two levels, low and high, or a choice of two.
    generators: by name of a factor, the names it is the product of, joined by
      ``*``; a minus in front turns its levels around.
    cells: in each of which the fraction runs.
    seed: of the runs' seeds.
  """
  names = [factor.name for factor in factors]
  base = [name for name in names if name not in generators]
  words = {
    name: (word.startswith("-"), word.removeprefix("-").split("*"))
    for name, word in generators.items()
  }
  used = set(generators).union(*(word for _, word in words.values()))
  if unknown := sorted(used - set(names)):
    raise ValueError(f"generators name {unknown}, which are no factors.")
  if circular := sorted(
    {part for _, word in words.values() for part in word} - set(base)
  ):
    raise ValueError(
      f"generators are of {circular}, which have generators themselves. State "
      f"products of {base} alone."
    )
  signs = np.array(list(itertools.product((-1, 1), repeat=len(base))))
  level = dict(zip(base, signs.T, strict=True))
  for name, (turned, word) in words.items():
    product = np.prod([level[part] for part in word], axis=0)
    level[name] = -product if turned else product

  def column(factor: Factor | Choice) -> np.ndarray:
    if isinstance(factor, Choice) and len(factor.values) != 2:
      raise ValueError(
        f"{factor.name} has {len(factor.values)} values. A fraction is of two "
        "levels; use factorial, or put it into the cells."
      )
    return factor.at((level[factor.name] + 1) / 2)

  columns = [column(factor) for factor in factors]
  return _table(factors, lambda _: columns, cells, seed)


def random(
  factors: Sequence[Law],
  num_runs: int,
  *,
  cells: Sequence[Cell] = ({},),
  seed: int = 0,
) -> pd.DataFrame:
  """``num_runs`` independent points in every cell."""
  return _drawn(
    factors, num_runs, lambda rng, d: rng.random((num_runs, d)), cells, seed
  )


def latin_hypercube(
  factors: Sequence[Law],
  num_runs: int,
  *,
  cells: Sequence[Cell] = ({},),
  seed: int = 0,
) -> pd.DataFrame:
  """A Latin hypercube in every cell.

  Guarantees:
    Of each factor's ``num_runs`` equally likely ranges, each holds one run.

  References:
    McKay, Beckman and Conover 1979, Technometrics 21(2).
  """
  return _drawn(
    factors,
    num_runs,
    lambda rng, d: qmc.LatinHypercube(d, rng=rng).random(num_runs),
    cells,
    seed,
  )


def sobol(
  factors: Sequence[Law],
  num_runs: int,
  *,
  cells: Sequence[Cell] = ({},),
  seed: int = 0,
) -> pd.DataFrame:
  """Scrambled Sobol points in every cell; ``num_runs`` a power of two.

  For maps of a response. The intervals of ``analysis.fanova`` ask for points
  that are drawn apart from each other: ``random`` or ``latin_hypercube``.

  References:
    Owen 1998, Journal of Complexity 14(4), for the scrambling.
  """
  if num_runs < 1 or num_runs & (num_runs - 1):
    above = 1 << max(num_runs, 1).bit_length()
    raise ValueError(
      f"num_runs must be a power of two, or the points lose their balance; got "
      f"{num_runs}. Use {above // 2} or {above}, or latin_hypercube."
    )
  return _drawn(
    factors,
    num_runs,
    lambda rng, d: qmc.Sobol(d, rng=rng).random(num_runs),
    cells,
    seed,
  )


def published(
  num_runs: int,
  *,
  cells: Sequence[Cell],
  nominal: bool = True,
  epochs: tuple[int, int] = (25, 500),
  seed: int = 0,
) -> pd.DataFrame:
  r"""The sampling law of "R+R: Understanding Hyperparameter Effects in DP-SGD".

  lr and C uniform on (1e-5, 10), the batch size on 16, 32, .. up to N, epochs
  on 25, 30, .. up to 500, or another range in steps of five.

  Args:
    num_runs: in each cell.
    cells: each with ``num_examples``, the N of its dataset.
    nominal: how batch size and epochs are realised, see ``with_steps``.
    epochs: the least and the largest.
    seed: determines all.

  References:
    Morsbach, Reubold and Strufe 2024, arXiv:2411.02051; the law as read off
    the runs that its authors published.
  """
  parts = []
  for cell in cells:
    if "num_examples" not in cell:
      raise ValueError(f"A cell needs num_examples, got {dict(cell)}.")
    factors = [
      Factor("lr", 1e-5, 10.0),
      Factor("C", 1e-5, 10.0),
      Factor("batch_size", 16, int(cell["num_examples"]), step=16),
      Factor("epochs", *epochs, step=5),
    ]
    parts.append(random(factors, num_runs, cells=[cell], seed=seed))
  table = pd.concat(parts, ignore_index=True)
  table["run"] = table["point"] = np.arange(len(table))
  return with_steps(table, nominal=nominal)


def with_steps(table: pd.DataFrame, *, nominal: bool) -> pd.DataFrame:
  r"""Adds ``q`` and ``num_steps`` to a table of batch sizes and epochs.

  .. math::
    q = 1 / \lceil N / B \rceil,\ T = E \lceil N / B \rceil
    \quad\text{(nominal)};\qquad q = B / N,\ T = \mathrm{round}(E N / B)

  Args:
    table: with ``batch_size``, ``epochs`` and ``num_examples``.
    nominal: as a loader that cuts the data into batches and hands their number
      to a Poisson sampler (the published runs): every batch size above N/2, but
      N itself, becomes q = 1/2. False: the batch size is q N.
  """
  ratio = table["num_examples"] / table["batch_size"]
  if (ratio < 1).any():
    raise ValueError("batch_size must be <= num_examples.")
  batches = np.ceil(ratio) if nominal else ratio
  steps = np.maximum(np.rint(table["epochs"] * batches), 1).astype(int)
  return table.assign(q=1 / batches, num_steps=steps)


def repeat_seeds(
  table: pd.DataFrame, num_points: int, num_seeds: int, *, seed: int = 0
) -> pd.DataFrame:
  """Repeats some points with further seeds, to see the noise floor.

  Args:
    table: a design without repetitions.
    num_points: of the points, this many are drawn to be repeated.
    num_seeds: seeds of each of them, the one it has included.
    seed: determines which, and their seeds.

  Returns:
    The table, followed by the repetitions; a run keeps its number.
  """
  if not 0 <= num_points <= len(table):
    raise ValueError(
      f"num_points must be in [0, {len(table)}], got {num_points}."
    )
  if num_seeds < 2:
    raise ValueError(f"num_seeds must be >= 2, got {num_seeds}.")
  if table["point"].duplicated().any():
    raise ValueError("The table holds repetitions: give one without.")
  rng = np.random.default_rng([seed, 1])
  rows = np.sort(rng.choice(len(table), num_points, replace=False))
  more = table.iloc[np.repeat(rows, num_seeds - 1)].copy()
  more["seed"] = _seeds(rng, len(more), taken=set(table["seed"]))
  table = pd.concat([table, more], ignore_index=True)
  return table.assign(run=np.arange(len(table)))


def _seeds(rng: np.random.Generator, count: int, taken: set[int]) -> np.ndarray:
  """Seeds that are distinct and not taken."""
  seeds: dict[int, None] = {}
  while len(seeds) < count:
    draw = int(rng.integers(2**31))
    if draw not in taken:
      seeds[draw] = None
  return np.fromiter(seeds, np.int64, count)


def _drawn(
  factors: Sequence[Law],
  num_runs: int,
  draw: Callable[[np.random.Generator, int], np.ndarray],
  cells: Sequence[Cell],
  seed: int,
) -> pd.DataFrame:
  if not 1 <= num_runs <= _MOST_RUNS:
    raise ValueError(
      f"num_runs must be in [1, {_MOST_RUNS:,}], got {num_runs}."
    )

  def columns(rng: np.random.Generator) -> list[np.ndarray]:
    quantiles = draw(rng, len(factors))
    return [f.at(u) for f, u in zip(factors, quantiles.T, strict=True)]

  return _table(factors, columns, cells, seed)


def _table(
  factors: Sequence[Law],
  columns: Callable[[np.random.Generator], list[np.ndarray]],
  cells: Sequence[Cell],
  seed: int,
) -> pd.DataFrame:
  names = [factor.name for factor in factors]
  fixed = ["run", "point", "seed"]
  every = [*fixed, *names, *(cells[0] if cells else ())]
  if not factors or not cells or len(set(every)) < len(every):
    raise ValueError(
      "A design needs factors and cells, each column once, and none called "
      f"{fixed}; got {every}."
    )
  parts = []
  taken: set[int] = set()
  for cell in cells:
    if cell.keys() != cells[0].keys():
      raise ValueError(
        f"Cells must have the same keys, got {dict(cells[0])} and {dict(cell)}."
      )
    text = json.dumps(dict(cell), sort_keys=True, default=str).encode()
    name = int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
    rng = np.random.default_rng([seed, 0, name])
    drawn = dict(zip(names, columns(rng), strict=True))
    part = pd.DataFrame(drawn)
    for place, (key, value) in enumerate(cell.items()):
      part.insert(place, key, value)
    part.insert(0, "seed", _seeds(rng, len(part), taken))
    taken |= set(part["seed"])
    parts.append(part)
  table = pd.concat(parts, ignore_index=True)
  table.insert(0, "point", np.arange(len(table)))
  table.insert(0, "run", np.arange(len(table)))
  return table


# Files.


def save(table: pd.DataFrame, path: str | os.PathLike[str]) -> None:
  """Writes a design as Parquet; a file with another design is left alone.

  Raises:
    ValueError: the file holds another design.
  """
  path = pathlib.Path(path)
  if path.exists():
    if not load(path).equals(table.reset_index(drop=True)):
      raise ValueError(
        f"{path} holds another design. Its runs would be mixed with those of "
        "this one: take another folder, or remove this one."
      )
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  # By way of another name, so that a file is there whole or not at all.
  partial = path.with_name(f"{path.name}.{os.getpid()}")
  table.to_parquet(partial, index=False)
  partial.replace(path)


def load(path: str | os.PathLike[str]) -> pd.DataFrame:
  """Reads what ``save`` wrote."""
  return pd.read_parquet(path)
