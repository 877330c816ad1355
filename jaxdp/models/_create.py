"""From a name to parameters and a function of one example."""

import functools
import inspect
import math
import os
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxdp import _types
from jaxdp.models import (
  _dp_cnn,
  _init,
  _lstm,
  _mlp,
  _random_features,
  _resnet,
  _tanh_cnn,
  _vit,
  _wide_resnet,
)

Params = dict[str, Any]
ApplyFn = Callable[..., jax.Array]

# A class, and the arguments that its name stands for.
_MODELS: dict[str, tuple[type[nnx.Module], tuple[int, ...]]] = {
  "mlp": (_mlp.MLP, ()),
  "random_features": (_random_features.RandomFeatures, ()),
  "tanh_cnn": (_tanh_cnn.TanhCNN, ()),
  "dp_cnn": (_dp_cnn.DPCNN, ()),
  "resnet18": (_resnet.ResNet, (18,)),
  "resnet34": (_resnet.ResNet, (34,)),
  "wrn_16_4": (_wide_resnet.WideResNet, (16, 4)),
  "wrn_40_4": (_wide_resnet.WideResNet, (40, 4)),
  "lstm": (_lstm.LSTM, ()),
  "vit_tiny": (_vit.ViT, ()),
}
_TAKE_TOKENS = frozenset({"lstm"})
_LARGEST = 1_000_000_000
_NOT_OPTIONS = frozenset({"input_shape", "num_classes", "rngs", "dtype"})


def names() -> tuple[str, ...]:
  """The names that ``create`` knows."""
  return tuple(_MODELS)


def create(
  name: str,
  *,
  seed: int,
  num_classes: int,
  input_shape: Sequence[int],
  dtype: DTypeLike = jnp.float32,
  **options: Any,
) -> tuple[Params, ApplyFn]:
  """Makes a model: its parameters, and the function that applies them.

  Args:
    name: one of ``names()``.
    seed: of the initial parameters. It need not be secret: they are drawn
      before any data is seen.
    num_classes: length of the output, >= 1.
    input_shape: of ONE example: ``(height, width, channels)``, or
      ``(length,)`` for token ids.
    dtype: of the computation, e.g. ``jnp.bfloat16``. Parameters, normalisation
      statistics and the result are float32 in any case.
    **options: of the model:

      ====================== ================================================
      mlp                    hidden=(128,), activation="tanh"
      random_features        num_features=2000, bandwidth=0.5
      tanh_cnn               activation="tanh"
      dp_cnn                 activation="tanh", hidden=128
      resnet18, resnet34     stem="imagenet" | "cifar", num_groups=32,
                             norm="group" | "batch",
                             weight_standardization=False
      wrn_16_4, wrn_40_4     num_groups=16, weight_standardization=False
      lstm                   vocab_size=10_000, embedding_dim=100, hidden=192,
                             embedding="frozen" | "trained"
      vit_tiny               patch_size=4, width=192, num_layers=12,
                             num_heads=3, mlp_width=768
      ====================== ================================================

  Returns:
    ``params``, a nested dict of float32 arrays with string keys, so that a
    path reads like ``blocks/0/conv1/kernel``; and ``apply_fn(params, x)``, the
    logits ``float32 [num_classes]`` of ONE example ``x`` of ``input_shape``.
    For a batch: ``jax.vmap(apply_fn, (None, 0))``.

    With ``norm="batch"`` it is of a bucket: ``apply_fn(params, x,
    is_padding_example)``, ``x [rows, *input_shape]`` and bool ``[rows]``, gives
    ``[rows, num_classes]``, all rows normalised by statistics of those that are
    not padding. See ``bucket_loss``.

  Guarantees:
    Equal arguments give equal parameters and the same ``apply_fn``, so that
    compiled code is found again. Nothing but ``params`` is trained and there
    is no other state: no running statistics, no dropout. A frozen embedding is
    a public constant.

  Example:
    >>> params, apply_fn = create(
    ...   "mlp", seed=0, num_classes=10, input_shape=(8, 8, 1)
    ... )
    >>> jax.tree.map(jnp.shape, params)["layers"]["0"]
    {'bias': (128,), 'kernel': (64, 128)}
    >>> apply_fn(params, jnp.zeros((8, 8, 1))).shape
    (10,)
  """
  if name not in _MODELS:
    raise ValueError(
      f"model must be one of {', '.join(names())}; got {name!r}."
    )
  _check_options(name, {**options, "seed": seed, "num_classes": num_classes})
  hashable = {
    option: tuple(value) if isinstance(value, list) else value
    for option, value in options.items()
  }
  init_fn, apply_fn = _build(
    name,
    num_classes,
    tuple(input_shape),
    _as_dtype(dtype),
    tuple(sorted(hashable.items())),
  )
  return init_fn(seed), apply_fn


