"""The factored engine agrees with the stacked one, whatever the loss does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

import jaxdp
from jaxdp.inner_momentum import over_iterates
from jaxdp.per_example import (
  _auto,
  _batch,
  _norms,
  _products,
  _site,
  _tape,
)
from jaxdp.per_example._products import Product, Window
from tests import toy
from tests.factors import float64, in_type, norms_in_float64
from tests.units import assert_close, normal

pytestmark = pytest.mark.rounding

UNITS = 4
MASK = np.array([False, True, False, False])


# Losses of one unit: parameters, a batch, and how many sites each leaf has
# (None: a use that is no site).


def case(loss_fn, params, batch, sites):
  return loss_fn, params, batch, sites


def rows(*shape, seed=9):
  return normal(seed, UNITS, *shape)


def dot(x_shape, w_shape, dims, w_first=False):
  def loss_fn(params, x):
    operands = (params["w"], x) if w_first else (x, params["w"])
    numbers = tuple(d[::-1] if w_first else d for d in dims)
    return jnp.sum(jnp.sin(jax.lax.dot_general(*operands, numbers)))

  return case(loss_fn, {"w": normal(1, *w_shape)}, rows(*x_shape), [1])


def conv(x_shape, w_shape, spec=("NHWC", "HWIO", "NHWC"), **options):
  options = {"window_strides": (1, 1), "padding": "SAME", **options}

  def loss_fn(params, x):
    out = jax.lax.conv_general_dilated(
      x, params["w"], dimension_numbers=spec, **options
    )
    return jnp.sum(jnp.sin(out))

  return case(loss_fn, {"w": normal(1, *w_shape)}, rows(*x_shape), [1])


def look_up(mode, tokens):
  def loss_fn(params, tokens):
    return jnp.sum(jnp.sin(params["w"].at[tokens].get(mode=mode)))

  return case(loss_fn, {"w": normal(1, 5, 3)}, jnp.asarray(tokens), [1])


TOKENS = [[0, 1, 1, 4], [2, 2, 2, 2], [0, 1, 2, 3], [4, 0, 4, 0]]
OUTSIDE = [[0, 9, 1, 4], [2, -7, 2, 2], [9, 9, 9, 9], [4, 0, 4, 5]]


CONSTANT = normal(8, 3, 2)


def one_row(params, token):
  """A scalar index, which JAX reads as a slice; also from the end."""
  return jnp.sum(jnp.sin(params["w"][token] * params["w"][-1 - token]))


def views(params, x):
  w = params["w"].reshape(4, 6).T.astype(float)[None, :, :, None]
  return jnp.sum(jnp.sin(x @ jnp.squeeze(w)))


def tied(params, tokens):
  x = jnp.tanh(params["w"][tokens])
  return jnp.sum(jnp.sin(x @ params["w"].T))


def tied_to_a_table(params, tokens):
  """As an embedding, transposed as the last layer, and once more as it is."""
  x = jnp.tanh(params["w"].at[tokens].get(mode="fill", fill_value=0.0))
  hidden = jnp.sin(x @ params["w"].T)
  return jnp.sum(jnp.cos(hidden @ params["w"])) + jnp.sum(hidden**2)


def tied_in_another_shape(params, tokens):
  """No matrix with the rows of the table, so that the products are made."""
  x = jnp.tanh(params["w"][tokens])
  return jnp.sum(jnp.sin(x @ params["w"].reshape(3, 40)))


def twice(params, x):
  return jnp.sum(jnp.tanh(jnp.tanh(x @ params["w"]) @ params["w"]))


def layer(x, w, b):
  return jnp.tanh(x @ w + b)


def mlp(wrap=lambda fun: fun):
  def loss_fn(params, x):
    for w, b in zip(params["w"], params["b"], strict=True):
      x = wrap(layer)(x, w, b)
    return jnp.sum(x**2)

  params = {
    "w": [normal(1, 3, 4), normal(2, 4, 2)],
    "b": [normal(3, 4), normal(4, 2)],
  }
  return case(loss_fn, params, rows(3), [None, None, 1, 1])


def inner_momentum(plain):
  """Two sites a matrix: at the current iterate, and in the loop over others."""
  loss_fn, params, batch, _ = plain
  inner = jaxdp.InnerMomentum(num_iterates=3)
  history = jax.tree.map(lambda x: np.stack([x / 2, x / 3]), params)
  window = inner.window(history, params, jnp.array(5))
  loss_fn = over_iterates(loss_fn, window)
  return case(loss_fn, params, batch, [None, None, 2, 2])


@jax.custom_jvp
def doubled(w):
  return 2 * w


doubled.defjvp(lambda w, t: (2 * w[0], 3 * t[0]))  # a rule of its own


def scan_over_time(params, xs):
  def cell(h, x):
    h = jnp.tanh(x @ params["w"] + h @ params["u"])
    return h, h

  return jnp.sum(jax.lax.scan(cell, jnp.zeros(2), xs)[1])


def scan_over_layers(params, x):
  def one(x, w):
    return jnp.tanh(x @ w), None

  return jnp.sum(jax.lax.scan(one, x, params["w"])[0])


def layers_in_time(params, xs):
  """The loop over layers is the inner one."""

  def step(h, x):
    one = lambda h, w: (jnp.tanh((x + h) @ w), None)  # noqa: E731
    return jax.lax.scan(one, h, params["w"], reverse=True)[0], None

  return jnp.sum(jax.lax.scan(step, jnp.zeros((2, 3)), xs)[0])


def time_in_layers(params, xs):
  """Each layer goes through time, with a view of its slice."""

  def one(xs, w):
    w = w.reshape(3, 3).T

    def step(h, x):
      h = jnp.tanh((x + h) @ w)
      return h, h

    return jax.lax.scan(step, jnp.zeros(3), xs)[1], None

  return jnp.sum(jax.lax.scan(one, xs, params["w"])[0])


def carried(w, x):
  """A parameter that a loop might change."""
  turn = lambda carry, _: ((carry[0] @ carry[1], 2 * carry[1]), None)  # noqa: E731
  return jnp.sum(jax.lax.scan(turn, (x, w), length=3)[0][0])


def branch(params, x):
  return jax.lax.cond(
    x[0] > 0, lambda w: jnp.sum(x @ w), lambda w: jnp.sum((2 * x) @ w), params
  )


def branch_in_time(params, xs):
  """One branch uses a parameter that the other does not."""
  one = lambda h: jnp.tanh(h @ params["u"] @ params["w"])  # noqa: E731
  other = lambda h: jnp.sin(h @ params["w"])  # noqa: E731

  def step(h, x):
    h = jax.lax.cond(x[0] > 0, one, other, h + x)
    return jnp.sin(h @ params["w"]), None

  return jnp.sum(jax.lax.scan(step, jnp.zeros(3), xs)[0] @ params["u"])


def nothing_but_a_product(params, x):
  return jnp.sum((params["u"] @ params["w"]) * x)


def dropout(params, example):
  hidden = jnp.tanh(example["x"] @ params["w"])
  kept = jax.random.bernoulli(example["key"], 0.5, hidden.shape)
  return jnp.sum(jnp.sin(jnp.where(kept, hidden, 0.0) @ params["u"]))


CASES = {
  "x @ w": dot((3,), (3, 4), (((0,), (0,)), ((), ()))),
  "w @ x": dot((3,), (4, 3), (((0,), (1,)), ((), ())), w_first=True),
  "positions": dot((5, 3), (3, 4), (((1,), (0,)), ((), ()))),
  "positions, w first": dot((5, 3), (3, 4), (((1,), (0,)), ((), ())), True),
  "many positions": dot((9, 30), (30, 40), (((1,), (0,)), ((), ()))),
  "two free, two summed": dot(
    (2, 3, 4, 5), (3, 5, 6), (((1, 3), (0, 1)), ((), ()))
  ),
  "heads": dot((4, 2, 3), (2, 3, 5), (((2,), (1,)), ((1,), (0,)))),
  "heads, w first": dot(
    (4, 2, 3), (2, 3, 5), (((2,), (1,)), ((1,), (0,))), True
  ),
  "conv": conv((1, 6, 6, 3), (3, 3, 3, 4)),
  "conv, one position": conv((1, 1, 1, 5), (3, 3, 5, 4)),
  "conv, many channels": conv((1, 2, 2, 8), (3, 3, 8, 16)),
  "conv, strides": conv(
    (1, 7, 6, 3), (3, 2, 3, 4), window_strides=(2, 3), padding="VALID"
  ),
  "conv, uneven padding": conv(
    (2, 5, 5, 3), (3, 3, 3, 4), padding=((2, 0), (0, 1))
  ),
  "conv, negative padding": conv(
    (1, 6, 6, 2), (2, 2, 2, 3), padding=((-1, 0), (1, -2))
  ),
  "conv, dilated": conv(
    (1, 6, 6, 2), (2, 2, 2, 3), rhs_dilation=(2, 3), lhs_dilation=(1, 2),
    padding=((1, 1), (0, 2)),
  ),
  "conv, NCHW": conv((1, 3, 6, 5), (4, 3, 2, 3), ("NCHW", "OIHW", "NCHW")),
  "conv, one axis": conv(
    (1, 8, 3), (3, 3, 4), ("NWC", "WIO", "NWC"), window_strides=(2,)
  ),
  "conv, transposed": conv(
    (1, 4, 5, 3), (3, 2, 3, 4), padding=((2, 1), (1, 1)), lhs_dilation=(2, 3)
  ),
  "conv, three axes": conv(
    (1, 4, 3, 5, 2), (2, 3, 2, 2, 3), ("NDHWC", "DHWIO", "NDHWC"),
    window_strides=(1, 2, 2),
  ),
  "conv, depthwise, dilated": conv(
    (1, 7, 6, 4), (2, 3, 1, 8), feature_group_count=4, rhs_dilation=(2, 1),
    window_strides=(2, 1),
  ),
  "look-up": look_up("clip", TOKENS),
  "look-up outside, fill": look_up("fill", OUTSIDE),
  "look-up outside, clip": look_up("clip", OUTSIDE),
  "look-up of one row": case(
    one_row, {"w": normal(1, 5, 3)}, jnp.asarray([0, 2, 4, 9]), [2]
  ),
  "views": case(views, {"w": normal(1, 24)}, rows(5, 6), [1]),
  "tied": case(tied, {"w": normal(1, 5, 3)}, jnp.asarray(TOKENS), [2]),
  "tied to a table": case(
    tied_to_a_table, {"w": normal(1, 40, 30)}, jnp.asarray(OUTSIDE), [3]
  ),
  "tied in another shape": case(
    tied_in_another_shape, {"w": normal(1, 40, 3)}, jnp.asarray(TOKENS), [2]
  ),
  "twice": case(twice, {"w": normal(1, 3, 3)}, rows(3), [2]),
  "mlp": mlp(),
  "mlp, jit": mlp(jax.jit),
  "mlp, remat": mlp(jax.checkpoint),
  "mlp, remat with a policy": mlp(
    functools.partial(
      jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable
    )
  ),
  "a rule of its own": case(
    lambda p, x: jnp.sum(jnp.sin(x @ doubled(p["w"]))),
    {"w": normal(1, 3, 2)},
    rows(3),
    [None],
  ),
  "scan over time": case(
    scan_over_time, {"u": normal(1, 2, 2), "w": normal(2, 3, 2)}, rows(5, 3),
    [1, 1],
  ),
  "scan over layers": case(
    scan_over_layers, {"w": normal(1, 4, 3, 3)}, rows(3), [1]
  ),
  "layers in time": case(
    layers_in_time, {"w": normal(1, 4, 3, 3)}, rows(5, 2, 3), [1]
  ),
  "time in layers": case(
    time_in_layers, {"w": normal(1, 4, 9)}, rows(5, 3), [1]
  ),
  "carried": case(carried, normal(1, 3, 3), rows(3), [None]),
  "conv, groups": conv((1, 5, 5, 6), (3, 3, 2, 9), feature_group_count=3),
  "conv, depthwise, NCHW": conv(
    (2, 6, 5, 5), (6, 1, 3, 2), ("NCHW", "OIHW", "NCHW"),
    feature_group_count=6,
  ),
  "cond": case(branch, normal(1, 3, 2), rows(3), [2]),
  "cond in time": case(
    branch_in_time, {"u": normal(1, 3, 3), "w": normal(2, 3, 3)}, rows(5, 3),
    [2, 3],
  ),
  "two parameters": case(
    nothing_but_a_product, {"u": normal(1, 3, 2), "w": normal(2, 2, 3)},
    rows(3, 3), [None, None],
  ),
  "moved": case(
    lambda p, x: jnp.sum(jnp.sin(x @ (CONSTANT + p["w"] - 1.0))),
    {"w": normal(1, 3, 2)}, rows(3), [1],
  ),
  "moved by itself": case(
    lambda p, x: jnp.sum(jnp.sin(x @ (p["w"] + p["w"]))),
    {"w": normal(1, 3, 2)}, rows(3), [None],
  ),
  "moved by an example": case(
    lambda p, x: jnp.sum(jnp.sin((x @ p["w"] + p["b"]) @ p["w"].T)),
    {"b": normal(1, 3, 2), "w": normal(2, 3, 2)}, rows(3, 3), [None, 2],
  ),
  "inner momentum": inner_momentum(mlp()),
  "not used": case(
    lambda p, x: jnp.sum(x @ p["w"]),
    {"spare": normal(1, 3), "w": normal(2, 3, 2)}, rows(3), [0, 1],
  ),
  "dropout": case(
    dropout, {"u": normal(1, 8, 2), "w": normal(2, 3, 8)},
    {"key": jax.random.split(jax.random.key(0), UNITS), "x": rows(3)}, [1, 1],
  ),
  "views of a unit": case(
    jaxdp.units.mean_over_records(lambda p, x: jnp.sum(jnp.sin(x @ p["w"]))),
    {"w": normal(1, 3, 2)},
    jaxdp.units.Records(rows(5, 3), np.zeros((UNITS, 5), bool)),
    [1],
  ),
}  # fmt: skip


FEW = ("x @ w", "many positions", "heads", "conv", "look-up")
# One for each way to the norm, and what loops and branches do to it.
FEW_IN_FLOAT64 = (
  "x @ w", "many positions", "conv, transposed", "conv, depthwise, dilated",
  "look-up outside, clip", "tied to a table", "layers in time", "cond in time",
)  # fmt: skip
# Variants of others that are tested always.
VARIANTS = {
  "w @ x", "positions, w first", "two free, two summed", "heads, w first",
  "conv, many channels", "conv, strides", "conv, uneven padding",
  "conv, negative padding", "conv, NCHW", "conv, one axis",
  "conv, depthwise, NCHW", "look-up outside, clip", "mlp", "mlp, jit",
  "mlp, remat", "tied in another shape", "views of a unit", "carried",
  "layers in time", "moved", "two parameters",
}  # fmt: skip


def cases(always):
  return [
    pytest.param(name, marks=[] if always(name) else pytest.mark.slow)
    for name in CASES
  ]


def outcome(method, loss_fn, params, batch, mask):
  """Norms by leaf and whole, a weighted sum, the gradients; and their tree."""

  @jax.jit
  def run(params, batch, mask):
    grads = jaxdp.per_example_grads(loss_fn, method)(params, batch, mask)
    groups = range(len(jax.tree.leaves(params)))
    norms = grads.norms(groups)
    weights = jnp.where(jnp.isfinite(norms), 1 / (1 + norms), 0.0)
    return (
      jnp.concatenate([norms, grads.norms([0] * len(groups))]),
      grads.weighted_sum(weights, groups),
      grads.materialise(),
    ), grads

  return run(params, batch, mask)


def assert_norms_hold(factored, stacked):
  """In float32: close to the truth, and never below it."""
  (norms, *_), grads = factored
  exact, factors = norms_in_float64(grads)
  norms, others = (np.asarray(x, np.float64) for x in (norms, stacked[0][0]))
  real = np.isfinite(norms) & ~MASK
  assert (real == np.isfinite(others) & ~MASK).all()
  norms, others, exact, factors = (
    x[real] for x in (norms, others, exact, factors)
  )
  assert (norms >= exact * (1 - 8 * 2**-23)).all()
  assert (norms <= exact + 1e-5 * factors).all()
  assert (abs(norms - others) <= 1e-5 * factors).all()


@pytest.mark.parametrize("name", cases(lambda name: name not in VARIANTS))
def test_it_agrees_with_the_stacked_engine(name):
  loss_fn, params, batch, _ = CASES[name]
  stacked, factored = (
    outcome(method, loss_fn, params, batch, MASK)
    for method in ("stacked", "factored")
  )
  assert_norms_hold(factored, stacked)
  assert_close(factored[0], stacked[0], rtol=2e-4, atol=2e-5)


def assert_agreement_in_float64(loss_fn, params, batch):
  with float64():
    params, batch = in_type(np.float64, (params, batch))
    stacked, factored = (
      outcome(method, loss_fn, params, batch, MASK)[0]
      for method in ("stacked", "factored")
    )
  assert all(x.dtype == np.float64 for x in jax.tree.leaves(factored))
  assert_close(factored, stacked, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", cases(lambda name: name in FEW_IN_FLOAT64))
def test_it_agrees_in_float64(name):
  loss_fn, params, batch, _ = CASES[name]
  assert_agreement_in_float64(loss_fn, params, batch)


AUTO = {
  "wide": ((3, 64, 48), "dot_general"),  # a Gram matrix of three positions
  "many positions": ((200, 64, 8), "stacked"),
}


@pytest.mark.parametrize("name", AUTO)
def test_auto_takes_what_is_faster_and_agrees(name):
  (positions, inputs, outputs), use = AUTO[name]

  def loss_fn(params, x):
    hidden = jnp.tanh(x @ params["w"] + params["b"][None])
    return jnp.sum(jnp.mean(hidden, axis=0) @ params["u"])

  params = {
    "b": normal(0, outputs),
    "u": normal(1, outputs, 5),
    "w": normal(2, inputs, outputs),
  }
  batch = rows(positions, inputs)
  lines = jaxdp.per_example.explain(loss_fn, params, batch).splitlines()
  uses = {line.split(" | ")[0].strip(): line.split(" | ")[2] for line in lines}
  assert uses["w"].strip() == use
  assert uses["u"].strip() == "dot_general"
  assert uses["b"].strip() == "stacked"
  stacked, auto = (
    outcome(method, loss_fn, params, batch, MASK)[0]
    for method in ("stacked", "auto")
  )
  assert_close(auto, stacked, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  "name", [name for name in CASES if name.startswith("conv")]
)
def test_convolutions_are_stacked_as_products(name, monkeypatch):
  """On a CPU, where XLA's own gradients of them would be slow."""
  monkeypatch.setattr(_auto, "_MADE_FLOPS_PER_BYTE", 0)
  monkeypatch.setattr(_products, "_MOST_MET", 3000)  # some units at a time
  monkeypatch.setattr(_site.Term, "stacked", None)
  loss_fn, params, batch, _ = CASES[name]
  stacked, auto = (
    outcome(method, loss_fn, params, batch, MASK)[0]
    for method in ("stacked", "auto")
  )
  assert_close(auto, stacked, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_sites_are_found(name):
  loss_fn, params, batch, expected = CASES[name]
  leaves, treedef = jax.tree.flatten(params)
  example = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batch
  )
  tape, _ = _tape.record(
    lambda leaves, x: loss_fn(jax.tree.unflatten(treedef, leaves), x),
    leaves,
    example,
  )
  found = [
    None if i in tape.elsewhere else sum(tap.param == i for tap in tape.taps)
    for i in range(len(leaves))
  ]
  assert found == expected


