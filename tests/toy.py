"""A training problem that compiles and runs in no time: softmax regression.

It has one leaf, as the noise of every leaf is half a second of compilation.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxdp

NUM_EXAMPLES, FEATURES, CLASSES = 48, 6, 3
DELTA = 1e-3


@functools.cache
def _arrays(num_examples, seed):
  truth = np.random.default_rng(99).standard_normal((FEATURES, CLASSES))
  x = np.random.default_rng(seed).standard_normal((num_examples, FEATURES))
  x = x.astype(np.float32)
  scores = x @ truth.astype(np.float32)
  return x, np.argmax(scores, axis=1).astype(np.int32)


def dataset(num_examples=NUM_EXAMPLES, seed=0):
  x, label = _arrays(num_examples, seed)
  return {"x": x.copy(), "label": label.copy()}


def params():
  return {"kernel": jnp.full((FEATURES, CLASSES), 0.01)}


def loss_fn(params, example):
  logits = example["x"] @ params["kernel"]
  return -jax.nn.log_softmax(logits)[example["label"]]


def accuracy(params):
  """Stands for an evaluation on public data."""
  data = dataset(seed=1)
  logits = data["x"] @ np.asarray(params["kernel"])
  right = np.argmax(logits, axis=1) == data["label"]
  return {"test_accuracy": float(np.mean(right))}


class Reader:
  """A data set that is not an array, as one larger than memory."""

  def __init__(self):
    self._data = dataset()
    self.largest_read = 0

  def __len__(self):
    return NUM_EXAMPLES

  def __getitem__(self, indices):
    self.largest_read = max(self.largest_read, len(indices))
    return {k: v[indices] for k, v in self._data.items()}


def poisson(num_examples=NUM_EXAMPLES, expected_batch_size=12, **kwargs):
  kwargs = {"max_batch_size": 24, **kwargs}
  return jaxdp.sampling.Poisson(
    num_examples=num_examples,
    expected_batch_size=expected_batch_size,
    **kwargs,
  )


def full_batch(num_examples=NUM_EXAMPLES):
  return jaxdp.sampling.FullBatch(num_examples=num_examples)


def mechanism(sampler=None, noise_multiplier=5.0, rule=None):
  """The default is accounted in closed form."""
  return jaxdp.Mechanism(
    jaxdp.clipping.flat(0.5) if rule is None else rule,
    full_batch() if sampler is None else sampler,
    noise_multiplier,
  )


def key(seed=7):
  return jaxdp.noise.make_key(seed)


def batch(sampler, step=0, seed=3, data=None):
  """Rows of a step, and its mask."""
  ids = sampler.sample(seed, step)
  data = dataset(sampler.num_examples) if data is None else data
  return {k: v[ids.indices] for k, v in data.items()}, ids.is_padding_example


def fit(workdir=None, **changes):
  """`jaxdp.fit` on this problem, with some of its arguments changed."""
  arguments = {
    "loss_fn": loss_fn,
    "params": params(),
    "dataset": dataset(),
    "mechanism": mechanism(),
    "optimizer": optax.sgd(0.5, momentum=0.9),
    "num_steps": 12,
    "delta": DELTA,
    "log_every": 4,
    "checkpoint_every": 4,
    "workdir": workdir,
    "progress": False,
    **changes,
  }
  return jaxdp.fit(**arguments)


def assert_same(actual, expected):
  """Bit for bit."""
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, b in zip(
    jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def assert_close(actual, expected, rtol=2e-5, atol=2e-6):
  """To the rounding of float32 sums."""
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      np.asarray(a), np.asarray(b), rtol=rtol, atol=atol
    ),
    actual,
    expected,
  )
