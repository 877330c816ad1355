"""A config, read and checked: the one place that knows a ConfigDict."""

import dataclasses
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import optax
from dp_accounting import NeighboringRelation

import jaxdp
from jaxdp import _types, clipping, optimizers, sampling, training
from jaxdp.mechanism import Mechanism

_FIT = {
  name: hint
  for name, hint in typing.get_type_hints(training.fit).items()
  if name
  not in {
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
    "return",
  }
}
_FLAGS = typing.get_type_hints(training.PerformanceFlags)
_Types: TypeAlias = Mapping[str, Any]  # annotations, by name
# By section, the values that must be there, and those that may.
_VALUES: Mapping[str, tuple[_Types, _Types]] = {
  "data": (
    {"name": str, "data_dir": str | None, "cache_dir": str | None},
    {
      "num_examples": int | None,
      "num_views": int | None,
      "public_examples": int | None,
    },
  ),
  "model": ({"name": str, "seed": int, "num_classes": int}, {}),
  "rule": ({"name": str}, {}),
  "sampler": ({"name": str}, {}),
  "privacy": (
    {
      "delta": float,
      "max_epsilon": float | None,
      "neighboring_relation": str | None,
      "noise_multiplier": float | None,
      "target_epsilon": float | None,
    },
    {"noise_schedule": Mapping | Sequence | None},
  ),
  "optimizer": (
    {
      "name": str,
      "learning_rate": float,
      "schedule": Literal["constant", "cosine"],
      "warmup_steps": int,
    },
    {},
  ),
  "training": (
    {"num_steps": int},
    {**_FIT, "inner_momentum": Mapping | None, "public_every": int | None},
  ),
  "performance": ({}, {k: v for k, v in _FLAGS.items() if k != "mesh"}),
}
# Those with further values, which are options of what they name.
_NAMED = ("model", "rule", "sampler", "optimizer")
_OPTIMIZERS: Mapping[str, Callable[..., optax.GradientTransformation]] = {
  "sgd": optax.sgd,
  "adam": optax.adam,
  "adamw": optax.adamw,
  "adam_bc": optimizers.adam_bc,
}
_DECAYS = ("momentum", "b1", "b2")
_SMALL = ("eps", "eps_root", "weight_decay", "floor")
_LARGEST_RATE = 1e6


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
    check_sections("config", values)
    for section, (needed, more) in _VALUES.items():
      _check_section(section, values[section], needed, {**needed, **more})
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
    most = privacy["max_epsilon"]
    if most is not None and target > most:
      raise ValueError(
        f"config.privacy.target_epsilon={target} is larger than .max_epsilon="
        f"{most}, which would end the run early. Lower the one or raise the "
        "other."
      )
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
    values = self.training["inner_momentum"]
    _types.check_call(
      "config.training.inner_momentum", jaxdp.InnerMomentum, values
    )
    return jaxdp.InnerMomentum(**values)

  def make_optimizer(
    self, learning_rate: Any = None
  ) -> optax.GradientTransformation:
    """The optimizer of the released means; at another rate if one is given."""
    values = dict(self.optimizer)
    rate, num_steps = values.pop("learning_rate"), self.training["num_steps"]
    schedule, warmup = values.pop("schedule"), values.pop("warmup_steps")
    _check_optimizer(rate, warmup, num_steps, values)
    rate = rate if learning_rate is None else learning_rate
    if schedule == "cosine":
      rate = optax.warmup_cosine_decay_schedule(
        0.0 if warmup else rate, rate, warmup, num_steps
      )
    elif warmup:
      rate = optax.warmup_constant_schedule(0.0, rate, warmup)
    values["learning_rate"] = rate
    optimizer: optax.GradientTransformation = _call(
      "optimizer", values, tuple(_OPTIMIZERS), _OPTIMIZERS
    )
    return optimizer


def check_sections(
  place: str, values: Any, needed: Collection[str] = tuple(_VALUES)
) -> None:
  """Raises unless these are the sections of a config, each with values."""
  _types.check(place, values, Mapping)
  _types.check_names(place, values, needed, _VALUES)
  for section, inner in values.items():
    _types.check(f"{place}.{section}", inner, Mapping)


def set_value(values: dict[str, Any], path: str, value: Any) -> None:
  """Sets a section, or a value by a dotted path, in a copy of its section."""
  section, _, name = path.partition(".")
  if section not in _VALUES:
    hint = _types.did_you_mean(section, _VALUES)
    raise ValueError(
      f"A change of {path!r}: no config has {section!r}; {hint}."
    )
  if name:
    _types.check(section, values.get(section), Mapping)
    value = {**values[section], name: value}
  values[section] = value


def _check_section(
  section: str, values: Any, needed: _Types, known: _Types
) -> None:
  """Raises unless the values of a section are those that it takes."""
  place = f"config.{section}"
  names = {**known, **values} if section in _NAMED else known
  _types.check_names(place, values, needed, names)
  for name, value in values.items():
    _types.check(f"{place}.{name}", value, known.get(name, Any))


def _check_optimizer(
  rate: float, warmup: int, num_steps: int, options: Mapping[str, Any]
) -> None:
  """Ranges that optax does not look at."""
  if not 0 < rate <= _LARGEST_RATE:
    raise ValueError(
      "config.optimizer.learning_rate must be > 0 and at most "
      f"{_LARGEST_RATE:g}, got {rate}."
    )
  if not 0 <= warmup < max(num_steps, 1):
    raise ValueError(
      "config.optimizer.warmup_steps must be >= 0 and less than "
      f"config.training.num_steps={num_steps}, got {warmup}."
    )
  for name, value in options.items():
    place = f"config.optimizer.{name}"
    if name in _DECAYS and value is not None:
      _types.check(place, value, float)
      if not 0 <= value < 1:
        raise ValueError(f"{place} must be in [0, 1), got {value}.")
    elif name in _SMALL:
      _types.check(place, value, float)
      if not 0 <= value <= 1:
        raise ValueError(f"{place} must be in [0, 1], got {value}.")


def _call(
  section: str, values: dict[str, Any], names: Collection[str], source: Any
) -> Any:
  values = dict(values)
  name = values.pop("name")
  place = f"config.{section}"
  if name not in names:
    raise ValueError(
      f"{place}.name must be one of {list(names)}, got {name!r}."
    )
  make = source[name] if isinstance(source, Mapping) else getattr(source, name)
  _types.check_call(f"{place} ({name})", make, values)
  return make(**values)