# What it is for.


def shapes_in(fun, *args):
  """Shapes of all values in a program, those of inner jaxprs too."""

  def walk(jaxpr):
    for eqn in jaxpr.eqns:
      yield from (tuple(v.aval.shape) for v in eqn.outvars)
      for inner in core.jaxprs_in_params(eqn.params):
        yield from walk(inner)

  return set(walk(jax.make_jaxpr(fun)(*args).jaxpr))


@pytest.mark.parametrize("method", ["factored", "stacked"])
def test_no_gradient_of_a_matrix_is_made_for_every_unit(method):
  params = {"w": normal(0, 64, 48)}
  step = jaxdp.clipped_sum(
    lambda p, x: jnp.sum(jnp.tanh(x @ p["w"])),
    jaxdp.clipping.flat(1.0),
    method,
  )
  shapes = shapes_in(lambda x: step(params, x)[0].grads, rows(64))
  made = any(np.prod(s) >= UNITS * 64 * 48 for s in shapes)
  assert made == (method == "stacked")


def test_what_it_hands_out_is_one_tree_for_jit():
  """Traced twice, the static part is equal, so that nothing compiles again."""
  loss_fn, params, batch, _ = CASES["mlp"]
  traces = []

  @jax.jit
  def consume(grads):
    traces.append(1)
    return grads.norms([0, 0, 0, 0])

  for _ in range(2):
    fn = jaxdp.per_example_grads(loss_fn, "factored")
    consume(jax.jit(fn)(params, batch))
  assert len(traces) == 1


