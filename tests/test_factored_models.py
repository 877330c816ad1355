"""The factored engine on whole models, in the frameworks that people use."""

from unittest import mock

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxdp
from jaxdp import aggregation
from jaxdp.models import _layers, _lstm, _tanh_cnn, _wide_resnet
from jaxdp.per_example import explain
from tests.factors import in_type
from tests.test_factored import (
  MASK,
  UNITS,
  assert_agreement_in_float64,
  assert_norms_hold,
  outcome,
  rows,
  shapes_in,
)
from tests.units import assert_close, normal

WIDTH, LENGTH, HEADS, VOCABULARY = 16, 6, 2, 60
TOKENS = np.random.default_rng(5).integers(VOCABULARY, size=(UNITS, LENGTH + 1))


def loss_of(logits, labels):
  return -jnp.mean(
    jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
  )


def rms_norm(x, scale):
  size = jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)
  return x * size * scale[None, :]


def rotary(x):
  """Turns pairs of features by their position; x [positions, heads, size]."""
  angle = np.arange(x.shape[0])[:, None, None] / np.float32(
    10.0 ** np.arange(x.shape[2] // 2)[None, None]
  )
  a, b = jnp.split(x, 2, axis=2)
  cos, sin = (fun(angle).astype(x.dtype) for fun in (np.cos, np.sin))
  return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=2)


def block(p, x):
  """Attention by ``einsum`` over heads, then a gated layer."""
  h = rms_norm(x, p["scale"])
  q, k, v = (jnp.einsum("td,dhe->the", h, p[name]) for name in "qkv")
  q, k = rotary(q), rotary(k)
  scores = jnp.einsum("qhe,khe->hqk", q, k) / q.shape[2] ** 0.5
  causal = np.tril(np.ones((len(x), len(x)), bool))[None]
  mixed = jax.nn.softmax(jnp.where(causal, scores, -1e9))
  x = x + jnp.einsum("hqk,khe,hed->qd", mixed, v, p["out"])
  return x + jax.nn.silu(x @ p["up"]) @ p["down"]


def block_params(*layers):
  head = WIDTH // HEADS
  shapes = {
    "q": (WIDTH, HEADS, head),
    "k": (WIDTH, HEADS, head),
    "v": (WIDTH, HEADS, head),
    "out": (HEADS, head, WIDTH),
    "up": (WIDTH, 2 * WIDTH),
    "down": (2 * WIDTH, WIDTH),
  }
  params = {
    name: normal(i, *layers, *shape) / 4
    for i, (name, shape) in enumerate(shapes.items())
  }
  return {**params, "scale": np.ones((*layers, WIDTH), np.float32)}


def decoder(scanned):
  """Tied embeddings and learned positions; a loop with remat over layers."""

  def loss_fn(params, tokens):
    x = params["embedding"][tokens[:-1]] + params["positions"]
    if scanned:
      one = jax.checkpoint(lambda x, p: (block(p, x), None))
      x = jax.lax.scan(one, x, params["blocks"])[0]
    else:
      for p in params["blocks"]:
        x = block(p, x)
    x = jax.nn.standardize(x) * params["norm"][None, :]
    return loss_of(x @ params["embedding"].T, tokens[1:])

  params = {
    "embedding": normal(7, VOCABULARY, WIDTH) / 2,
    "positions": normal(8, LENGTH, WIDTH),
    "norm": np.ones(WIDTH, np.float32),
    "blocks": block_params(2) if scanned else [block_params()] * 2,
  }
  return loss_fn, params, jnp.asarray(TOKENS, jnp.int32)


def gru():
  def loss_fn(params, xs):
    def cell(h, x):
      r, z, n = jnp.split(x @ params["w"] + params["b"], 3)
      ur, uz, un = jnp.split(h @ params["u"], 3)
      z = jax.nn.sigmoid(z + uz)
      h = (1 - z) * jnp.tanh(n + jax.nn.sigmoid(r + ur) * un) + z * h
      return h, h

    return jnp.sum(jax.lax.scan(cell, jnp.zeros(5), xs)[1] ** 2)

  params = {"w": normal(1, 4, 15), "u": normal(2, 5, 15), "b": normal(3, 15)}
  return loss_fn, params, rows(7, 4)


def mixture_of_experts():
  def loss_fn(params, x):
    gates = jax.nn.softmax(x @ params["gate"])
    hidden = jax.nn.gelu(jnp.einsum("td,edh->teh", x, params["up"]))
    return jnp.sum(
      jnp.sin(jnp.einsum("te,teh,ehd->td", gates, hidden, params["down"]))
    )

  params = {
    "gate": normal(1, 4, 3),
    "up": normal(2, 3, 4, 8),
    "down": normal(3, 3, 8, 4),
  }
  return loss_fn, params, rows(5, 4)


