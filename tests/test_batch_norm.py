"""BatchNorm: only inside a bucket, and no statistic of private data leaves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxdp
from jaxdp import models
from jaxdp.models import _create, _layers, _resnet
from jaxdp.units import Records
from tests import toy

SHAPE = (8, 8, 3)
KEY = jax.random.key(0)


def images(rows, seed=0):
  rng = np.random.default_rng(seed)
  return {
    "image": rng.standard_normal((rows, *SHAPE), np.float32),
    "label": rng.integers(0, 3, rows).astype(np.int32),
  }


@pytest.fixture(scope="module")
def resnet10():
  """The smallest of the family: one block in each of two stages."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(_resnet.STAGES, 10, (1, 1))
    patch.setitem(_create._MODELS, "resnet10", (_resnet.ResNet, (10,)))
    return models.create(
      "resnet10",
      seed=0,
      num_classes=3,
      input_shape=SHAPE,
      stem="cifar",
      norm="batch",
    )


# The layer.


def test_it_is_that_of_flax_on_the_rows_that_are_there():
  ours = _layers.BatchNorm(3, rngs=nnx.Rngs(0))
  theirs = nnx.BatchNorm(3, use_running_average=False, rngs=nnx.Rngs(0))
  x = jnp.asarray(images(6)["image"])
  padding = jnp.arange(6) >= 4
  np.testing.assert_allclose(
    ours(x, padding)[:4], theirs(x[:4]), rtol=1e-4, atol=1e-5
  )


def test_garbage_in_padding_changes_no_bit(resnet10):
  params, apply_fn = resnet10
  clean = images(5)
  dirty = {k: v.copy() for k, v in clean.items()}
  dirty["image"][3:] = 1e6
  padding = jnp.arange(5) >= 3
  loss_fn = models.bucket_loss(apply_fn)
  run = jax.jit(jax.value_and_grad(loss_fn))
  a, b = (run(params, Records(x, padding)) for x in (clean, dirty))
  toy.assert_same(a, b)


@pytest.mark.slow
def test_an_empty_bucket_has_no_loss_and_no_gradient(resnet10):
  params, apply_fn = resnet10
  records = Records(images(2), jnp.ones(2, bool))
  loss, grads = jax.value_and_grad(models.bucket_loss(apply_fn))(
    params, records
  )
  assert loss == 0
  assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(grads))


def test_resnet18_with_batchnorm_has_the_published_size():
  params, apply_fn = models.create(
    "resnet18", seed=0, num_classes=10, input_shape=(32, 32, 3), norm="batch"
  )
  assert models.count_params(params) == 11_181_642
  x = jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)
  mask = jax.ShapeDtypeStruct((4,), jnp.bool)
  assert jax.eval_shape(apply_fn, params, x, mask).shape == (4, 10)


# In buckets.


def neighbours(apply_fn, params, extra):
  """Clipped sums of two buckets, without and with one record in the first."""
  data = images(6, seed=1)
  data["image"][4] *= extra
  batch = jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), data)
  without = jnp.array([[0, 1, 1], [0, 1, 0]], bool)
  with_it = without.at[1, 1].set(False)
  run = jax.jit(
    jaxdp.clipped_sum(models.bucket_loss(apply_fn), jaxdp.clipping.flat(0.5))
  )
  return [
    run(params, Records(batch, mask), jnp.zeros(2, bool))
    for mask in (without, with_it)
  ]


@pytest.mark.parametrize(
  "extra", [1e3, pytest.param(1.0, marks=pytest.mark.slow)]
)
def test_one_record_moves_its_own_bucket_and_no_other(resnet10, extra):
  params, apply_fn = resnet10
  (a, info_a), (b, info_b) = neighbours(apply_fn, params, extra)
  assert info_a.norms[0, 0] == info_b.norms[0, 0]
  assert info_a.norms[0, 1] != info_b.norms[0, 1]
  distance = optax.tree.norm(optax.tree.sub(a.grads, b.grads))
  assert 0 < distance <= 2 * 0.5 * (1 + 1e-5)


@pytest.fixture(scope="module")
def trained(resnet10):
  """Two classes that a pixel tells apart, learnt in buckets of about 8."""
  params, apply_fn = resnet10
  data = images(32)
  data["label"] = (data["image"][:, :, :, 0].mean((1, 2)) > 0).astype(np.int32)
  data["image"][..., 0] += 2.0 * data["label"][:, None, None]
  mechanism = jaxdp.Mechanism(
    jaxdp.clipping.flat(1.0),
    jaxdp.sampling.Buckets(
      num_examples=32, expected_batch_size=16, num_buckets=2, bucket_size=16
    ),
    0.0,  # what is looked at is the gradient
  )
  state, history = jaxdp.fit(
    models.bucket_loss(apply_fn),
    params,
    data,
    mechanism,
    optax.sgd(0.1),
    num_steps=10,
    delta=1e-3,
    seed=0,
    progress=False,
  )
  return data, apply_fn, state, history