def test_a_table_explains_what_is_done():
  loss_fn, params, batch, _ = CASES["mlp"]
  table = jaxdp.per_example.explain(loss_fn, params, batch, "factored")
  table = table.splitlines()
  assert [line.split(" | ")[0].strip() for line in table] == [
    "parameter", "b/0", "b/1", "w/0", "w/1",
  ]  # fmt: skip
  assert "stacked" in table[1]
  assert "dot_general | two norms" in table[3]


@pytest.mark.parametrize("name", cases(lambda name: name in FEW))
def test_the_table_names_the_way_that_is_taken(name, monkeypatch):
  """The sizes that it is made of are those that the norm is."""
  loss_fn, params, batch, _ = CASES[name]
  params = jax.tree.map(jnp.asarray, params)
  grads = jaxdp.per_example_grads(loss_fn, "factored")(params, batch)
  leaves = jax.tree.leaves(
    grads.stacked, is_leaf=lambda x: isinstance(x, _site.Factored)
  )
  taken = []
  choose = _norms.choose

  def noted(*sizes):
    taken.append(sizes)
    return choose(*sizes)

  monkeypatch.setattr(_norms, "choose", noted)
  for leaf in leaves:
    if isinstance(leaf, _site.Factored):
      for term in leaf.terms:
        _norms.squares(term)
        told = len(taken)
        _norms.choice(term)
        assert taken[:told] == taken[told:]
        taken.clear()


