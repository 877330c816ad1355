"""Momentum inside a unit (METHODS 3.2 and 5.9)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdp
from jaxdp import InnerMomentum, clipping
from tests.units import BATCH, PARAMS, UNITS, loop, loss_fn

KEY = jax.random.key(5)
CLIP = 0.4


def train(inner, num_steps=3, *, rate=0.3, sigma=1.0, **kwargs):
  """The parameters before every step and after the last."""
  mechanism = jaxdp.Mechanism(
    clipping.flat(CLIP), jaxdp.sampling.FullBatch(UNITS), sigma
  )
  step = jaxdp.make_train_step(
    loss_fn, mechanism, optax.sgd(rate), inner_momentum=inner, **kwargs
  )
  state = step.init(PARAMS, KEY)
  iterates = [jax.tree.map(np.asarray, state.params)]
  for _ in range(num_steps):
    state, _ = step(state, BATCH)
    iterates.append(jax.tree.map(np.asarray, state.params))
  return iterates


@pytest.fixture(scope="module")
def plain():
  return train(None)


def assert_same(a, b, rtol=1e-5, atol=1e-6):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol, atol), a, b)


@pytest.mark.parametrize(
  "inner", [InnerMomentum(1), InnerMomentum(3, decay=0.0)], ids=["K=1", "g=0"]
)
def test_without_a_window_it_is_plain(inner, plain):
  """METHODS 5.9: K = 1, or gamma = 0."""
  assert_same(train(inner), plain)


@pytest.mark.slow
def test_at_rest_a_normalised_window_is_the_plain_gradient():
  """METHODS 5.9: with lr = 0 all iterates are one; so is any first step."""
  inner = InnerMomentum(3, decay=0.7)
  loss = jaxdp.inner_momentum.over_iterates(
    loss_fn,
    inner.window(inner.init(PARAMS), PARAMS, jnp.array(7)),
  )
  grads = [
    jaxdp.per_example_grads(fn)(PARAMS, BATCH).materialise()
    for fn in (loss, loss_fn)
  ]
  assert_same(*grads)


@pytest.mark.parametrize("normalized", [True, False])
def test_a_unit_is_clipped_once_after_its_sum_over_iterates(normalized):
  """METHODS 3.2, by hand: a window of three that fills up."""
  decay = 0.6
  iterates = train(InnerMomentum(3, decay, normalized), num_steps=4, sigma=0.0)
  for t in range(4):
    weights = decay ** np.arange(min(t + 1, 3))
    if normalized:
      weights = weights / weights.sum()
    v = [
      jax.tree.map(lambda g, a=a: a * g, loop(loss_fn, iterates[t - k], BATCH))
      for k, a in enumerate(weights)
    ]
    v = jax.tree.map(lambda *x: np.sum(x, axis=0), *v)
    norms = np.sqrt(
      sum(np.sum(g.reshape(UNITS, -1) ** 2, axis=1) for g in jax.tree.leaves(v))
    )
    scale = np.minimum(1, CLIP / norms)
    mean = jax.tree.map(lambda g: np.tensordot(scale, g, 1) / UNITS, v)  # noqa: B023
    expected = jax.tree.map(lambda p, g: p - 0.3 * g, iterates[t], mean)
    assert_same(iterates[t + 1], expected, 1e-4, 1e-5)


def test_frozen_leaves_have_no_history():
  inner = InnerMomentum(2)
  step = jaxdp.make_train_step(
    loss_fn,
    jaxdp.Mechanism(clipping.flat(CLIP), jaxdp.sampling.FullBatch(UNITS), 1.0),
    optax.sgd(0.3),
    inner_momentum=inner,
    trainable=lambda name, leaf: name.startswith("head"),
    microbatch_size=2,
  )
  state = step.init(PARAMS, KEY)
  for _ in range(2):
    state, _ = step(state, BATCH)
  assert state.past_params["body"] == {"kernel": None, "bias": None}
  np.testing.assert_array_equal(
    state.params["body"]["kernel"], PARAMS["body"]["kernel"]
  )
  assert (np.asarray(state.params["head"]["kernel"]) != 0).all()


def test_training_without_privacy_has_it_too():
  """The mean over units of the windowed gradient, without a clip."""
  step = jaxdp.make_train_step(
    loss_fn, None, optax.sgd(0.3), inner_momentum=InnerMomentum(2, 0.5)
  )
  state = step.init(PARAMS, KEY)
  iterates = [PARAMS]
  for _ in range(2):
    state, _ = step(state, BATCH)
    iterates.append(jax.tree.map(np.asarray, state.params))
  now, past = (
    jax.tree.map(lambda g: g.mean(0), loop(loss_fn, params, BATCH))
    for params in (iterates[1], iterates[0])
  )
  expected = jax.tree.map(
    lambda p, a, b: p - 0.3 * (a + 0.5 * b) / 1.5, iterates[1], now, past
  )
  assert_same(iterates[2], expected, 1e-4, 1e-5)


def test_aux_is_that_of_the_current_iterate():
  inner = InnerMomentum(2, 0.5)
  history = inner.push(inner.init(jnp.array(1.0)), jnp.array(2.0))
  window = inner.window(history, jnp.array(5.0), jnp.array(3))
  fn = jaxdp.inner_momentum.over_iterates(
    lambda w, x: (w * x, w), window, has_aux=True
  )
  loss, aux = fn(jnp.array(5.0), 1.0)
  assert aux == 5.0
  np.testing.assert_allclose(loss, (5 + 0.5 * 2) / 1.5, 1e-6)


@pytest.mark.parametrize(
  "inner, message",
  [
    (InnerMomentum(0), "num_iterates must be >= 1"),
    (InnerMomentum(2, decay=1.1), r"decay must be in \[0, 1\]"),
  ],
)
def test_bad_windows_are_refused(inner, message):
  with pytest.raises(ValueError, match=message):
    train(inner)
