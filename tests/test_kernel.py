"""The GPU kernels against JAX's own gradients; interpreted where no GPU is."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp.per_example import _kernel, _norms, _products, _site, _tape

pytestmark = pytest.mark.rounding

UNITS = 3
INTERPRET = jax.default_backend() != "gpu"

# (inputs, kernel, options); NHWC, or one axis fewer.
CONVOLUTIONS = {
  "3x3": ((8, 8, 16), (3, 3, 16, 32), {}),
  "ragged features": ((7, 9, 3), (3, 3, 3, 20), {}),
  "strides": ((9, 8, 5), (3, 3, 5, 8), {"window_strides": (2, 2)}),
  "valid, strided, more cropped than met": (
    (11, 11, 4), (2, 2, 4, 8), {"window_strides": (3, 3), "padding": "VALID"}
  ),
  "dilated": ((9, 9, 4), (3, 3, 4, 8), {"rhs_dilation": (2, 2)}),
  "transposed": (
    (5, 5, 4), (3, 3, 4, 8),
    {"lhs_dilation": (2, 2), "padding": [(1, 2)] * 2},
  ),
  "negative padding": (
    (9, 9, 4), (3, 3, 4, 8), {"padding": [(-1, 0), (2, -1)]}
  ),
  "one axis": ((40, 130), (5, 130, 16), {}),
  "grouped": ((6, 6, 8), (3, 3, 4, 6), {"feature_group_count": 2}),
}  # fmt: skip


def convolution(name):
  shape, kernel_shape, options = CONVOLUTIONS[name]
  options = {
    "window_strides": (1,) * (len(shape) - 1), "padding": "SAME"
  } | options  # fmt: skip
  where = "HW"[: len(shape) - 1]
  numbers = (f"N{where}C", f"{where}IO", f"N{where}C")

  def loss_fn(kernel, x):
    y = jax.lax.conv_general_dilated(
      x[None], kernel, dimension_numbers=numbers, **options
    )
    return jnp.sum(jnp.sin(y.astype(jnp.float32)))

  return loss_fn, kernel_shape, shape


def heads():
  """Three heads of a product, which the second operand has."""

  def loss_fn(kernel, x):
    y = jnp.einsum("thi,hio->tho", x, kernel)
    return jnp.sum(jnp.sin(y.astype(jnp.float32)))

  return loss_fn, (3, 10, 40), (37, 3, 10)


def layers():
  """A scan over kernels."""

  def loss_fn(kernel, x):
    def turn(x, kernel):
      return jnp.tanh(x @ kernel), None

    y = jax.lax.scan(turn, x, kernel)[0]
    return jnp.sum(y.astype(jnp.float32))

  return loss_fn, (4, 16, 16), (20, 16)


FAST_CASES = [(name, jnp.bfloat16) for name in ("ragged features", "strides")]
CASES = {
  **{name: functools.partial(convolution, name) for name in CONVOLUTIONS},
  "heads": heads,
  "layers": layers,
}


def term_of(loss_fn, kernel, batch):
  """The loss's only site, and its factors for every unit."""
  example = jax.ShapeDtypeStruct(batch.shape[1:], batch.dtype)
  tape, _ = _tape.record(lambda p, x: loss_fn(p[0], x), [kernel], example)
  (tap,) = tape.taps

  def one(x):
    def loss(z):
      out, records = tape.run([kernel, x], [z])
      return out[0], records[0]

    zeros = jnp.zeros(tap.result.shape, tap.result.dtype)
    cotangent, record = jax.grad(loss, has_aux=True)(zeros)
    return record, cotangent

  inputs, cotangent = jax.vmap(one)(batch)
  # One repeat.
  inputs, cotangent = jax.tree.map(lambda x: x[:, None], (inputs, cotangent))
  return _site.Term(inputs, cotangent, tap.site)


@pytest.mark.parametrize(
  "name, dtype",
  [
    pytest.param(*case, marks=() if case in FAST_CASES else pytest.mark.slow)
    for case in itertools.product(CASES, [jnp.bfloat16, jnp.float16])
  ],
)
def test_kernels_agree_with_the_products_made(name, dtype):
  loss_fn, kernel_shape, shape = CASES[name]()
  rng = np.random.default_rng(0)
  kernel = jnp.asarray(0.3 * rng.standard_normal(kernel_shape), dtype)
  batch = jnp.asarray(rng.standard_normal((UNITS, *shape)), dtype)
  term = term_of(loss_fn, kernel, batch)
  made = term.stacked()
  weights = jnp.asarray([0.3, 0.0, 1.7])

  product = _products.of(_products.by_layer(term))
  found = _kernel.squares(product, interpret=INTERPRET)
  found = found.reshape(UNITS, -1).sum(1)
  np.testing.assert_allclose(found, _norms.sum_squares(made), 1e-5)

  # A unit of weight 0 adds nothing, whatever it holds.
  product = jax.tree.map(
    lambda x: x.reshape(UNITS, -1, *x.shape[2:]).at[1].set(jnp.nan), product
  )
  found = _products.gradient(
    term.site, _kernel.weighted_sum(product, weights, interpret=INTERPRET)
  )
  exact = jnp.einsum("u,u...->...", weights, made)
  assert found.shape == kernel.shape
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, exact, 1e-5, 1e-5 * jnp.abs(exact).max())