# Losses of every kind.


def test_frozen_leaves_keys_and_auxiliary_output():
  def loss_fn(params, x, key):
    kept = jax.random.bernoulli(key, 0.5, x.shape)
    hidden = jnp.where(kept, x, 0.0) @ params["w"]
    return jnp.sum(jnp.sin(hidden @ params["frozen"])), {"hidden": hidden}

  params = {"w": normal(0, 3, 4), "frozen": normal(1, 4, 2)}
  flags = {
    "trainable": lambda name, leaf: name == "w",
    "has_key": True,
    "has_aux": True,
  }
  results = []
  for method in ("stacked", "factored"):
    fn = jaxdp.per_example_grads(loss_fn, method, **flags)
    grads, aux = fn(params, rows(3), MASK, key=jax.random.key(3))
    results.append((grads.materialise(), aux))
  assert_close(*results)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [{}, {"microbatch_size": 5}], ids=str)
def test_fit_trains_the_same_by_either_engine(flags):
  sampler = toy.poisson(max_batch_size=None)
  states = [
    toy.fit(
      mechanism=toy.mechanism(sampler, 2.0),
      seed=5,
      num_steps=4,
      performance=jaxdp.PerformanceFlags(method=method, **flags),
    )[0].params
    for method in ("stacked", "factored")
  ]
  toy.assert_close(states[1], states[0])


