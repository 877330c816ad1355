"""From a config to a run: the one place that reads a ConfigDict.

``train`` and ``evaluate`` are what the scripts call. A config names a data set,
a model, a clipping rule, a sampler, an optimizer and a budget;
``ExperimentConfig`` checks all of it before anything is loaded or compiled.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from dp_accounting import NeighboringRelation

import jaxdp
from jaxdp import clipping, data, models, optimizers, sampling, training
from jaxdp.mechanism import Mechanism

_SECTIONS = (
  "data",
  "model",
  "rule",
  "sampler",
  "privacy",
  "optimizer",
  "training",
  "performance",
)
_SAMPLERS = ("Poisson", "FixedSize", "Shuffled", "FullBatch")
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
    data: ``name``, and ``data_dir``, ``cache_dir`` or None.
    model: ``name``, ``seed`` of the initial parameters, ``num_classes``, and
      the model's options.
    rule: ``name`` of a factory in ``jaxdp.clipping``, and its arguments; None
      trains without privacy.
    sampler: ``name`` of a class in ``jaxdp.sampling``, and its arguments but
      ``num_examples``, which comes from the data.
    privacy: ``delta``; ``noise_multiplier`` or ``target_epsilon``, the other
      None; ``neighboring_relation``, a name or None; ``max_epsilon`` or None.
    optimizer: ``name``, ``learning_rate``, ``schedule`` ("constant" or
      "cosine"), ``warmup_steps``, and the optimizer's options.
    training: ``num_steps``, ``seed`` (None: from the operating system),
      and other arguments of ``jaxdp.fit``.
    performance: fields of ``jaxdp.PerformanceFlags`` but the mesh, which is all
      devices.
  """

  data: dict[str, Any]
  model: dict[str, Any]
  rule: dict[str, Any] | None
  sampler: dict[str, Any]
  privacy: dict[str, Any]
  optimizer: dict[str, Any]
  training: dict[str, Any]
  performance: dict[str, Any]

  @classmethod
  def from_config_dict(cls, config: Any) -> "ExperimentConfig":
    """Reads an ``ml_collections.ConfigDict`` (or a plain nested dict)."""
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    missing = [name for name in _SECTIONS if name not in values]
    unknown = [name for name in values if name not in _SECTIONS]
    if missing or unknown:
      raise ValueError(
        f"A config has the sections {list(_SECTIONS)}; missing: {missing}, "
        f"unknown: {unknown}. Start from configs/digits.py."
      )
    return cls(**values)

  def to_dict(self) -> dict[str, Any]:
    """The config as a plain nested dict."""
    return dataclasses.asdict(self)

  def make_mechanism(self, num_examples: int) -> Mechanism | None:
    """The mechanism, its noise calibrated if the config names a target."""
    if self.rule is None:
      return None
    rule = _call("rule", self.rule, clipping.RULES, clipping)
    privacy = self.privacy
    relation = privacy["neighboring_relation"]
    mechanism = Mechanism(
      rule,
      self.make_sampler(num_examples),
      privacy["noise_multiplier"],
      None if relation is None else NeighboringRelation[relation],
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

  def make_sampler(self, num_examples: int) -> sampling.Sampler:
    """The sampler, for a data set of this length."""
    values = {**self.sampler, "num_examples": num_examples}
    sampler: sampling.Sampler = _call("sampler", values, _SAMPLERS, sampling)
    return sampler

  def make_optimizer(self) -> optax.GradientTransformation:
    """The optimizer of the released means."""
    values = dict(self.optimizer)
    name = values.pop("name")
    if name not in _OPTIMIZERS:
      raise ValueError(
        f"config.optimizer.name must be one of {sorted(_OPTIMIZERS)}, got "
        f"{name!r}."
      )
    rate, num_steps = values.pop("learning_rate"), self.training["num_steps"]
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
    return _OPTIMIZERS[name](rate, **values)


def _call(
  section: str, values: dict[str, Any], names: tuple[str, ...], module: Any
) -> Any:
  values = dict(values)
  name = values.pop("name")
  if name not in names:
    raise ValueError(
      f"config.{section}.name must be one of {list(names)}, got {name!r}."
    )
  try:
    return getattr(module, name)(**values)
  except TypeError as error:
    raise ValueError(f"config.{section}: {error}") from error


def load(config: ExperimentConfig, split: str) -> dict[str, np.ndarray]:
  """The arrays of one split of the config's data set."""
  return data.load(
    config.data["name"],
    split,
    data_dir=config.data["data_dir"],
    cache_dir=config.data["cache_dir"],
  )


def make_model(
  config: ExperimentConfig, dataset: Mapping[str, np.ndarray]
) -> tuple[Any, Callable, Callable]:
  """``(params, loss_fn, evaluate)`` of a config, for data of this shape."""
  options = dict(config.model)
  inputs = dataset["image"] if "image" in dataset else dataset["text"]
  params, apply_fn = models.create(
    options.pop("name"), input_shape=inputs.shape[1:], **options
  )
  preprocess = data.preprocess(config.data["name"])
  loss_fn = models.classification_loss(apply_fn, preprocess)
  return params, loss_fn, models.accuracy(apply_fn, preprocess)


def train(
  config: Any, workdir: str | pathlib.Path, *, progress: bool = True
) -> tuple[training.TrainState, training.History]:
  """Runs a config in a run directory, resuming what is there.

  Args:
    config: see ``ExperimentConfig``.
    workdir: gets everything a run leaves behind, see ``jaxdp.fit``.
    progress: show a progress bar.

  Returns:
    As ``jaxdp.fit``.
  """
  config = ExperimentConfig.from_config_dict(config)
  optimizer = config.make_optimizer()
  dataset, test = load(config, "train"), load(config, "test")
  num_examples = len(next(iter(dataset.values())))
  mechanism = config.make_mechanism(num_examples)
  params, loss_fn, evaluate = make_model(config, dataset)

  def eval_fn(params: Any) -> dict[str, float]:
    return {f"test_{k}": v for k, v in evaluate(params, test).items()}

  options = dict(config.training)
  options.pop("num_steps")
  devices = jax.devices()
  return training.fit(
    loss_fn,
    params,
    dataset,
    mechanism,
    optimizer,
    num_steps=config.training["num_steps"],
    sampler=None if mechanism else config.make_sampler(num_examples),
    delta=config.privacy["delta"],
    max_epsilon=config.privacy["max_epsilon"],
    eval_fn=eval_fn,
    workdir=workdir,
    config=config.to_dict(),
    progress=progress,
    performance=training.PerformanceFlags(
      **config.performance,
      mesh=training.data_mesh(devices) if len(devices) > 1 else None,
    ),
    **options,
  )


def evaluate(
  config: Any, workdir: str | pathlib.Path, split: str = "test"
) -> dict[str, float]:
  """Accuracy and loss of a run's released parameters.

  Args:
    config: that of the run.
    workdir: the run directory, or its ``release/`` folder.
    split: which data; on private data the numbers are *sensitive*.
  """
  config = ExperimentConfig.from_config_dict(config)
  dataset = load(config, split)
  params, _, evaluate_fn = make_model(config, dataset)
  params = training.load_release(workdir, params)
  result: dict[str, float] = evaluate_fn(params, dataset)
  return result
