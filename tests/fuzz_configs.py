"""Overrides of the shipped configs, right and wrong, by Hypothesis.

    python -m tests.fuzz_configs --minutes=10 --seed=0

Each example takes a config of `configs/`, changes up to four of its values (or
leaves some out, or adds some), and goes to where training would compile for the
first time. It must be accepted, or refused by jaxdp; anything *other* is a
traceback that a user would see. Data are made up, of the shapes of the real.
"""

import argparse
import collections
import copy
import dataclasses
import logging
import pathlib
import runpy
import sys
import time
import traceback
import warnings
from collections.abc import Mapping
from unittest import mock

import hypothesis
import numpy as np
from hypothesis import strategies as st

from jaxdp import data, errors, studies
from jaxdp.studies import _precheck, _survey_report
from tests import gate

_ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIGS = (
  *("digits", "dp_psasc", "mnist", "cifar10", "imdb"),
  *(f"studies/psasc:{name}" for name in ("digits", "mnist", "cifar10")),
  *(f"studies/batch_clipping:{name}" for name in ("digits", "cifar10")),
  *(f"studies/rr_digits:{law}" for law in ("published", "log", "normalized")),
  *(f"studies/rr_images:{name}-log" for name in ("mnist", "cifar10")),
  "studies/rr_text:normalized",
  "studies/rr_published",
)
_SHAPES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}


def read(name):
  """A shipped config, as plain values."""
  path, _, argument = name.partition(":")
  space = runpy.run_path(str(_ROOT / "configs" / f"{path}.py"))
  config = space["get_config"](*([argument] if argument else []))
  return copy.deepcopy(config.to_dict())


def leaves(values, path=()):
  """Paths of all values, those of sections too."""
  for name, value in values.items():
    yield (*path, name)
    if isinstance(value, Mapping):
      yield from leaves(value, (*path, name))


_REAL = data.load


def made_up(name, split="train", **places):
  """Stands for `data.load`; what it does not know is looked for in earnest."""
  rows = 60_000 if split == "train" else 1000
  if name in _SHAPES:
    rows = np.broadcast_to(np.uint8(7), (rows, *_SHAPES[name]))
    return {"image": rows, "label": np.arange(len(rows), dtype=np.int32) % 10}
  if name == "imdb_reviews":
    rows = np.broadcast_to(np.int32(7), (25_000, 256))
    return {"text": rows, "label": np.arange(len(rows), dtype=np.int32) % 2}
  return _REAL(name, split, **places)


_NUMBERS = st.sampled_from(
  [
    *(-1, 0, 1, 2, 3, 7, 16, 100, 1437, 10_000, 2**31 - 1, 2**31, 10**12),
    *(2**63, 10**30, -1.5, 0.0, 1e-300, 1e-13, 1e-5, 0.1, 0.5, 0.9, 1.0, 1.5),
    *(3.7, 1e6, 1e18, 1e30, 1e300, float("nan"), float("inf"), -float("inf")),
  ]
)
_WORDS = st.sampled_from(
  [
    *("", "auto", "none", "None", "1", "1e-5", "flat", "psac", "automatic"),
    *("groupwise", "per_layer", "normalized", "adaptive_quantile", "Poisson"),
    *("preconditioned", "FixedSize", "FullBatch", "Shuffled", "Buckets", "sgd"),
    *("adam", "adamw", "adam_bc", "cosine", "mlp", "lstm", "vit_tiny"),
    *("dp_cnn", "tanh_cnn", "mnist", "../x", "a b", "REPLACE_ONE", "digits"),
    *("ADD_OR_REMOVE_ONE", "factored", "bfloat16", "sobol", "factorial", "ε"),
  ]
)  # fmt: skip
_SIMPLE = st.one_of(_NUMBERS, _WORDS, st.none(), st.booleans())
_ANY = st.one_of(
  _SIMPLE,
  st.lists(_SIMPLE, max_size=3),
  st.dictionaries(_WORDS, _SIMPLE, max_size=2),
)
_FACTORS = st.sampled_from([0.5, 0.9, 1.1, 2, 10, -1])