@pytest.mark.slow
def test_a_network_with_batchnorm_trains_under_batch_clipping(
  trained, resnet10
):
  data, apply_fn, state, history = trained
  evaluate = models.bucket_accuracy(apply_fn)
  before, after = evaluate(resnet10[0], data), evaluate(state.params, data)
  assert after["loss"] < 0.5 * before["loss"]
  assert after["accuracy"] > 0.9
  assert history.statement.sampler["sampler"] == "Buckets"


@pytest.mark.slow
def test_what_is_released_holds_no_running_statistics(trained):
  names = {
    path[-1].key
    for path, _ in jax.tree_util.tree_leaves_with_path(trained[2].params)
  }
  assert names == {"kernel", "scale", "bias"}


# Evaluation.


def test_public_examples_alone_are_what_others_are_normalised_by(resnet10):
  params, apply_fn = resnet10
  public, test = images(8, seed=2), images(5, seed=3)
  evaluate = models.bucket_accuracy(apply_fn, public_examples=public)
  whole = evaluate(params, test)["loss"]
  alone = [
    evaluate(params, {k: v[i : i + 1] for k, v in test.items()})["loss"]
    for i in range(5)
  ]
  assert np.mean(alone) == pytest.approx(whole, rel=1e-5)
  other = models.bucket_accuracy(apply_fn, public_examples=images(8, seed=4))
  assert other(params, test)["loss"] != pytest.approx(whole, rel=1e-3)


def test_without_public_examples_a_batch_normalises_itself(resnet10):
  params, apply_fn = resnet10
  test = images(5, seed=3)
  evaluate = models.bucket_accuracy(apply_fn)
  records = Records(test, jnp.zeros(5, bool))
  expected = models.bucket_loss(apply_fn)(params, records)
  loss = evaluate(params, test)["loss"]
  assert loss == pytest.approx(float(expected), rel=1e-5)
  # In batches of 4, the last is padded: its one row is its own statistics.
  last = {k: v[4:] for k, v in test.items()}
  first = {k: v[:4] for k, v in test.items()}
  parts = [evaluate(params, x)["loss"] for x in (first, last)]
  padded = evaluate(params, test, batch_size=4)["loss"]
  assert padded == pytest.approx((4 * parts[0] + parts[1]) / 5, rel=1e-5)


# What is refused, before any training.


def test_one_example_is_no_bucket(resnet10):
  params, apply_fn = resnet10
  loss_fn = models.classification_loss(apply_fn)
  example = {k: v[0] for k, v in images(1).items()}
  with pytest.raises(ValueError, match=r"models.bucket_loss .*norm='group'"):
    loss_fn(params, example)


def normalised_loss(params, example):
  """BatchNorm over a batch of one, as a module applied to one example."""
  hidden = (example["x"] @ params["kernel"])[None]
  hidden = hidden - hidden.mean(0, keepdims=True)
  hidden *= jax.lax.rsqrt(hidden.var(0, keepdims=True) + 1e-5)
  return -jax.nn.log_softmax(hidden[0])[example["label"]]


def loss_with_statistics(params, example):
  mean = example["x"] @ params["kernel"]
  return toy.loss_fn(params, example), {"batch_stats": {"norm": {"mean": mean}}}


@functools.cache
def loss_of_linen():
  """A module of Flax Linen that hands out its running statistics."""
  from flax import linen

  class Net(linen.Module):
    @linen.compact
    def __call__(self, x):
      x = linen.Dense(4)(x)
      x = linen.BatchNorm(use_running_average=False)(x)
      return linen.Dense(3)(x)

  net = Net()
  variables = net.init(KEY, jnp.zeros((1, toy.FEATURES)))

  def loss_fn(params, example):
    variables_in = {
      "params": params,
      "batch_stats": variables["batch_stats"],
    }
    logits, new = net.apply(
      variables_in, example["x"][None], mutable=["batch_stats"]
    )
    return -jax.nn.log_softmax(logits[0])[example["label"]], new

  return variables["params"], loss_fn


def test_fit_refuses_batchnorm_on_single_examples():
  with pytest.raises(
    ValueError, match=r"No gradient reaches .*'kernel'.*Group"
  ):
    toy.fit(loss_fn=normalised_loss)


@pytest.mark.parametrize("library", ["by hand", "linen"])
def test_fit_refuses_statistics_that_a_loss_hands_out(library):
  params, loss_fn = toy.params(), loss_with_statistics
  if library == "linen":
    params, loss_fn = loss_of_linen()
  with pytest.raises(ValueError, match=r"hands out .*batch_stats.*GroupNorm"):
    toy.fit(loss_fn=loss_fn, params=params, has_aux=True)


def test_the_check_looks_at_no_value_of_the_data():
  """Zero gradients on all of the data are no reason to refuse, or to tell."""
  data = toy.dataset()
  data["x"][:] = 0.0
  state, _ = toy.fit(dataset=data, num_steps=1, log_every=1)
  assert int(state.step) == 1