def nnx_model():
  class Model(nnx.Module):
    def __init__(self, rngs):
      self.conv = nnx.Conv(2, 8, (3, 3), rngs=rngs)
      self.norm = nnx.GroupNorm(8, num_groups=2, rngs=rngs)
      self.attention = nnx.MultiHeadAttention(
        2, 8, decode=False, deterministic=True, rngs=rngs
      )
      self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
      x = nnx.relu(self.norm(self.conv(x[None])))[0].reshape(-1, 8)
      return self.head(jnp.mean(self.attention(x), axis=0))

  graph, params = nnx.split(Model(nnx.Rngs(0)))
  loss_fn = lambda params, x: jnp.sum(nnx.merge(graph, params)(x) ** 2)  # noqa: E731
  return loss_fn, params, rows(4, 4, 2)


def linen_model():
  class Model(linen.Module):
    @linen.compact
    def __call__(self, x):
      x = linen.Conv(6, (3,), strides=2)(x)
      x = linen.LayerNorm()(linen.relu(x))
      x = linen.RNN(linen.OptimizedLSTMCell(5, param_dtype=float))(x)
      return linen.Dense(3)(x)

  model = Model()
  with jax.numpy_dtype_promotion("standard"):
    params = model.init(jax.random.key(0), jnp.zeros((8, 4)))
  return lambda p, x: jnp.sum(model.apply(p, x) ** 2), params, rows(8, 4)


def equinox_model():
  keys = jax.random.split(jax.random.key(0), 3)
  model = eqx.nn.Sequential(
    [
      eqx.nn.Conv2d(2, 6, 3, key=keys[0]),
      eqx.nn.Lambda(jnp.ravel),
      eqx.nn.Linear(24, 10, key=keys[1]),
      eqx.nn.Lambda(jax.nn.relu),
      eqx.nn.Linear(10, 3, key=keys[2]),
    ]
  )
  params, static = eqx.partition(model, eqx.is_inexact_array)
  return (
    lambda params, x: jnp.sum(eqx.combine(params, static)(x) ** 2),
    params,
    rows(2, 4, 4),
  )


def low_rank():
  """LoRA: the base does not train."""
  base = normal(1, 30, 20)

  def loss_fn(params, x):
    thin = (x @ params["a"]) @ params["b"]
    return jnp.sum(jnp.tanh(x @ base.astype(x.dtype) + thin) ** 2)

  return loss_fn, {"a": normal(2, 30, 2), "b": normal(3, 2, 20)}, rows(3, 30)


def classifier(model_class, *arguments, inputs, **options):
  """One of ours, computing in the type of its parameters."""
  model = model_class(
    *arguments, input_shape=inputs.shape[1:], num_classes=3, dtype=None,
    rngs=nnx.Rngs(0), **options,
  )  # fmt: skip
  graph, params = nnx.split(model)

  def loss_fn(params, example):
    x, label = example
    return loss_of(nnx.merge(graph, params)(x[None]), label[None])

  return loss_fn, params, (inputs, np.array([0, 1, 2, 1], np.int32))


def text_model():
  return classifier(
    _lstm.LSTM, vocab_size=VOCABULARY, embedding_dim=5, hidden=6,
    embedding="trained", inputs=jnp.asarray(TOKENS[:, 1:], jnp.int32),
  )  # fmt: skip


def tanh_cnn():
  return classifier(_tanh_cnn.TanhCNN, inputs=rows(14, 14, 1))


def wide_resnet(**options):
  """Its GroupNorm computes in float32 always; this one does not."""
  norm = lambda *args, rngs: nnx.GroupNorm(*args, epsilon=1e-5, rngs=rngs)  # noqa: E731
  with mock.patch.object(_layers, "GroupNorm", norm):
    return classifier(
      _wide_resnet.WideResNet, 16, 4, inputs=rows(8, 8, 3), **options
    )


# A maker, and how many of its leaves get their gradients stacked.
MODELS = {
  "decoder": (lambda: decoder(scanned=False), 4),
  "decoder, scan and remat": (lambda: decoder(scanned=True), 3),
  "GRU": (gru, 1),
  "mixture of experts": (mixture_of_experts, 0),
  "Flax NNX": (nnx_model, 8),
  "Flax Linen": (linen_model, 16),  # its LSTM concatenates kernels
  "Equinox": (equinox_model, 3),
  "LSTM": (text_model, 4),
  "tanh CNN": (tanh_cnn, 4),
  "LoRA": (low_rank, 0),
}
ALWAYS = ("GRU", "Flax NNX")
WIDE = {
  "WRN": {},
  "WRN with weight standardisation": {"weight_standardization": True},
}


def distance(a, b):
  return np.linalg.norm(np.asarray(a, np.float64) - np.asarray(b, np.float64))


def names(always):
  return [
    pytest.param(name, marks=[] if name in always else pytest.mark.slow)
    for name in MODELS
  ]


def check(case):
  loss_fn, params, batch = case
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    stacked, factored = (
      outcome(method, loss_fn, params, batch, MASK)
      for method in ("stacked", "factored")
    )
    table = explain(loss_fn, params, batch, "factored")
  assert_norms_hold(factored, stacked)
  assert_close(factored[0], stacked[0], rtol=1e-3, atol=1e-4)
  return table


