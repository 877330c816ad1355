"""The probes find what couples units, and leave alone what does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp
from jaxdp import probe
from tests.units import BATCH, PARAMS, loss_fn, normal

KEY = jax.random.key(0)


def normalize(x):
  """BatchNorm in training mode, without scale and offset."""
  mean, variance = x.mean(0, keepdims=True), x.var(0, keepdims=True)
  return (x - mean) * jax.lax.rsqrt(variance + 1e-5)


def batch_loss(params, batch):
  """A network with BatchNorm, over a whole batch."""
  hidden = jnp.tanh(
    normalize(
      batch["x"] @ params["body"]["kernel"] + params["body"]["bias"][None]
    )
  )
  error = hidden @ params["head"]["kernel"] - batch["y"]
  return 0.5 * jnp.sum(jnp.square(error), axis=1)


def test_gradients_of_a_loss_of_one_example_are_isolated():
  grads = jaxdp.per_example_grads(loss_fn)
  probe.check_isolation(lambda p, b: grads(p, b).materialise(), PARAMS, BATCH)


def test_batchnorm_in_a_batched_gradient_function_is_found():
  """As a library's hooks do it: one row a unit, all through one batch."""
  with pytest.raises(ValueError, match=r"moves with unit 0 .*Use GroupNorm"):
    probe.check_isolation(jax.jacrev(batch_loss), PARAMS, BATCH)


def test_one_pair_that_couples_is_found():
  """Only unit 3 looks at unit 2: in-batch negatives, in small."""

  def grads_fn(w, xs):
    return w * xs.at[3].add(0.1 * xs[2])

  with pytest.raises(ValueError, match="of unit 3 moves with unit 2"):
    probe.check_isolation(grads_fn, 1.0, jnp.arange(1.0, 6.0))


def test_isolation_needs_two_units():
  with pytest.raises(ValueError, match="at least two units"):
    probe.check_isolation(lambda w, x: x, 1.0, np.ones(1))


def test_batchnorm_on_single_examples_has_no_gradient_below_it():
  def one(params, example):
    batch = jax.tree.map(lambda x: x[None], example)
    return batch_loss(params, batch)[0]

  with pytest.raises(ValueError, match=r"body/bias.*body/kernel.*head/kernel"):
    probe.check_gradients(one, PARAMS, BATCH, key=KEY)


def test_ordinary_losses_pass_also_from_zero_parameters():
  zeros = jax.tree.map(np.zeros_like, PARAMS)
  probe.check_gradients(loss_fn, zeros, BATCH, key=KEY)


def test_a_leaf_that_the_loss_does_not_use_must_be_frozen():
  params = {**PARAMS, "spare": normal(9, 2)}
  with pytest.raises(ValueError, match=r"\['spare'\] on any of 5"):
    probe.check_gradients(loss_fn, params, BATCH, key=KEY)
  probe.check_gradients(
    loss_fn,
    params,
    BATCH,
    key=KEY,
    trainable=lambda name, leaf: name != "spare",
  )