@st.composite
def changed(draw):
  """A name of a config, what was changed, and the config after it."""
  name = draw(st.sampled_from(CONFIGS))
  config = read(name)
  changes = []
  for _ in range(draw(st.integers(1, 4))):
    if not config:
      break  # all of it was dropped
    path = draw(st.sampled_from(sorted(leaves(config), key=repr)))
    inner = config
    for part in path[:-1]:
      inner = inner[part]
    kind = draw(
      st.sampled_from(["scale", "scale", "any", "any", "drop", "add"])
    )
    old = inner[path[-1]]
    if kind == "drop":
      del inner[path[-1]]
    elif kind == "add":
      inner[draw(_WORDS)] = draw(_ANY)
    elif kind == "scale" and isinstance(old, int | float):
      inner[path[-1]] = type(old)(old * draw(_FACTORS))
    elif kind == "scale" and isinstance(old, list | tuple) and old:
      kept = draw(st.integers(0, len(old)))
      inner[path[-1]] = [*old[:kept], draw(_ANY)]
    else:
      inner[path[-1]] = draw(_ANY)
    changes.append((kind, path, inner.get(path[-1])))
  return name, changes, config


def stage(name, config):
  """Everything before the first compile; True if all is accepted."""
  if "report" in config or name == "studies/rr_published":
    _survey_report.Options.from_config_dict(config)
    return True
  if "rr_" in name:
    survey = studies.Survey.from_config_dict(config)
    repeats = {**survey.repeats} if isinstance(survey.repeats, Mapping) else {}
    if repeats.get("num_points") in (8, 10, 5):
      # As many runs as are enough to see every cell.
      survey = dataclasses.replace(survey, repeats={**repeats, "num_points": 1})
    _precheck.check_survey(survey, made=())
    return True
  if "studies" in name:
    study = studies.Design.from_config_dict(config)
    _precheck.check_design(study, study.tuning())
    return True
  return gate.accepts(config)


@dataclasses.dataclass
class Outcomes:
  """What became of the examples."""

  counts: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  others: list = dataclasses.field(default_factory=list)
  where: set = dataclasses.field(default_factory=set)

  def add(self, name, changes, config):
    try:
      with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert stage(name, config)
      self.counts["accepted"] += 1
    except Exception as error:
      if errors.is_refusal(error) and errors.message(error):
        self.counts["refused"] += 1
        return
      self.counts["other"] += 1
      last = traceback.extract_tb(error.__traceback__)[-1]
      if (where := (last.filename, last.lineno)) not in self.where:
        self.where.add(where)
        text = "".join(traceback.format_exception(error, limit=-6))
        self.others.append(f"{name} {changes}\n{text}")


def fuzz(minutes, seed, report=lambda text: None):
  """Tries examples for so long."""
  outcomes = Outcomes()
  end = time.monotonic() + 60 * minutes

  batch = 0
  while time.monotonic() < end:
    # Hypothesis makes many examples, of which none is to be shrunk.
    @hypothesis.seed(seed * 1_000_003 + batch)
    @hypothesis.settings(
      max_examples=100, database=None, deadline=None, derandomize=False,
      phases=[hypothesis.Phase.generate],
      suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(changed())
    def one(example):
      if time.monotonic() < end:
        seen = len(outcomes.others)
        outcomes.add(*example)
        for text in outcomes.others[seen:]:
          report(text)

    with mock.patch.object(data, "load", made_up):
      one()
    batch += 1
  return outcomes


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--minutes", type=float, default=10)
  parser.add_argument("--seed", type=int, default=0)
  arguments = parser.parse_args()
  logging.disable(logging.WARNING)
  outcomes = fuzz(
    arguments.minutes, arguments.seed, lambda text: print(text, flush=True)
  )
  counts = outcomes.counts
  print(
    f"{sum(counts.values()):,} examples: {counts['accepted']:,} accepted, "
    f"{counts['refused']:,} refused, {counts['other']:,} other"
  )
  return 1 if counts["other"] else 0


if __name__ == "__main__":
  sys.exit(main())