def test_it_crosses_vmap():
  loss_fn, params, batch, _ = CASES["mlp"]
  two = jax.tree.map(lambda x: np.stack([x, 2 * x]), params)
  fn = jaxdp.clipped_sum(loss_fn, jaxdp.clipping.flat(0.1), "factored")
  run = jax.jit(lambda p: fn(p, batch)[0].grads)
  both = jax.jit(jax.vmap(run))(two)
  for i in range(2):
    alone = run(jax.tree.map(lambda x, i=i: x[i], two))
    assert_close(jax.tree.map(lambda x, i=i: x[i], both), alone, 1e-3, 1e-5)


# Rounding.


def product_squares(x, y):
  window = Window.of_product(x.shape[2])
  return _norms.product_squares(Product(*map(jnp.asarray, (x, y)), window))


def cancelling(seed):
  """Inputs that hardly differ by position, cotangents that sum to zero."""
  rng = np.random.default_rng(seed)
  x = 1 + 1e-4 * rng.standard_normal((1, 100, 300)).astype(np.float32)
  y = rng.standard_normal((1, 100, 300)).astype(np.float32)
  return x, y - y.mean(1, keepdims=True)


@pytest.mark.parametrize("seed", range(5))
def test_a_norm_that_cancels_is_not_under_estimated(seed):
  x, y = cancelling(seed)
  assert _norms.choose(1, 100, 300, 300).method == "Gram"
  exact = np.square(x[0].T.astype(np.float64) @ y[0].astype(np.float64)).sum()
  found = product_squares(x[:, None], y[:, None])
  assert float(found[0]) >= exact * (1 - 1e-6)
  grams = [v[0].astype(np.float32) @ v[0].T for v in (x, y)]
  assert abs(np.sum(grams[0] * grams[1]) / exact - 1) > 0.1  # control