@pytest.mark.parametrize("name", names(ALWAYS))
def test_models_agree_with_the_stacked_engine(name):
  make, stacked = MODELS[name]
  table = check(make())
  assert table.count("| stacked") == stacked, table


@pytest.mark.parametrize("name", names(["GRU"]))
def test_models_agree_in_float64(name):
  make, _ = MODELS[name]
  with jax.numpy_rank_promotion("allow"):
    assert_agreement_in_float64(*make())


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDE)
def test_wide_resnets_agree_with_the_stacked_engine(name):
  table = check(wide_resnet(**WIDE[name]))
  assert ("conv_general_dilated" in table) != ("standard" in name)


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDE)
def test_wide_resnets_agree_in_float64(name):
  with jax.numpy_rank_promotion("allow"):
    assert_agreement_in_float64(*wide_resnet(**WIDE[name]))


def test_a_frozen_base_gets_no_gradient():
  """LoRA: only the two thin matrices train."""

  def loss_fn(params, x):
    w = params["base"] + params["a"] @ params["b"]
    return jnp.sum(jnp.tanh(x @ w) ** 2)

  def low_rank(params, x):
    thin = (x @ params["a"]) @ params["b"]
    return jnp.sum(jnp.tanh(x @ params["base"] + thin) ** 2)

  params = {
    "base": normal(1, 30, 20), "a": normal(2, 30, 2), "b": normal(3, 2, 20)
  }  # fmt: skip
  trainable = {"base": False, "a": True, "b": True}
  batch = rows(3, 30)
  results = []
  for loss in (loss_fn, low_rank):
    for method in ("stacked", "factored"):
      grads = jaxdp.per_example_grads(loss, method, trainable=trainable)(
        params, batch
      )
      assert grads.params_like["base"] is None
      results.append(grads.materialise())
  for result in results[1:]:
    assert_close(result, results[0], rtol=1e-3, atol=1e-4)
  table = explain(low_rank, params, batch, "factored", trainable=trainable)
  assert "base" not in table
  assert table.count("dot_general") == 2
  for flags in (trainable, None):
    step = jaxdp.clipped_sum(
      low_rank, jaxdp.clipping.flat(1.0), "factored", trainable=flags
    )
    shapes = shapes_in(lambda x, step=step: step(params, x)[0].grads, batch)
    assert ((30, 20) in shapes) == (flags is None)


@pytest.mark.parametrize("name", names(["GRU"]))
def test_neighbours_in_bfloat16_stay_within_the_sensitivity(name):
  """Float32 parameters that the model casts; clipped whole, and by leaf."""
  make, _ = MODELS[name]
  clip = 1e-3  # below every norm
  rules = (
    jaxdp.clipping.flat(clip),
    jaxdp.clipping.per_layer(clip, by="tensor"),
  )
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    loss_fn, params, batch = make()

    def narrow(*args):
      return loss_fn(*in_type(jnp.bfloat16, args)).astype(jnp.float32)

    @jax.jit
    def sums(params, mask):
      grads = jaxdp.per_example_grads(narrow, "factored")(params, batch, mask)
      clipped = (
        aggregation.clip(rule, grads, rule.init(params))[0] for rule in rules
      )
      return [
        jax.tree.leaves(aggregation.sum_clipped(c).grads) for c in clipped
      ]

    all_units, *neighbours = (
      sums(params, np.arange(UNITS) == removed)
      for removed in (-1, *range(UNITS))
    )
  for one_less in neighbours:
    whole, by_leaf = (
      np.array([distance(*pair) for pair in zip(*leaves, strict=True)])
      for leaves in zip(all_units, one_less, strict=True)
    )
    most = clip * (1 + 2**-18)
    assert 0.99 * clip < np.linalg.norm(whole) <= most
    assert 0.99 * clip < by_leaf.max() * len(by_leaf) ** 0.5 <= most


def test_computing_in_bfloat16_agrees_with_itself():
  """Float32 parameters that the model casts."""

  def loss_fn(params, x):
    w = params["w"].astype(jnp.bfloat16)
    hidden = jnp.tanh(x.astype(jnp.bfloat16) @ w)
    return jnp.sum((hidden @ params["u"].astype(jnp.bfloat16)) ** 2).astype(
      jnp.float32
    )

  params = {"w": normal(1, 6, 5), "u": normal(2, 5, 4)}
  rule = jaxdp.clipping.flat(0.01)
  fn = jax.jit(jaxdp.clipped_sum(loss_fn, rule, "factored"))
  whole = jax.tree.leaves(fn(params, rows(7, 6))[0].grads)
  for unit in range(UNITS):
    mask = jnp.arange(UNITS) == unit
    summed = jax.tree.leaves(fn(params, rows(7, 6), mask)[0].grads)
    assert all(leaf.dtype == jnp.float32 for leaf in summed)
    moved = [distance(*pair) for pair in zip(whole, summed, strict=True)]
    assert 0.009 < np.linalg.norm(moved) <= 0.01 * (1 + 2**-18)
