"""What a study consists of: arms, what each may tune, seeds, and its runs.

A *rate* is the learning rate in units of the noise, lr C / s, and over 1 - beta
with an outer momentum beta: how far a unit at its clipping bound moves the
parameters in the end, times the batch size. Arms are tuned and compared at
rates, since for many rules the clip norm alone is nothing but a learning rate.
C is ``l2_clip_norm``. A rule that has none, or whose bound is another
(``normalized``), is tuned like the others, but its rates are not theirs.
"""

import copy
import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxdp import _types
from jaxdp.experiment import check_sections, set_value

Overrides = Mapping[str, Any]  # by dotted path, such as "rule.l2_clip_norm"


@dataclasses.dataclass(frozen=True)
class Run:
  """One training of a study.

  Attributes:
    stage: "tuning", "evaluation", or what a study calls its own.
    setting: the level of privacy, or what else arms share.
    arm: what is compared.
    rate: see the module.
    seed: of initial parameters, sampling and noise. Arms with equal seeds draw
      the same batches and noise, which makes comparisons paired.
    overrides: of the design's base, by dotted path; the arm's and the setting's
      included.
  """

  stage: str
  setting: str
  arm: str
  rate: float
  seed: int
  overrides: Overrides

  @property
  def key(self) -> str:
    """Tells runs apart, whatever the order of their fields."""
    return json.dumps(dataclasses.asdict(self), sort_keys=True)


@dataclasses.dataclass(frozen=True)
class Design:
  """A study as its config states it.

  Attributes:
    base: an experiment's config, see ``jaxdp.experiment.ExperimentConfig``.
    arms: overrides by name of the arm.
    settings: overrides by name of the setting; every arm runs in each.
    rates: those that tuning tries, in equal ratios; where the best is at the
      edge, tuning goes on beyond it.
    grids: by arm, further values that tuning tries, by dotted path.
    tuning_seeds: of tuning.
    seeds: of evaluation; none of them tunes.
    num_validation: rows that nothing trains on, by which tuning goes. No
      epsilon covers them: what ``results.jsonl`` and the page say is exact.
    options: what one study alone needs.
  """

  base: Mapping[str, Any]
  arms: Mapping[str, Overrides]
  settings: Mapping[str, Overrides]
  rates: Sequence[float]
  grids: Mapping[str, Mapping[str, Sequence[Any]]]
  tuning_seeds: Sequence[int]
  seeds: Sequence[int]
  num_validation: int
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    check_sections("base", self.base)
    if self.num_validation < 1 or not all(rate > 0 for rate in self.rates):
      raise ValueError(
        "num_validation and all rates must be > 0, got "
        f"{self.num_validation} and {self.rates}."
      )
    if unknown := sorted(self.grids.keys() - self.arms.keys()):
      raise ValueError(f"grids for {unknown}, which are no arms.")
    if shared := set(self.seeds) & set(self.tuning_seeds):
      raise ValueError(
        f"Seeds {sorted(shared)} tune and evaluate. Use others to evaluate, or "
        "what was chosen will look better than it is."
      )

  @classmethod
  def from_config_dict(cls, config: Any) -> "Design":
    """Reads an ``ml_collections.ConfigDict`` (or a plain nested dict)."""
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    _types.check_call("the config of a study", cls, values)
    return cls(**values)

  def overrides(self, setting: str, arm: str, more: Overrides) -> Overrides:
    """All that a run changes, the most special last."""
    return {**self.settings[setting], **self.arms[arm], **more}

  def tuning(self) -> Iterator[Run]:
    """Every arm at every rate and value of its grid, in every setting."""
    for setting, arm in itertools.product(self.settings, self.arms):
      grid = self.grids.get(arm, {})
      for rate in self.rates:
        for values in itertools.product(*grid.values()):
          more = dict(zip(grid, values, strict=True))
          overrides = self.overrides(setting, arm, more)
          for seed in self.tuning_seeds:
            yield Run("tuning", setting, arm, rate, seed, overrides)

  def config(self, run: Run) -> dict[str, Any]:
    """The experiment of a run."""
    config = copy.deepcopy(dict(self.base))
    for path, value in run.overrides.items():
      set_value(config, path, copy.deepcopy(value))
    check_sections("base", config)
    rule = config["rule"]
    momentum = config["optimizer"].get("momentum") or 0.0
    slope, clip_norm = rule.get("s", 1.0), rule.get("l2_clip_norm", 1.0)
    _types.check("optimizer.momentum", momentum, float)
    _types.check("rule.s", slope, float)
    _types.check("rule.l2_clip_norm", clip_norm, float)
    if not (0 <= momentum < 1 and slope > 0 and clip_norm > 0):
      raise ValueError(
        f"An arm needs momentum in [0, 1), s > 0 and l2_clip_norm > 0, got "
        f"{momentum}, {slope} and {clip_norm}."
      )
    rate = run.rate * (1 - momentum) * slope / clip_norm
    set_value(config, "optimizer.learning_rate", rate)
    set_value(config, "model.seed", run.seed)
    set_value(config, "training.seed", run.seed)
    return config