def hardly_differing(*shape):
  """By the first axis: a Gram form is off by some percent, either way."""
  return rows(1, *shape[1:], seed=11) + 1e-3 * rows(*shape)


def summing_to_zero(*shape):
  y = rows(*shape, seed=10)
  return y - y.mean(1, keepdims=True)


def conv_of_one(w, x):
  return jax.lax.conv_general_dilated(
    x[None], w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def product_in_time(w, x):
  return jax.lax.scan(lambda _, x: (None, x @ w), None, x)[1]


def both_ways(w, tokens, x):
  """As a table, and transposed as the last layer."""
  return w[tokens], x @ w.T


# A function of a parameter, the parameter's shape, and by unit what else it
# takes and the cotangent of its result.
MANY_TOKENS = np.random.default_rng(3).integers(200, size=(UNITS, 20))
CANCELLING = {
  "product": (
    lambda w, x: x @ w, (2, 2), [hardly_differing(150, 2)],
    summing_to_zero(150, 2),
  ),
  "positions": (
    lambda w, x: x @ w, (300, 300), [hardly_differing(100, 300)],
    summing_to_zero(100, 300),
  ),
  "heads": (
    lambda w, x: jnp.einsum("thd,hde->the", x, w), (2, 60, 70),
    [hardly_differing(20, 2, 60)], summing_to_zero(20, 2, 70),
  ),
  "conv": (
    conv_of_one, (3, 3, 64, 64),
    [hardly_differing(49, 64).reshape(UNITS, 7, 7, 64)],
    summing_to_zero(25, 64).reshape(UNITS, 1, 5, 5, 64),
  ),
  "look-up": (
    lambda w, tokens: w[tokens], (5, 30), [np.full((UNITS, 50), 3)],
    summing_to_zero(50, 30),
  ),
  "in time": (
    product_in_time, (100, 90), [hardly_differing(30, 100)],
    summing_to_zero(30, 90),
  ),
  "tied": (
    both_ways, (200, 100), [MANY_TOKENS, rows(20, 100)],
    (
      rows(20, 100),
      1e-4 * rows(20, 200) - np.eye(200, dtype=np.float32)[MANY_TOKENS],
    ),
  ),
}  # fmt: skip


def test_what_cancels_is_clipped_to_the_bound():
  """By parameter, and whole; the products are made in float64."""

  def loss_fn(params, example):
    total = 0.0
    for name, (fun, *_) in CANCELLING.items():
      inputs, cotangents = example[name]
      results = fun(params[name], *inputs)
      products = jax.tree.map(lambda z, y: jnp.sum(z * y), results, cotangents)
      total += sum(jax.tree.leaves(products))
    return total

  params = {
    name: np.zeros(shape, np.float32)
    for name, (_, shape, *_) in CANCELLING.items()
  }
  batch = {name: rest for name, (_, _, *rest) in CANCELLING.items()}
  grads = jax.jit(jaxdp.per_example_grads(loss_fn, "factored"))(params, batch)
  exact, factors = norms_in_float64(grads)
  norms = [
    grads.norms(groups) for groups in (range(len(params)), [0] * len(params))
  ]
  epsilon = 2**-23
  assert (exact < epsilon**0.5 * factors).all()  # control: within rounding
  clip = 1e-9  # below all of them
  weights = jaxdp.clipping.flat(clip).weights(jnp.concatenate(norms), ())
  contributions = np.asarray(weights, np.float64) * exact
  assert (contributions <= clip * (1 + 8 * epsilon)).all()


@pytest.mark.parametrize(
  "scales", [(1e-25, 1e20), (1e20, 1e-25), (1e-33, 1e30)]
)
@pytest.mark.parametrize("shape", [(1, 1, 40), (1, 2, 40), (1, 9, 3)])
def test_factors_of_any_size_have_the_norm_of_their_product(scales, shape):
  x, y = (s * rows(*shape, seed=i) for i, s in enumerate(scales))
  exact = np.einsum("ubti,ubto->ubio", *(v.astype(np.float64) for v in (x, y)))
  found = product_squares(x, y)
  expected = np.linalg.norm(exact.reshape(UNITS, -1), axis=1)
  np.testing.assert_allclose(np.sqrt(found), expected, 1e-5)


def test_a_parameter_as_an_integer_is_no_view():
  def loss_fn(params, x):
    return jnp.sum(x @ params["w"]) * (x @ params["w"].astype(int))[0]

  params = {"w": normal(0, 3, 2)}
  with jax.numpy_dtype_promotion("standard"):
    results = [
      jaxdp.per_example_grads(loss_fn, m)(params, rows(3)).materialise()
      for m in ("stacked", "factored")
    ]
  assert_close(*results)


def test_contributions_in_bfloat16_stay_within_the_bound():
  params = {"w": jnp.asarray(normal(0, 6, 5), jnp.bfloat16)}

  def loss_fn(params, x):
    return jnp.sum(jnp.sin((x @ params["w"]).astype(jnp.float32)))

  rule = jaxdp.clipping.flat(0.01)
  fn = jax.jit(jaxdp.clipped_sum(loss_fn, rule, "factored"))
  for seed in range(5):
    x = jnp.asarray(rows(7, 6, seed=seed), jnp.bfloat16)
    for unit in range(UNITS):
      summed, _ = fn(params, x, jnp.arange(UNITS) != unit)
      assert summed.grads["w"].dtype == jnp.float32
      norm = np.linalg.norm(np.asarray(summed.grads["w"], np.float64))
      assert 0.009 < norm <= 0.01 * (1 + 8 * 2**-23)


def test_a_large_table_takes_no_memory_by_unit():
  def loss_fn(params, token):
    return jnp.sum(jnp.tanh(params["table"][token] @ params["kernel"]))

  abstract = jax.ShapeDtypeStruct
  params = {
    "kernel": abstract((5, 2), np.float32),
    "table": abstract((1_000_000, 5), np.float32),
  }
  tokens = abstract((16_000,), np.int32)
  fn = jaxdp.clipped_sum(loss_fn, jaxdp.clipping.flat(1.0))
  compiled = jax.jit(lambda *args: fn(*args)[0].grads).lower(params, tokens)
  memory = compiled.compile().memory_analysis()
  assert memory.temp_size_in_bytes < 100 * 2**20


# Units apart.


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize(
  "method, name",
  [
    ("factored", "positions"),
    ("factored", "conv"),
    ("factored", "conv, groups"),
    ("factored", "mlp"),
    ("factored", "tied"),
    ("factored", "scan over layers"),
    ("auto", "mlp"),
    ("auto", "conv"),
    ("auto", "conv, groups"),
  ],
)
def test_a_unit_that_is_not_finite_changes_no_other(method, name, bad):
  loss_fn, params, batch, _ = CASES[name]

  def shifted(params, example):
    x, shift = example
    return loss_fn(params, x) * jnp.exp(shift)

  def run(shift):
    return outcome(method, shifted, params, (batch, shift), MASK)[0]

  clean = np.zeros(UNITS, np.float32)
  dirty = clean.copy()
  dirty[2] = bad
  (norms, summed, stacked), (_, _, before) = run(dirty), run(clean)
  assert not np.isfinite(norms[:, 2]).any()
  for leaf, old in zip(
    jax.tree.leaves(stacked), jax.tree.leaves(before), strict=True
  ):
    assert (leaf[2] == 0).all()
    others = np.array([0, 1, 3])
    np.testing.assert_array_equal(leaf[others], old[others])
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(summed))


def test_any_number_of_rows_are_zeroed():
  x = normal(0, 2, UNITS, 3)
  mask = np.array([[True, False, True, True], [False] * UNITS])
  found = jax.jit(jax.vmap(_batch.zero_few_rows))(mask, {"x": x})
  np.testing.assert_array_equal(found["x"], np.where(mask[:, :, None], 0, x))


def test_a_site_is_linear_in_its_parameter():
  site = _site.Site(
    jax.lax.dot_general_p,
    tuple(
      sorted(
        {
          "dimension_numbers": (((1,), (0,)), ((), ())),
          "precision": None,
          "preferred_element_type": None,
          "out_sharding": None,
        }.items()
      )
    ),
    1,
    (),
    (3, 2),
    jnp.dtype(jnp.float32),
  )
  x, a, b = normal(0, 4, 3), normal(1, 3, 2), normal(2, 3, 2)
  np.testing.assert_allclose(
    site(a + b, (x,)), site(a, (x,)) + site(b, (x,)), 1e-5, 1e-6
  )
  assert hash(site) == hash(_site.Site(*vars(site).values()))