def count_params(params: Any) -> int:
  """The number of parameters; shapes are enough, as from ``jax.eval_shape``."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def _check_options(name: str, options: Mapping[str, Any]) -> None:
  """Raises for options that the model does not have, and for their values."""
  types = {**_options(name), "seed": int, "num_classes": int}
  if unknown := sorted(options.keys() - types.keys()):
    hint = _types.did_you_mean(unknown[0], types)
    raise TypeError(f"model {name!r} has no option {unknown[0]!r}; {hint}.")
  for option, value in options.items():
    _types.check(option, value, types[option])
    if option == "seed":
      if value < 0:
        raise ValueError(f"seed must be >= 0, got seed={value}.")
      continue
    for number in value if isinstance(value, list | tuple) else [value]:
      is_flag = isinstance(number, str | bool)
      if not is_flag and not 0 < number <= _LARGEST:
        raise ValueError(
          f"{option} must be > 0 and at most {_LARGEST:,}, got "
          f"{option}={value}."
        )


def _as_dtype(dtype: DTypeLike) -> Any:
  try:
    found = jnp.dtype(dtype)
  except TypeError:
    found = None
  if found is None or not jnp.issubdtype(found, jnp.floating):
    raise ValueError(
      "dtype must be a floating-point type, such as 'float32' or 'bfloat16', "
      f"got {dtype!r}."
    )
  return found


def _options(name: str) -> dict[str, Any]:
  """The annotations of a model's options."""
  make = _MODELS[name][0].__init__
  types = typing.get_type_hints(make)
  return {
    option: types[option]
    for option, parameter in inspect.signature(make).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and option not in _NOT_OPTIONS
  }


@functools.cache
def _build(
  name: str,
  num_classes: int,
  input_shape: tuple[int, ...],
  dtype: jnp.dtype,
  options: tuple[tuple[str, Any], ...],
) -> tuple[Callable[[int], Params], ApplyFn]:
  def make() -> nnx.Module:
    model_class, arguments = _MODELS[name]
    model: Callable[..., nnx.Module] = model_class
    return model(
      *arguments,
      input_shape=input_shape,
      num_classes=num_classes,
      dtype=dtype,
      rngs=nnx.Rngs(0),
      **dict(options),
    )

  # Split once, abstractly; merging in apply_fn is work of the trace alone.
  graphdef, abstract = nnx.split(nnx.eval_shape(make))
  variables = {
    "/".join(map(str, keys)): (keys, variable.get_value().shape)
    for keys, variable in nnx.to_flat_state(abstract)
  }
  paths = {path: keys for path, (keys, _) in variables.items()}

  size = 4 * sum(math.prod(shape) for _, shape in variables.values())
  if size > _memory():
    raise ValueError(
      f"model {name!r} with {dict(options)} would have {size / 1e9:,.0f} GB of "
      "parameters. Make it smaller."
    )

  def init_fn(seed: int) -> Params:
    return _nest(
      (path.split("/"), jnp.asarray(_init.initial_value(seed, path, shape)))
      for path, (_, shape) in variables.items()
    )

  takes_buckets = dict(options).get("norm") == "batch"

  def apply_fn(params: Params, x: jax.Array, *mask: jax.Array) -> jax.Array:
    if takes_buckets and (len(mask) != 1 or x.shape[1:] != input_shape):
      raise ValueError(
        f"model {name!r} with norm='batch' takes a bucket [rows, *{input_shape}"
        f"] and its padding mask, got shape {jnp.shape(x)}. Train it with "
        "models.bucket_loss and sampling.Buckets, or use norm='group'."
      )
    if not takes_buckets and (mask or jnp.shape(x) != input_shape):
      raise ValueError(
        f"model {name!r} takes ONE example of shape {input_shape}, got shape "
        f"{jnp.shape(x)}. For a batch: jax.vmap(apply_fn, (None, 0))."
      )
    x = jnp.asarray(x)
    is_integer = jnp.issubdtype(x.dtype, jnp.integer)
    if is_integer != (name in _TAKE_TOKENS):
      raise TypeError(
        f"model {name!r} takes "
        + ("token ids" if name in _TAKE_TOKENS else "floating-point input")
        + f", got {x.dtype}. Stored uint8 images are scaled by "
        "jaxdp.data.preprocess(name)."
      )
    model = nnx.merge(graphdef, _under_keys(params, paths, name))
    x = x if is_integer else x.astype(dtype)
    logits = model(x, *mask) if takes_buckets else model(x[None])[0]
    return logits.astype(jnp.float32)

  return init_fn, apply_fn


def _memory() -> int:
  """Bytes of this machine."""
  return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _under_keys(
  params: Mapping[str, Any], paths: Mapping[str, tuple[Any, ...]], name: str
) -> dict[Any, Any]:
  """The parameters under NNX's own keys, which are numbers in lists."""
  flat: dict[str, Any] = {}

  def flatten(node: Any, path: str) -> None:
    if isinstance(node, Mapping):
      for key, child in node.items():
        flatten(child, f"{path}/{key}" if path else str(key))
    else:
      flat[path] = node

  flatten(params, "")
  if flat.keys() != paths.keys():
    raise ValueError(
      f"these are not the parameters of model {name!r} with these options: "
      f"missing {sorted(paths.keys() - flat.keys())}, unexpected "
      f"{sorted(flat.keys() - paths.keys())}."
    )
  return _nest((keys, flat[path]) for path, keys in paths.items())


def _nest(leaves: Iterable[tuple[Sequence[Any], Any]]) -> dict[Any, Any]:
  nested: dict[Any, Any] = {}
  for keys, leaf in leaves:
    node = nested
    for key in keys[:-1]:
      node = node.setdefault(key, {})
    node[keys[-1]] = leaf
  return nested
