"""A config, read and checked: the one place that knows a ConfigDict."""

import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import optax
from dp_accounting import NeighboringRelation

import jaxdp
from jaxdp import clipping, optimizers, sampling, training
from jaxdp.mechanism import Mechanism

# By section, the values that must be there, and those that may.
_FIT = set(inspect.signature(training.fit).parameters) - {
  "loss_fn",
  "params",
  "dataset",
  "mechanism",
  "optimizer",
  "delta",
  "max_epsilon",
  "sampler",
  "eval_fn",
  "has_aux",
  "has_key",
  "public_batch",
  "workdir",
  "config",
  "progress",
  "performance",
  "facts",
}
_FLAGS = {f.name for f in dataclasses.fields(training.PerformanceFlags)}
_VALUES: Mapping[str, tuple[set[str], set[str] | None]] = {
  "data": (
    {"name", "data_dir", "cache_dir"},
    {"num_examples", "num_views", "public_examples"},
  ),
  "model": ({"name", "seed", "num_classes"}, None),
  "rule": ({"name"}, None),
  "sampler": ({"name"}, None),
  "privacy": (
    {
      "delta",
      "max_epsilon",
      "neighboring_relation",
      "noise_multiplier",
      "target_epsilon",
    },
    {"noise_schedule"},
  ),
  "optimizer": ({"name", "learning_rate", "schedule", "warmup_steps"}, None),
  "training": ({"num_steps"}, _FIT | {"public_every"}),
  "performance": (set(), _FLAGS - {"mesh"}),
}
_OPTIMIZERS: Mapping[str, Callable[..., optax.GradientTransformation]] = {
  "sgd": optax.sgd,
  "adam": optax.adam,
  "adamw": optax.adamw,
  "adam_bc": optimizers.adam_bc,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
  """A config, section by section, as plain dicts.

  Attributes:
    data: ``name``, and ``data_dir``, ``cache_dir`` or None; maybe
      ``public_examples``, how many of the training rows to set aside as public
      (by a fixed draw; they are not trained on), ``num_examples``, how many of
      the others to train on, and ``num_views`` of ``units.mean_over_views``.
    model: ``name``, ``seed`` of the initial parameters, ``num_classes``, and
      the model's options.
    rule: ``name`` of a factory in ``jaxdp.clipping``, and its arguments, and
      maybe ``schedule``, the levels of ``clipping.scheduled`` as pairs; the
      name "none" trains without privacy.
    sampler: ``name`` of a class in ``jaxdp.sampling``, and its arguments but
      ``num_examples``, which comes from the data.
    privacy: ``delta``; ``noise_multiplier`` or ``target_epsilon``, the other
      None; ``neighboring_relation``, a name or None; ``max_epsilon`` or None;
      maybe ``noise_schedule``, the levels of a ``PiecewiseConstant`` as pairs.
    optimizer: ``name``, ``learning_rate``, ``schedule`` ("constant" or
      "cosine"), ``warmup_steps``, and the optimizer's options.
    training: ``num_steps``, ``seed`` (None: from the operating system),
      and other arguments of ``jaxdp.fit``; ``inner_momentum`` holds the fields
      of ``jaxdp.InnerMomentum``, ``public_every`` is that of ``PublicBatch``.
    performance: fields of ``jaxdp.PerformanceFlags`` but the mesh, which is all
      devices.
  """

  data: dict[str, Any]
  model: dict[str, Any]
  rule: dict[str, Any]
  sampler: dict[str, Any]
  privacy: dict[str, Any]
  optimizer: dict[str, Any]
  training: dict[str, Any]
  performance: dict[str, Any]

  @classmethod
  def from_config_dict(cls, config: Any) -> "ExperimentConfig":
    """Reads an ``ml_collections.ConfigDict`` (or a plain nested dict)."""
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    check_names("", values, set(_VALUES), set())
    for section, (needed, more) in _VALUES.items():
      check_names(f".{section}", values[section], needed, more)
    return cls(**values)

  def to_dict(self) -> dict[str, Any]:
    """The config as a plain nested dict."""
    return dataclasses.asdict(self)

  def make_mechanism(self, num_examples: int) -> Mechanism | None:
    """The mechanism, its noise calibrated if the config names a target."""
    rule = self.make_rule()
    if rule is None:
      return None
    privacy = self.privacy
    mechanism = Mechanism(
      rule,
      self.make_sampler(num_examples),
      privacy["noise_multiplier"],
      self._relation(),
      jaxdp.PiecewiseConstant(privacy.get("noise_schedule") or {0: 1.0}),
    )
    target = privacy["target_epsilon"]
    if (target is None) == (privacy["noise_multiplier"] is None):
      raise ValueError(
        "config.privacy needs one of noise_multiplier and target_epsilon, the "
        f"other None; got {privacy['noise_multiplier']} and {target}."
      )
    if target is None:
      return mechanism
    return jaxdp.calibrate_noise(
      mechanism,
      target_epsilon=target,
      target_delta=privacy["delta"],
      num_steps=self.training["num_steps"],
    )

  def make_rule(self) -> clipping.ClippingRule | None:
    """The clipping rule; None for training without privacy."""
    if self.rule["name"] == "none":
      return None
    values = dict(self.rule)
    levels = values.pop("schedule", None)
    rule: clipping.ClippingRule = _call(
      "rule", values, clipping.RULES, clipping
    )
    return rule if levels is None else clipping.scheduled(rule, levels)

  def _relation(self) -> NeighboringRelation | None:
    name = self.privacy["neighboring_relation"]
    if name is not None and name not in NeighboringRelation.__members__:
      raise ValueError(
        "config.privacy.neighboring_relation must be None or one of "
        f"{list(NeighboringRelation.__members__)}, got {name!r}."
      )
    return None if name is None else NeighboringRelation[name]

  def make_sampler(self, num_examples: int) -> sampling.Sampler:
    """The sampler, for a data set of this length."""
    values = {**self.sampler, "num_examples": num_examples}
    sampler: sampling.Sampler = _call(
      "sampler", values, sampling.SAMPLERS, sampling
    )
    return sampler

  def make_inner_momentum(self) -> jaxdp.InnerMomentum:
    """The window over iterates."""
    try:
      return jaxdp.InnerMomentum(**self.training["inner_momentum"])
    except TypeError as error:
      raise ValueError(f"config.training.inner_momentum: {error}") from error

  def make_optimizer(
    self, learning_rate: Any = None
  ) -> optax.GradientTransformation:
    """The optimizer of the released means; at another rate if one is given."""
    values = dict(self.optimizer)
    rate, num_steps = values.pop("learning_rate"), self.training["num_steps"]
    rate = rate if learning_rate is None else learning_rate
    schedule, warmup = values.pop("schedule"), values.pop("warmup_steps")
    if schedule == "cosine":
      rate = optax.warmup_cosine_decay_schedule(
        0.0 if warmup else rate, rate, warmup, num_steps
      )
    elif schedule == "constant":
      rate = (
        optax.warmup_constant_schedule(0.0, rate, warmup) if warmup else rate
      )
    else:
      raise ValueError(
        f"config.optimizer.schedule must be 'constant' or 'cosine', got "
        f"{schedule!r}."
      )
    values["learning_rate"] = rate
    optimizer: optax.GradientTransformation = _call(
      "optimizer", values, tuple(_OPTIMIZERS), _OPTIMIZERS
    )
    return optimizer


def check_names(
  section: str, values: Any, needed: set[str], more: set[str] | None
) -> None:
  """Raises unless these names are there, and no others than ``more``."""
  if not isinstance(values, Mapping):
    raise ValueError(f"config{section} must hold values, got {values!r}.")
  missing = sorted(needed - values.keys())
  unknown = [] if more is None else sorted(values.keys() - needed - more)
  if missing or unknown:
    raise ValueError(
      f"config{section} lacks {missing or 'nothing'} and has unknown "
      f"{unknown or 'nothing'}. Start from configs/digits.py."
    )


def _call(
  section: str, values: dict[str, Any], names: Collection[str], source: Any
) -> Any:
  values = dict(values)
  name = values.pop("name")
  if name not in names:
    raise ValueError(
      f"config.{section}.name must be one of {list(names)}, got {name!r}."
    )
  make = source[name] if isinstance(source, Mapping) else getattr(source, name)
  try:
    return make(**values)
  except TypeError as error:
    raise ValueError(f"config.{section}: {error}") from error
