"""One unit that is not finite changes nothing of the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp
from jaxdp import PerExampleGrads
from tests.units import (
  BATCH,
  MASK,
  PARAMS,
  UNITS,
  assert_close,
  loop,
  loss_fn,
  normal,
  zeroed,
)

pytestmark = pytest.mark.rounding

SLOW = pytest.mark.slow


def bad_input(batch):
  batch = {**batch, "x": batch["x"].copy()}
  batch["x"][1].flat[0] = np.nan
  return batch


def overflow(batch):
  """The network multiplies activations by exp(shift): infinite for unit 1."""
  batch = {**batch, "shift": batch["shift"].copy()}
  batch["shift"][1] = 200.0
  return batch


def conv(x, kernel, groups):
  return jax.lax.conv_general_dilated(
    x[None],
    kernel,
    (1, 1),
    "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=groups,
  )[0]


def conv_net(groups, wrap=lambda fun: fun):
  """Two convolutions, parameters and a batch; `wrap` hides the layers."""
  first, second = groups
  params = {
    "a": normal(0, 3, 3, 4 // first, 8),
    "b": normal(1, 3, 3, 8 // second, 8),
  }
  batch = {"x": normal(2, UNITS, 6, 6, 4), "shift": normal(3, UNITS)}

  def loss(params, example):
    def layers(x, params):
      x = conv(x, params["a"], first) * jnp.exp(example["shift"])
      return conv(x, params["b"], second)

    x = wrap(layers)(example["x"], params)
    return jnp.sum(jnp.tanh(x) * x)

  return loss, params, batch


NETS = {
  "mlp": lambda: (
    lambda p, e: loss_fn(p, e) * jnp.exp(e["shift"]),
    PARAMS,
    {**BATCH, "shift": normal(5, UNITS)},
  ),
  "conv": lambda: conv_net((1, 1)),
  "depthwise": lambda: conv_net((4, 8)),
  "grouped": lambda: conv_net((2, 2)),
}
OTHERS = np.arange(UNITS) != 1


def others(tree):
  return jax.tree.map(lambda x: x[OTHERS], tree)


@pytest.mark.parametrize(
  "net",
  [
    "mlp",
    "grouped",
    *(pytest.param(n, marks=SLOW) for n in NETS if "conv" in n or "depth" in n),
  ],
)
def test_one_bad_unit_changes_no_other_gradient(net):
  loss, params, batch = NETS[net]()
  grads_fn = jax.jit(jaxdp.per_example_grads(loss))
  clean = grads_fn(params, batch).materialise()
  assert_close(clean, loop(loss, params, batch), 1e-4, 1e-3)
  groups = (0,) * len(jax.tree.leaves(params))
  for damage in (bad_input, overflow):
    grads = grads_fn(params, damage(batch))
    found = grads.materialise()
    assert_close(others(found), others(clean), 1e-4, 1e-4)
    assert all((np.asarray(x)[1] == 0).all() for x in jax.tree.leaves(found))
    assert np.isfinite(grads.norms(groups)[0]).tolist() == OTHERS.tolist()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a habit of XLA:CPU")
@pytest.mark.parametrize(
  "groups, spreads",
  [((2, 2), True), ((1, 1), False), pytest.param((4, 8), True, marks=SLOW)],
)
def test_vmap_of_grad_does_spread_nan_over_grouped_convolutions(
  groups, spreads
):
  """Control: the test above sees something. Dense convolutions are apart."""
  loss, params, batch = conv_net(groups)
  grads_fn = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))
  for damage in (bad_input, overflow):
    kernels = np.asarray(grads_fn(params, damage(batch))["a"])
    missing = np.isnan(kernels).any(axis=(1, 2, 3, 4))
    assert missing.tolist() == [spreads or i == 1 for i in range(UNITS)]


WRAPPERS = {
  "scan": lambda fun: (
    lambda x, p: jax.lax.scan(
      lambda c, _: (c + fun(x, p), None), jnp.zeros((6, 6, 8)), None, 2
    )[0]
  ),
  "cond": lambda fun: (
    lambda x, p: jax.lax.cond(
      jnp.sum(x) < 1e9, fun, lambda x, p: fun(-x, p), x, p
    )
  ),
  "jit": jax.jit,
  "remat": jax.checkpoint,
}


@SLOW
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_convolutions_are_found_inside_other_primitives(wrap):
  loss, params, batch = conv_net((2, 2), WRAPPERS[wrap])
  grads_fn = jax.jit(jaxdp.per_example_grads(loss))
  clean, grads = (grads_fn(params, b) for b in (batch, overflow(batch)))
  assert_close(
    others(grads.materialise()), others(clean.materialise()), 1e-4, 1e-4
  )
  assert np.isfinite(grads.norms((0, 0))[0]).tolist() == OTHERS.tolist()


@pytest.mark.parametrize("net", ["mlp", pytest.param("grouped", marks=SLOW)])
def test_loss_that_fails_on_zeros_survives_padding(net):
  """A removed unit is computed from zeros, where this loss is not finite."""
  loss, params, batch = NETS[net]()

  def normalising(params, example):
    x = example["x"] / jnp.linalg.norm(example["x"])
    return loss(params, {**example, "x": x})

  grads_fn = jax.jit(jaxdp.per_example_grads(normalising))
  grads = grads_fn(params, batch, MASK)
  expected = zeroed(loop(normalising, params, batch), MASK)
  assert_close(grads.materialise(), expected, 1e-4, 1e-4)
  assert np.isfinite(grads.norms((0,) * len(jax.tree.leaves(params)))).all()


def test_rows_wrapped_from_outside_are_dropped_whole():
  stacked = {"a": normal(0, 3, 2), "b": normal(1, 3, 4)}
  stacked["a"][1, 0] = np.nan
  grads = PerExampleGrads.from_stacked(stacked)
  assert (np.asarray(grads.materialise()["b"])[1] == 0).all()
  assert not np.isfinite(grads.norms((0, 0))[0, 1])
