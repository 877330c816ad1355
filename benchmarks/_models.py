"""The models that the benchmarks step: a loss, parameters and one batch each.

Those of ``jaxdp.models`` come from there; LeNet and the transformer are plain
functions of a parameter tree.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdp import models


class Task(NamedTuple):
  """What one training step needs."""

  loss_fn: Callable[[Any, Any], jax.Array]  # of ONE example
  params: Any
  batch: Any  # leaves [batch_size, ...]
  batch_size: int


def gradient(loss_fn: Callable[[Any, Any], jax.Array]) -> Callable[..., Any]:
  """Of the sum over a batch, ``(params, batch, mask)``, without privacy."""

  def fun(params: Any, batch: Any, mask: jax.Array) -> Any:
    losses = jax.vmap(loss_fn, in_axes=(None, 0))
    return jax.grad(lambda p: jnp.sum(losses(p, batch) * ~mask))(params)

  return fun


def images(
  name: str,
  shape: tuple[int, ...],
  batch_size: int,
  dtype: Any = jnp.float32,
  **options: Any,
) -> Task:
  """A model of ``jaxdp.models`` on random images with ten classes."""
  params, apply_fn = models.create(
    name, seed=0, num_classes=10, input_shape=shape, dtype=dtype, **options
  )
  loss_fn = models.classification_loss(apply_fn)
  return Task(loss_fn, params, _images(shape, batch_size), batch_size)


def lenet(batch_size: int) -> Task:
  """LeNet-5 of LeCun et al. 1998 (ReLU, max pooling) on 32x32x3 images."""
  rng = np.random.default_rng(0)
  params = {
    "conv1": _dense(rng, 5, 5, 3, 6),
    "conv2": _dense(rng, 5, 5, 6, 16),
    "fc1": _dense(rng, 400, 120),
    "fc2": _dense(rng, 120, 84),
    "fc3": _dense(rng, 84, 10),
  }

  def loss_fn(params: Any, example: Any) -> jax.Array:
    x = example["image"]
    for name in ("conv1", "conv2"):
      x = _pool(jax.nn.relu(_conv(params[name], x, 1, "VALID")), 2)
    x = jax.nn.relu(_affine(params["fc1"], x.reshape(-1)))
    x = jax.nn.relu(_affine(params["fc2"], x))
    return _cross_entropy(_affine(params["fc3"], x), example["label"])

  return Task(loss_fn, params, _images((32, 32, 3), batch_size), batch_size)


def tanh_cnn_reduce_window(batch_size: int) -> Task:
  """``jaxdp.models``' tanh CNN as others write it, pooling by reduce_window."""
  rng = np.random.default_rng(0)
  params = {
    "conv1": _dense(rng, 8, 8, 1, 16),
    "conv2": _dense(rng, 4, 4, 16, 32),
    "fc1": _dense(rng, 512, 32),
    "fc2": _dense(rng, 32, 10),
  }

  def loss_fn(params: Any, example: Any) -> jax.Array:
    x = jnp.tanh(_conv(params["conv1"], example["image"], 2, "SAME"))
    x = jnp.tanh(_conv(params["conv2"], _pool(x, 1), 2, "VALID"))
    x = jnp.tanh(_affine(params["fc1"], _pool(x, 1).reshape(-1)))
    return _cross_entropy(_affine(params["fc2"], x), example["label"])

  return Task(loss_fn, params, _images((28, 28, 1), batch_size), batch_size)


