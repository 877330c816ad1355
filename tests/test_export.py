"""The training step leaves Python: lowered here for CPUs, GPUs and TPUs."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdp
from jaxdp import models
from tests import toy

PLATFORMS = ("cpu", "cuda", "tpu")
WORDS = 0x1BADB002, 0x0DEFACED
NUM_EXAMPLES, BATCH = 64, 8
MODELS = {
  "mlp": ("mlp", (8, 8, 1), {"hidden": (16,)}),
  "tanh CNN": ("tanh_cnn", (28, 28, 1), {}),
}


def make(name, **options):
  """A step of a model, its first state, and a batch of zeros."""
  model, shape, model_options = MODELS[name]
  params, apply_fn = models.create(
    model, seed=0, num_classes=10, input_shape=shape, **model_options
  )
  sampler = jaxdp.sampling.Poisson(
    num_examples=NUM_EXAMPLES, expected_batch_size=4, max_batch_size=BATCH
  )
  mechanism = jaxdp.Mechanism(jaxdp.clipping.flat(1.0), sampler, 1.0)
  step = jaxdp.make_train_step(
    models.classification_loss(apply_fn),
    mechanism,
    optax.sgd(0.1, momentum=0.9),
    ema_decay=0.9,
    **options,
  )
  key = jax.random.wrap_key_data(
    np.array(WORDS, np.uint32), impl="threefry2x32"
  )
  batch = {
    "image": jnp.zeros((BATCH, *shape)),
    "label": jnp.zeros(BATCH, jnp.int32),
  }
  return step, step.init(params, key), batch, jnp.zeros(BATCH, bool)


def key_words_in(exported):
  text = exported.mlir_module().lower()
  # Constants of several elements may be printed as bytes.
  return [
    word
    for word in WORDS
    if f"{word}" in text or word.to_bytes(4, "little").hex() in text
  ]


def test_a_key_that_is_closed_over_would_be_found():
  key = jnp.array(WORDS, jnp.uint32)
  exported = jax.export.export(jax.jit(lambda x: x + key))(key)
  assert key_words_in(exported) == list(WORDS)


@pytest.mark.parametrize("name", MODELS)
def test_a_step_is_exported_for_all_platforms(name):
  step, state, batch, mask = make(name)
  exported = jax.export.export(step.jitted, platforms=PLATFORMS)(
    state, batch, mask
  )
  assert exported.platforms == PLATFORMS
  assert key_words_in(exported) == []


def test_a_scan_of_steps_over_rows_of_device_data_is_exported():
  step, state, batch, _ = make("mlp", microbatch_size=3)
  data = jax.tree.map(
    lambda x: jnp.zeros((NUM_EXAMPLES, *x.shape[1:]), x.dtype), batch
  )
  rows = jnp.zeros((5, BATCH), jnp.int32)

  def scan(state, data, rows, mask):
    return jax.lax.scan(
      lambda state, x: step.run(state, data, *x), state, (rows, mask)
    )

  masks = jnp.zeros((5, BATCH), bool)
  exported = jax.export.export(
    jax.jit(scan, donate_argnums=0), platforms=PLATFORMS
  )(state, data, rows, masks)
  assert exported.platforms == PLATFORMS
  assert key_words_in(exported) == []


@pytest.mark.slow
def test_an_exported_step_does_what_the_step_does():
  step, state, batch, mask = make("mlp")
  rng = np.random.default_rng(0)
  batch["image"] = jnp.asarray(rng.random(batch["image"].shape, np.float32))
  exported = jax.export.export(step.jitted, platforms=PLATFORMS)(
    state, batch, mask
  )
  actual, _ = exported.call(state, batch, mask)
  expected, _ = step(state, batch, mask)
  toy.assert_close(actual.params, expected.params)
