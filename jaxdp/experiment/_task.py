"""What a config trains: data, a model, and the loss of one unit."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np

import jaxdp
from jaxdp import data, models, sampling, units
from jaxdp.experiment._config import ExperimentConfig

Examples: TypeAlias = Mapping[str, np.ndarray]


def load(config: ExperimentConfig, split: str) -> dict[str, np.ndarray]:
  """The arrays of one split of the config's data set."""
  dataset = data.load(
    config.data["name"],
    split,
    data_dir=config.data["data_dir"],
    cache_dir=config.data["cache_dir"],
  )
  _check_labels(config, dataset)
  return dataset


def _check_labels(config: ExperimentConfig, dataset: Examples) -> None:
  """Refuses what a classification loss would read as something else."""
  name, fields = config.data["name"], {k: x.shape for k, x in dataset.items()}
  if "label" not in fields or not fields.keys() & {"image", "text"}:
    raise ValueError(
      f"Dataset {name!r} has {fields}; a config needs an image or a text, and "
      "a label. Pass arrays of another form to jaxdp.fit, with their loss."
    )
  label, num_classes = dataset["label"], config.model["num_classes"]
  if len({len(x) for x in dataset.values()}) > 1:
    raise ValueError(
      f"The arrays of dataset {name!r} need the same number of rows, got "
      f"{fields}."
    )
  if not len(label):
    raise ValueError(f"Dataset {name!r} is empty: {fields}.")
  if label.ndim != 1 or label.dtype.kind not in "iu":
    raise ValueError(
      f"The labels of dataset {name!r} must be integers, one a row, got "
      f"{label.dtype}{list(label.shape)}."
    )
  if not 0 <= label.min() <= label.max() < num_classes:
    raise ValueError(
      f"The labels of dataset {name!r} go from {label.min()} to {label.max()}, "
      f"but config.model.num_classes={num_classes} takes 0 to "
      f"{num_classes - 1}."
    )


class Rows(NamedTuple):
  """The training split, in three; a part is None if it holds nothing."""

  private: Examples  # trained on
  public: Examples | None
  rest: Examples | None  # neither: for validation


def load_train(config: ExperimentConfig) -> Rows:
  """The rows that train, and those that do not."""
  dataset = load(config, "train")
  num_public = config.data.get("public_examples") or 0
  num_private = config.data.get("num_examples")
  _check_labels(config, dataset)
  available = len(next(iter(dataset.values())))
  if num_private is None:
    num_private = available - num_public
  if not (num_public >= 0 and 0 < num_private <= available - num_public):
    raise ValueError(
      f"config.data asks for num_examples={num_private} and public_examples="
      f"{num_public} of {available} rows. Ask for less."
    )
  if num_private == available:
    return Rows(dataset, None, None)
  order = np.random.default_rng(0).permutation(available)
  parts = np.split(order, [num_private, num_private + num_public])
  private, public, rest = (
    {name: rows[np.sort(where)] for name, rows in dataset.items()}
    for where in parts
  )
  empty = num_private + num_public == available
  return Rows(private, public if num_public else None, None if empty else rest)


class Task(NamedTuple):
  """What a config trains: parameters, the loss of one unit, its evaluation."""

  params: Any
  loss_fn: Callable
  has_key: bool
  evaluate: Callable[..., dict[str, float]]


def make_task(
  config: ExperimentConfig, dataset: Examples, public: Examples | None
) -> Task:
  """The task of a config, for data of this shape."""
  preprocess = data.preprocess(config.data["name"])
  num_views = config.data.get("num_views")
  in_buckets = config.sampler["name"] == "Buckets"
  if in_buckets and num_views is not None:
    raise ValueError(
      "config.data.num_views is for single examples, and sampler.name is "
      "'Buckets'. Leave one of them out."
    )
  in_batches = config.model.get("norm") == "batch"
  if in_batches and not in_buckets:
    raise ValueError(
      "config.model.norm is 'batch', which couples the examples of a batch. "
      "Clip buckets (config.sampler.name = 'Buckets'), or use norm='group'."
    )
  options = dict(config.model)
  inputs = dataset["image"] if "image" in dataset else dataset["text"]
  params, apply_fn = models.create(
    options.pop("name"), input_shape=inputs.shape[1:], **options
  )
  if in_batches:
    return Task(
      params,
      models.bucket_loss(apply_fn, preprocess),
      False,
      models.bucket_accuracy(apply_fn, preprocess, public_examples=public),
    )
  loss_fn: Callable = models.classification_loss(apply_fn, preprocess)
  if in_buckets:
    loss_fn = units.mean_over_records(loss_fn)
  if num_views is not None:
    augment = units.random_crop_and_flip
    loss_fn = units.mean_over_views(loss_fn, augment, num_views)
  evaluate = models.accuracy(apply_fn, preprocess)
  return Task(params, loss_fn, num_views is not None, evaluate)


def make_public_batch(
  config: ExperimentConfig, sampler: sampling.Sampler, public: Examples | None
) -> jaxdp.PublicBatch | None:
  """What a rule that follows public data looks at; None if it does not."""
  every = config.training.get("public_every")
  if every is None:
    return None
  if public is None:
    raise ValueError(
      "config.training.public_every needs config.data.public_examples > 0."
    )
  if not sampler.unit_shape:
    return jaxdp.PublicBatch(public, every)
  (size,) = sampler.unit_shape
  count = len(next(iter(public.values()))) // size
  if not count:
    raise ValueError(f"config.data.public_examples must fill {size} places.")
  records = {
    name: rows[: count * size].reshape(count, size, *rows.shape[1:])
    for name, rows in public.items()
  }
  mask = jnp.zeros((count, size), bool)
  return jaxdp.PublicBatch(units.Records(records, mask), every)