def transformer(
  batch_size: int,
  layers: int = 2,
  width: int = 128,
  length: int = 64,
  vocabulary: int = 1000,
  heads: int = 4,
  dtype: Any = jnp.float32,
) -> Task:
  """A causal language model: pre-norm blocks, learned positions, untied.

  Normalisation, softmax and loss are in float32, whatever the ``dtype``.
  """
  rng = np.random.default_rng(0)

  def block() -> Any:
    return {
      "norm1": _norm_params(width),
      "qkv": _dense(rng, width, 3 * width),
      "out": _dense(rng, width, width),
      "norm2": _norm_params(width),
      "up": _dense(rng, width, 4 * width),
      "down": _dense(rng, 4 * width, width),
    }

  params = {
    "embedding": _normal(rng, 0.02, vocabulary, width),
    "positions": _normal(rng, 0.02, length, width),
    "blocks": [block() for _ in range(layers)],
    "norm": _norm_params(width),
    "head": _dense(rng, width, vocabulary),
  }
  causal = np.tril(np.ones((length, length), bool))

  def attention(p: Any, x: jax.Array) -> jax.Array:
    qkv = _affine(p["qkv"], x).reshape(length, 3, heads, width // heads)
    q, k, v = qkv[:, 0], qkv[:, 1], qkv[:, 2]
    scores = jnp.einsum("qhd,khd->hqk", q, k).astype(jnp.float32)
    scores = jnp.where(causal, scores / np.sqrt(width // heads), -1e9)
    weights = jax.nn.softmax(scores).astype(dtype)
    mixed = jnp.einsum("hqk,khd->qhd", weights, v)
    return _affine(p["out"], mixed.reshape(length, width))

  def loss_fn(params: Any, tokens: jax.Array) -> jax.Array:
    x = (params["embedding"][tokens[:-1]] + params["positions"]).astype(dtype)
    for p in params["blocks"]:
      x = x + attention(p, _norm(p["norm1"], x))
      hidden = jax.nn.gelu(_affine(p["up"], _norm(p["norm2"], x)))
      x = x + _affine(p["down"], hidden)
    logits = _affine(params["head"], _norm(params["norm"], x))
    return jnp.mean(_cross_entropy(logits.astype(jnp.float32), tokens[1:]))

  shape = (batch_size, length + 1)
  tokens = rng.integers(vocabulary, size=shape, dtype=np.int32)
  return Task(loss_fn, params, jnp.asarray(tokens), batch_size)


class Size(NamedTuple):
  """A model, and how many examples it steps at once."""

  make: Callable[[int], Task]
  batch_size: int
  peer_microbatch: int  # of jax_privacy, beside the whole batch


_IN_BFLOAT16 = {"dtype": jnp.bfloat16}
TASKS: dict[str, Size] = {
  "tanh_cnn": Size(functools.partial(images, "tanh_cnn", (28, 28, 1)), 256, 32),
  "tanh_cnn_reduce_window": Size(tanh_cnn_reduce_window, 256, 32),
  "lenet": Size(lenet, 256, 32),
  "transformer": Size(transformer, 64, 32),
  "vocabulary": Size(functools.partial(transformer, vocabulary=10_000), 64, 32),
  "resnet18": Size(
    functools.partial(images, "resnet18", (32, 32, 3)), 256, 128
  ),
  # In bfloat16, for a GPU.
  "dp_cnn": Size(
    functools.partial(images, "dp_cnn", (32, 32, 3), **_IN_BFLOAT16), 256, 128
  ),
  "wrn_16_4": Size(
    functools.partial(images, "wrn_16_4", (32, 32, 3), **_IN_BFLOAT16),
    1024,
    128,
  ),
  "vit": Size(
    functools.partial(
      images,
      "vit_tiny",
      (32, 32, 3),
      width=384,
      num_heads=6,
      mlp_width=1536,
      **_IN_BFLOAT16,
    ),
    1024,
    128,
  ),
  "decoder": Size(
    functools.partial(
      transformer,
      layers=12,
      width=768,
      length=512,
      vocabulary=8192,
      heads=12,
      **_IN_BFLOAT16,
    ),
    64,
    16,
  ),
  "long_decoder": Size(
    functools.partial(
      transformer,
      layers=6,
      width=1024,
      length=1024,
      vocabulary=8192,
      heads=16,
      **_IN_BFLOAT16,
    ),
    16,
    8,
  ),
}


def _images(shape: tuple[int, ...], batch_size: int) -> Any:
  rng = np.random.default_rng(1)
  image = rng.standard_normal((batch_size, *shape), np.float32)
  label = rng.integers(10, size=batch_size, dtype=np.int32)
  return {"image": jnp.asarray(image), "label": jnp.asarray(label)}


def _normal(rng: np.random.Generator, scale: float, *shape: int) -> jax.Array:
  return jnp.asarray(scale * rng.standard_normal(shape, np.float32))


def _dense(rng: np.random.Generator, *shape: int) -> Any:
  scale = 1 / np.sqrt(np.prod(shape[:-1]))
  return {"kernel": _normal(rng, scale, *shape), "bias": jnp.zeros(shape[-1:])}


def _affine(p: Any, x: jax.Array) -> jax.Array:
  return x @ p["kernel"].astype(x.dtype) + p["bias"].astype(x.dtype)


def _norm_params(width: int) -> Any:
  return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}


def _norm(p: Any, x: jax.Array) -> jax.Array:
  y = jax.nn.standardize(x.astype(jnp.float32)) * p["scale"] + p["bias"]
  return y.astype(x.dtype)


def _conv(p: Any, x: jax.Array, stride: int, padding: str) -> jax.Array:
  y = jax.lax.conv_general_dilated(
    x[None],
    p["kernel"],
    (stride, stride),
    padding,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  return y[0] + p["bias"]


def _pool(x: jax.Array, stride: int) -> jax.Array:
  return jax.lax.reduce_window(
    x, -jnp.inf, jax.lax.max, (2, 2, 1), (stride, stride, 1), "VALID"
  )


def _cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
  return optax.softmax_cross_entropy_with_integer_labels(logits, label)
