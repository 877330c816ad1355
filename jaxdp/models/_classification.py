"""Cross-entropy of one example or bucket, and evaluation of a data set."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdp.models._create import ApplyFn, Params

Example = Mapping[str, Any]
LossFn = Callable[[Params, Example], jax.Array]
PreprocessFn = Callable[[Example], Mapping[str, Any]]


@functools.lru_cache(maxsize=64)
def classification_loss(
  apply_fn: ApplyFn, preprocess: PreprocessFn | None = None
) -> LossFn:
  r"""Softmax cross-entropy of one example: the loss that training takes.

  .. math:: -\log \mathrm{softmax}(\mathrm{apply}(\theta, x))_y

  Args:
    apply_fn: logits of one input, as from ``create``.
    preprocess: makes a stored example an input, as from
      ``jaxdp.data.preprocess``; None leaves it as it is.

  Returns:
    ``loss_fn(params, example)``, a float32 scalar, for an example with the
    fields "image" or "text", and "label". Equal arguments give the same
    function.

  Edge cases:
    A label outside of ``[0, num_classes)`` gives NaN: the unit is dropped.
  """

  def loss_fn(params: Params, example: Example) -> jax.Array:
    if preprocess is not None:
      example = preprocess(example)
    return _cross_entropy(
      apply_fn(params, example[_input_field(example)]), example["label"]
    )

  return loss_fn


@functools.lru_cache(maxsize=64)
def accuracy(
  apply_fn: ApplyFn, preprocess: PreprocessFn | None = None
) -> Callable[..., dict[str, float]]:
  """Returns the function that measures accuracy and loss on a dataset.

  Args:
    apply_fn: as for ``classification_loss``.
    preprocess: as for ``classification_loss``.

  Returns:
    ``evaluate(params, dataset, batch_size=1000)``, which gives
    ``{"accuracy": ..., "loss": ...}``: means over all examples of ``dataset``,
    a dict of arrays with equal leading axis or a ``jaxdp.data.Stream``. It is
    compiled once per shape; the last batch is padded, and padding counts
    nothing. The numbers are exact statistics of the dataset: on private
    examples they are sensitive.

  Example:
    >>> evaluate = accuracy(lambda params, x: x)
    >>> dataset = {"image": np.eye(3), "label": np.array([0, 1, 0])}
    >>> evaluate({}, dataset, batch_size=2)["accuracy"]
    0.6666666666666666
  """

  def logits_fn(params: Params, inputs: jax.Array, _: jax.Array) -> jax.Array:
    return jax.vmap(apply_fn, (None, 0))(params, inputs)

  return _evaluator(logits_fn, preprocess)


@functools.lru_cache(maxsize=64)
def bucket_loss(
  apply_fn: ApplyFn, preprocess: PreprocessFn | None = None
) -> LossFn:
  """Mean cross-entropy of a bucket, whose statistics the model may use.

  Args:
    apply_fn: logits of a bucket, as from ``create`` with ``norm="batch"``.
    preprocess: as for ``classification_loss``.

  Returns:
    ``loss_fn(params, records)``, for the ``jaxdp.units.Records`` that
    ``sampling.Buckets`` deals out: the mean over those that are there, 0 for an
    empty bucket.

  Guarantees:
    What stands in padding changes no bit, if it is finite.

  References:
    van Dijk et al. 2022, arXiv:2212.05796 (BatchNorm in batch clipping).
  """

  def loss_fn(params: Params, records: Any) -> jax.Array:
    examples, padding = records
    examples = _prepared(examples, preprocess)
    logits = apply_fn(params, examples[_input_field(examples)], padding)
    losses = jax.vmap(_cross_entropy)(logits, examples["label"])
    count = jnp.maximum(jnp.sum(~padding), 1)
    return jnp.sum(jnp.where(padding, 0.0, losses)) / count.astype(losses.dtype)

  return loss_fn


def bucket_accuracy(
  apply_fn: ApplyFn,
  preprocess: PreprocessFn | None = None,
  *,
  public_examples: Example | None = None,
) -> Callable[..., dict[str, float]]:
  """``accuracy`` for a model that normalises by statistics of its rows.

  Args:
    apply_fn: logits of a bucket, as from ``create`` with ``norm="batch"``.
    preprocess: as for ``classification_loss``.
    public_examples: leaves ``[n, ...]``; what all evaluated examples are
      normalised by. Without them each batch is normalised by its own
      statistics, so that an example's logits depend on its batch.

  Returns:
    As ``accuracy``. No statistic of the training data is used.
  """

  def logits_fn(
    params: Params, inputs: jax.Array, padding: jax.Array
  ) -> jax.Array:
    if public_examples is None:
      return apply_fn(params, inputs, padding)
    public = _prepared(public_examples, preprocess)
    shown = public[_input_field(public)]
    mask = jnp.arange(len(shown) + len(inputs)) >= len(shown)
    logits = apply_fn(params, jnp.concatenate([shown, inputs]), mask)
    return logits[len(shown) :]

  return _evaluator(logits_fn, preprocess)


def _prepared(batch: Example, preprocess: PreprocessFn | None) -> Example:
  return batch if preprocess is None else jax.vmap(preprocess)(batch)


def _evaluator(
  logits_fn: Callable[[Params, jax.Array, jax.Array], jax.Array],
  preprocess: PreprocessFn | None,
) -> Callable[..., dict[str, float]]:
  @jax.jit
  def totals(
    params: Params, batch: Example, is_padding_example: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    batch = _prepared(batch, preprocess)
    inputs, label = batch[_input_field(batch)], batch["label"]
    logits = logits_fn(params, inputs, is_padding_example)
    correct = jnp.argmax(logits, axis=1) == label
    losses = jax.vmap(_cross_entropy)(logits, label)
    return (
      jnp.sum(correct & ~is_padding_example),
      jnp.sum(jnp.where(is_padding_example, 0.0, losses)),
    )

  def evaluate(
    params: Params, dataset: Any, batch_size: int = 1000
  ) -> dict[str, float]:
    if batch_size < 1:
      raise ValueError(f"batch_size must be >= 1, got {batch_size=}.")
    num_examples = _num_examples(dataset)
    batch_size = min(batch_size, num_examples)
    results = []
    for start in range(0, num_examples, batch_size):
      rows = np.arange(start, start + batch_size)
      is_padding_example = rows >= num_examples
      rows = np.where(is_padding_example, 0, rows)
      # Not waited for: the next batch is prepared while this one runs.
      results.append(totals(params, _take(dataset, rows), is_padding_example))
    correct = sum(int(number) for number, _ in results)
    loss = sum(float(total) for _, total in results)
    return {"accuracy": correct / num_examples, "loss": loss / num_examples}

  return evaluate


def _cross_entropy(logits: jax.Array, label: Any) -> jax.Array:
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
  classes = jnp.arange(logits.shape[-1], dtype=jnp.int32)
  is_class = classes == jnp.asarray(label, jnp.int32)
  # A selection rather than a gather: it stays one fused loop under vmap.
  loss = -jnp.sum(jnp.where(is_class, log_probs, 0.0))
  return jnp.where(jnp.any(is_class), loss, jnp.nan)


def _input_field(example: Example) -> str:
  for field in ("image", "text"):
    if field in example:
      return field
  raise ValueError(
    "an example needs the field 'image' or 'text', and 'label'; got "
    f"{sorted(example)}."
  )


def _num_examples(dataset: Any) -> int:
  if isinstance(dataset, Mapping):
    lengths = {field: len(rows) for field, rows in dataset.items()}
  else:
    lengths = {"rows": len(dataset)}
  if len(set(lengths.values())) != 1 or not min(lengths.values()):
    raise ValueError(
      f"a dataset needs arrays of one length > 0, got the lengths {lengths}."
    )
  return next(iter(lengths.values()))


def _take(dataset: Any, rows: Sequence[int] | np.ndarray) -> dict[str, Any]:
  if not isinstance(dataset, Mapping):
    return dict(dataset[rows])
  return {field: values[rows] for field, values in dataset.items()}
