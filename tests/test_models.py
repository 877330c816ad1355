"""jaxdp.models: sizes, independence of examples, numbers, evaluation."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp import data, models
from jaxdp.models import _create, _layers, _lstm, _resnet, _wide_resnet

CIFAR = (32, 32, 3)

# Shapes that compile in seconds. The deep networks are taken with their blocks
# and stems, and fewer of them.
SMALL = {
  "mlp": ((4, 4, 1), {"hidden": [8]}),
  "random_features": ((4, 4, 1), {"num_features": 8}),
  "tanh_cnn": ((14, 14, 1), {}),
  "dp_cnn": ((8, 8, 3), {"hidden": 8}),
  "resnet10": ((16, 16, 3), {}),
  "wrn_10_1": ((8, 8, 3), {"weight_standardization": True}),
  "lstm": ((6,), {"vocab_size": 20, "embedding_dim": 4, "hidden": 4}),
  "vit_tiny": (
    (8, 8, 3),
    {"width": 8, "num_layers": 1, "num_heads": 2, "mlp_width": 8},
  ),
}


@pytest.fixture(autouse=True)
def _small_networks(monkeypatch):
  monkeypatch.setitem(_resnet.STAGES, 10, (1, 1))
  monkeypatch.setitem(_create._MODELS, "resnet10", (_resnet.ResNet, (10,)))
  monkeypatch.setitem(
    _create._MODELS, "wrn_10_1", (_wide_resnet.WideResNet, (10, 1))
  )


def small(name, *, seed=0, **more):
  input_shape, options = SMALL[name]
  params, apply_fn = models.create(
    name,
    seed=seed,
    num_classes=3,
    input_shape=input_shape,
    **{**options, **more},
  )
  return params, apply_fn


def inputs(name, num_rows, seed=0):
  shape = (num_rows, *SMALL[name][0])
  rng = np.random.default_rng(seed)
  if name == "lstm":
    return {"text": rng.integers(1, 20, shape, dtype=np.int32)}
  return {"image": rng.standard_normal(shape, np.float32)}


def batch_of(name, num_rows=3, seed=0):
  labels = np.arange(num_rows, dtype=np.int32) % 3
  return {**inputs(name, num_rows, seed), "label": labels}


# --- sizes ---

COUNTS = [
  # By hand: 64 * 128 + 128 + 128 * 10 + 10.
  ("mlp", (8, 8, 1), 10, {}, 9_610),
  # 2,000 * 10, no bias; the features are no parameters.
  ("random_features", (8, 8, 1), 10, {}, 20_000),
  # Conv 1,040 + 8,224, dense 16,416 + 330: the tutorials' model summary.
  ("tanh_cnn", (28, 28, 1), 10, {}, 26_010),
  # arXiv:2411.02051's published runs, also the ResNets and the LSTM.
  ("dp_cnn", CIFAR, 10, {}, 550_570),
  ("dp_cnn", CIFAR, 100, {}, 562_180),
  ("dp_cnn", (160, 160, 3), 10, {}, 6_842_026),
  ("resnet18", CIFAR, 10, {}, 11_181_642),
  ("resnet18", CIFAR, 100, {}, 11_227_812),
  ("resnet34", CIFAR, 10, {}, 21_289_802),
  # 3x3 instead of 7x7 in the stem: 40 * 3 * 64 fewer.
  ("resnet18", CIFAR, 10, {"stem": "cifar"}, 11_173_962),
  # The original network's count: a gain and an offset per channel either way.
  ("wrn_16_4", CIFAR, 10, {}, 2_748_890),
  ("wrn_40_4", CIFAR, 10, {}, 8_949_210),
  ("wrn_16_4", CIFAR, 10, {"weight_standardization": True}, 2_748_890),
  ("lstm", (256,), 2, {}, 244_514),
  ("lstm", (256,), 4, {}, 244_708),
  ("lstm", (256,), 2, {"embedding": "trained"}, 1_244_514),
  # 12 (4 192^2 + 4 192 + 2 192 768 + 768 + 192 + 4 192), the patches
  # 48 192 + 192, 64 positions, the last norm 2 192, the head 1,930.
  ("vit_tiny", CIFAR, 10, {}, 5_362_378),
]


@pytest.mark.parametrize(
  "name, input_shape, num_classes, options, count", COUNTS
)
def test_parameter_counts_are_the_published_ones(
  name, input_shape, num_classes, options, count
):
  params, apply_fn = models.create(
    name,
    seed=0,
    num_classes=num_classes,
    input_shape=input_shape,
    **options,
  )
  assert models.count_params(params) == count
  dtype = jnp.int32 if name == "lstm" else jnp.float32
  x = jax.ShapeDtypeStruct(input_shape, dtype)
  logits = jax.eval_shape(apply_fn, params, x)
  assert logits.shape == (num_classes,)


def test_every_model_is_counted_and_has_a_small_form():
  names = set(models.names()) - {"resnet10", "wrn_10_1"}
  assert names == {row[0] for row in COUNTS}
  deep = {"resnet18", "resnet34", "wrn_16_4", "wrn_40_4"}
  assert names - deep == set(SMALL) - {"resnet10", "wrn_10_1"}


def test_parameters_are_nested_dicts_of_arrays_with_readable_paths():
  params, _ = small("vit_tiny")
  paths = {
    "/".join(entry.key for entry in path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
  assert paths["blocks/0/attention/qkv/kernel"].shape == (8, 24)
  assert all(isinstance(leaf, jax.Array) for leaf in paths.values())
  assert all(leaf.dtype == jnp.float32 for leaf in paths.values())


# --- one example's gradient is its own ---


@functools.cache
def gradient_fn(name):
  params, apply_fn = small(name)
  loss_fn = models.classification_loss(apply_fn)
  return params, jax.jit(jax.vmap(jax.grad(loss_fn), (None, 0)))


def assert_rows_equal(left, right, rows):
  for before, after in zip(
    jax.tree.leaves(left), jax.tree.leaves(right), strict=True
  ):
    assert np.isfinite(before).all()
    np.testing.assert_array_equal(
      np.asarray(before)[rows], np.asarray(after)[rows]
    )


@pytest.mark.parametrize("name", SMALL)
def test_gradients_do_not_depend_on_other_examples(name):
  params, grad_fn = gradient_fn(name)
  batch = batch_of(name)
  reference = grad_fn(params, batch)
  field = "text" if name == "lstm" else "image"
  others = [19] if name == "lstm" else [7.0, 1e38, np.inf, np.nan]
  for other in others:
    changed = {**batch, field: batch[field].copy()}
    changed[field][1] = other
    assert_rows_equal(reference, grad_fn(params, changed), [0, 2])


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_gradient(name):
  params, grad_fn = gradient_fn(name)
  grads = grad_fn(params, batch_of(name))
  for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
    assert np.abs(leaf).max() > 0, path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "wrn_16_4"])
def test_deep_networks_keep_examples_apart(name):
  params, apply_fn = models.create(
    name, seed=0, num_classes=10, input_shape=CIFAR
  )
  loss_fn = models.classification_loss(apply_fn, data.preprocess("cifar10"))
  grad_fn = jax.jit(jax.vmap(jax.grad(loss_fn), (None, 0)))
  rng = np.random.default_rng(0)
  image = rng.standard_normal((3, *CIFAR), np.float32)
  label = np.arange(3, dtype=np.int32)
  before = grad_fn(params, {"image": image, "label": label})
  # A copy: the first call may still read the array.
  spoilt = image.copy()
  spoilt[1] = np.nan
  after = grad_fn(params, {"image": spoilt, "label": label})
  assert_rows_equal(before, after, [0, 2])


# --- numbers ---


@pytest.mark.parametrize("name", SMALL)
def test_creation_is_deterministic_in_the_seed(name):
  first, apply_fn = small(name, seed=3)
  again, same_apply_fn = small(name, seed=3)
  other, _ = small(name, seed=4)
  assert apply_fn is same_apply_fn
  jax.tree.map(np.testing.assert_array_equal, first, again)
  assert not np.array_equal(
    np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(first)]),
    np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(other)]),
  )


def test_initial_kernels_have_variance_one_over_fan_in():
  params, _ = models.create(
    "mlp", seed=0, num_classes=10, input_shape=(400,), hidden=[500]
  )
  kernel = np.asarray(params["layers"]["0"]["kernel"])
  # 200,000 values: the standard deviation is known to 0.2 %.
  np.testing.assert_allclose(kernel.std() * math.sqrt(400), 1, atol=0.01)
  assert np.abs(kernel).max() * math.sqrt(400) < 2 / 0.8796 + 1e-6
  assert not np.asarray(params["layers"]["0"]["bias"]).any()


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_computes_what_float32_does(name):
  params, apply_fn = small(name)
  _, low_apply_fn = small(name, dtype="bfloat16")
  (x,) = inputs(name, 8).values()

  @jax.jit
  def both(params, x):
    return [
      jax.vmap(fun, (None, 0))(params, x) for fun in (apply_fn, low_apply_fn)
    ]

  high, low = both(params, x)
  assert high.dtype == low.dtype == jnp.float32
  high, low = np.asarray(high), np.asarray(low)
  error = np.linalg.norm(high - low) / np.linalg.norm(high)
  # bfloat16 has 8 bits: some hundredths after a few layers, and not nothing.
  assert 1e-4 < error < 0.05


@pytest.mark.parametrize(
  "window, stride, padding", [(2, 1, 0), (2, 2, 0), (3, 2, 1)]
)
def test_max_pool_equals_reduce_window_in_value_and_gradient(
  window, stride, padding
):
  rng = np.random.default_rng(0)
  # Few values, so that most windows have ties.
  x = rng.integers(0, 3, (2, 7, 8, 4)).astype(np.float32)

  def reference(x):
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return jax.lax.reduce_window(
      x,
      -jnp.inf,
      jax.lax.max,
      (1, window, window, 1),
      (1, stride, stride, 1),
      pads,
    )

  def pool(x):
    return _layers.max_pool(x, window, stride, padding)

  @jax.jit
  def both(x):
    value, pullback = jax.vjp(pool, x)
    expected, expected_pullback = jax.vjp(reference, x)
    # Whole numbers, so that sums over windows are exact in any order.
    cotangent = jnp.arange(value.size, dtype=jnp.float32) % 97 + 1
    cotangent = cotangent.reshape(value.shape)
    return (value, *pullback(cotangent)), (
      expected,
      *expected_pullback(cotangent),
    )

  (value, gradient), (expected, expected_gradient) = both(x)
  np.testing.assert_array_equal(value, expected)
  np.testing.assert_array_equal(gradient, expected_gradient)
  x[0, 3, 3, 0] = np.nan
  (value, _), (expected, _) = both(x)
  assert np.isnan(value).any()
  np.testing.assert_array_equal(value, expected)


def test_weight_standardisation_ignores_shift_and_scale_of_kernels():
  params, apply_fn = small("wrn_10_1")
  _, plain_fn = small("wrn_10_1", weight_standardization=False)
  x = inputs("wrn_10_1", 1)["image"][0]
  moved = {**params, "conv": {"kernel": 5.0 * params["conv"]["kernel"] + 1.0}}

  @jax.jit
  def change(x):
    return [fun(moved, x) - fun(params, x) for fun in (apply_fn, plain_fn)]

  standardized, plain = change(x)
  assert np.abs(standardized).max() < 1e-3
  assert np.abs(plain).max() > 0.05


def test_lstm_ignores_padding():
  params, short_fn = small("lstm")
  _, long_fn = models.create(
    "lstm", seed=0, num_classes=3, input_shape=(9,), **SMALL["lstm"][1]
  )
  text = inputs("lstm", 1)["text"][0]
  padded = np.pad(text, (0, 3))
  np.testing.assert_allclose(
    jax.jit(long_fn)(params, padded),
    jax.jit(short_fn)(params, text),
    rtol=1e-5,
  )


def test_lstm_equals_a_slow_reference():
  params, apply_fn = small("lstm")
  text = inputs("lstm", 1)["text"][0]
  table = _lstm._public_table(20, 4)

  def dense(layer, x):
    return x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])

  def sigmoid(x):
    return 1 / (1 + np.exp(-x))

  cell = output = np.zeros(4, np.float32)
  for token in text:
    gates = dense(params["inputs"], table[token])
    gates = gates + dense(params["recurrent"], output)
    i, f, g, o = np.split(gates, 4)
    cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
    output = sigmoid(o) * np.tanh(cell)
  expected = dense(params["head"], np.tanh(dense(params["dense"], output)))
  logits = jax.jit(apply_fn)(params, text)
  np.testing.assert_allclose(logits, expected, rtol=1e-5)


def test_frozen_embedding_is_public_and_no_parameter():
  params, _ = small("lstm", seed=5)
  trained, _ = small("lstm", seed=5, embedding="trained")
  assert "embedding" not in params
  assert trained["embedding"].shape == (20, 4)
  np.testing.assert_allclose(
    _lstm._public_table(20, 4)[0, :2], PUBLIC_TABLE, rtol=1e-6
  )


def test_random_features_have_the_inner_products_of_a_gaussian_kernel():
  features, width, bandwidth = 4000, 6, 0.7
  _, apply_fn = models.create(
    "random_features",
    seed=0,
    num_classes=features,
    input_shape=(width,),
    num_features=features,
    bandwidth=bandwidth,
  )
  x = np.random.default_rng(0).standard_normal((5, width))
  params = {"head": {"kernel": np.eye(features, dtype=np.float32)}}
  phi = jax.vmap(apply_fn, (None, 0))(params, x.astype(np.float32))
  x = x - x.mean(1, keepdims=True)
  x = x / np.linalg.norm(x, axis=1, keepdims=True)
  distance2 = np.sum((x[:, None] - x[None]) ** 2, axis=-1)
  kernel = np.exp(-distance2 / (2 * bandwidth**2))
  # The mean of 4,000 products with a standard deviation of at most 1.
  np.testing.assert_allclose(phi @ phi.T, kernel, atol=5 / np.sqrt(features))


# Seed 0 of NumPy's default generator: the same for every model and seed.
PUBLIC_TABLE = [1.1176220178604126, -1.3871248960494995]


# --- loss and evaluation ---


def test_loss_is_the_cross_entropy():
  loss_fn = models.classification_loss(lambda params, x: params * x)
  x = np.array([0.0, 1.0, 3.0], np.float32)
  loss = loss_fn(2.0, {"image": x, "label": np.int32(1)})
  expected = math.log(1 + math.exp(2) + math.exp(6)) - 2
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  assert loss.shape == ()


@pytest.mark.parametrize("label", [-1, 3])
def test_label_out_of_range_gives_nan(label):
  loss_fn = models.classification_loss(lambda params, x: x)
  example = {"image": np.zeros(3, np.float32), "label": np.int32(label)}
  assert np.isnan(loss_fn({}, example))


def test_loss_preprocesses_one_example():
  loss_fn = models.classification_loss(
    lambda params, x: x, data.preprocess("mnist")
  )
  example = {"image": np.array([255, 0], np.uint8), "label": np.int32(0)}
  expected = math.log(1 + math.exp(-2))
  np.testing.assert_allclose(loss_fn({}, example), expected, rtol=1e-6)
  assert loss_fn is models.classification_loss(
    loss_fn.__closure__[0].cell_contents, data.preprocess("mnist")
  )


@pytest.mark.parametrize("batch_size", [1, 4, 10, 11, 100])
def test_evaluation_counts_each_example_once(batch_size):
  rng = np.random.default_rng(0)
  logits = rng.standard_normal((11, 5), np.float32)
  labels = rng.integers(0, 5, 11, dtype=np.int32)
  evaluate = models.accuracy(lambda params, x: params * x)
  result = evaluate(
    np.float32(2), {"image": logits, "label": labels}, batch_size
  )
  log_probs = 2 * logits - np.log(np.exp(2 * logits).sum(1, keepdims=True))
  assert result["accuracy"] == (logits.argmax(1) == labels).mean()
  np.testing.assert_allclose(
    result["loss"], -log_probs[np.arange(11), labels].mean(), rtol=1e-5
  )


def test_evaluation_is_compiled_once_and_takes_a_stream():
  traces = []

  def apply_fn(params, x):
    traces.append(x.shape)
    return x

  evaluate = models.accuracy(apply_fn)
  arrays = {
    "image": np.eye(7, dtype=np.float32),
    "label": np.arange(7, dtype=np.int32),
  }
  stream = data.Stream(
    7, lambda rows: {field: array[rows] for field, array in arrays.items()}
  )
  assert evaluate({}, arrays, 3) == evaluate({}, stream, 3)
  assert evaluate({}, arrays, 3)["accuracy"] == 1.0
  assert traces == [(7,)]


def test_nan_in_padding_does_not_reach_the_result():
  evaluate = models.accuracy(lambda params, x: x)
  logits = np.array([[np.nan, 0], [1, 0], [0, 1]], np.float32)
  labels = np.zeros(3, np.int32)
  dataset = {"image": logits[1:], "label": labels[1:]}
  assert np.isfinite(evaluate({}, dataset, 2)["loss"])
  # Row 0 pads the last batch: its NaN counts once, as it must.
  with_nan = evaluate({}, {"image": logits, "label": labels}, 2)
  assert np.isnan(with_nan["loss"])
  assert with_nan["accuracy"] == 2 / 3  # argmax takes NaN for the largest.


@pytest.mark.slow
def test_mlp_learns_the_digits():
  params, apply_fn = models.create(
    "mlp", seed=0, num_classes=10, input_shape=(8, 8, 1)
  )
  preprocess = data.preprocess("digits")
  loss_fn = models.classification_loss(apply_fn, preprocess)
  train = data.load("digits")

  @jax.jit
  def step(params, rows):
    def mean_loss(params):
      batch = jax.tree.map(lambda a: jnp.asarray(a)[rows], train)
      return jax.vmap(loss_fn, (None, 0))(params, batch).mean()

    grads = jax.grad(mean_loss)(params)
    return jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)

  rng = np.random.default_rng(0)
  for _ in range(400):
    params = step(params, rng.integers(0, 1437, 128))
  evaluate = models.accuracy(apply_fn, preprocess)
  assert evaluate(params, data.load("digits", "test"))["accuracy"] > 0.95


# --- bad input ---


def test_unknown_names_and_options_list_the_known_ones():
  options = {"seed": 0, "num_classes": 10, "input_shape": CIFAR}
  with pytest.raises(ValueError, match=r"mlp, random_.* got 'resnet50'"):
    models.create("resnet50", **options)
  with pytest.raises(
    TypeError, match=r"no option 'groups'; did you mean 'num_groups'.*norm"
  ):
    models.create("resnet18", groups=3, **options)
  with pytest.raises(ValueError, match="num_classes must be > 0"):
    models.create("mlp", **{**options, "num_classes": 0})
  with pytest.raises(ValueError, match="seed must be >= 0"):
    models.create("mlp", **{**options, "seed": -1})
  with pytest.raises(ValueError, match=r"activation must be one of .*'elu'"):
    models.create("mlp", activation="elu", **options)


@pytest.mark.parametrize(
  "name, input_shape, options, message",
  [
    ("tanh_cnn", (8, 8, 1), {}, "at least 13x13"),
    ("random_features", (8, 8, 1), {"bandwidth": 0}, "bandwidth must be > 0"),
    ("dp_cnn", (4, 32, 3), {}, "at least 8x8"),
    ("dp_cnn", (3072,), {}, r"\(height, width, channels\), got \(3072,\)"),
    ("lstm", CIFAR, {}, r"must be \(length,\)"),
    ("lstm", (9,), {"embedding": "glove"}, "'frozen' or 'trained'"),
    ("vit_tiny", CIFAR, {"patch_size": 5}, "patch_size must divide"),
    ("vit_tiny", CIFAR, {"num_heads": 5}, "num_heads must divide"),
    ("resnet18", CIFAR, {"stem": "tiny"}, "'imagenet' or 'cifar'"),
    ("wrn_16_4", CIFAR, {"num_groups": 5}, "num_groups must divide the 16"),
  ],
)
def test_shapes_and_options_that_do_not_fit_are_refused(
  name, input_shape, options, message
):
  with pytest.raises(ValueError, match=message):
    models.create(
      name, seed=0, num_classes=2, input_shape=input_shape, **options
    )


def test_smallest_images_of_the_tanh_cnn_work():
  params, apply_fn = models.create(
    "tanh_cnn", seed=0, num_classes=2, input_shape=(13, 13, 1)
  )
  x = jax.ShapeDtypeStruct((13, 13, 1), jnp.float32)
  assert jax.eval_shape(apply_fn, params, x).shape == (2,)


def test_a_batch_raw_pixels_and_foreign_parameters_are_refused():
  params, apply_fn = small("mlp")
  with pytest.raises(ValueError, match=r"got shape \(2, 4, 4, 1\).*jax.vmap"):
    apply_fn(params, jnp.zeros((2, 4, 4, 1)))
  with pytest.raises(TypeError, match=r"floating-point .*data.preprocess"):
    apply_fn(params, jnp.zeros((4, 4, 1), jnp.uint8))
  with pytest.raises(ValueError, match=r"missing .'layers/1/bias'"):
    apply_fn({"layers": {"0": params["layers"]["0"]}}, jnp.zeros((4, 4, 1)))
  loss_fn = models.classification_loss(apply_fn)
  with pytest.raises(ValueError, match="'image' or 'text'"):
    loss_fn(params, {"pixels": 0, "label": 0})
  evaluate = models.accuracy(apply_fn)
  with pytest.raises(ValueError, match=r"one length > 0.*'label': 1"):
    evaluate(params, {"image": np.zeros((2, 4, 4, 1)), "label": np.zeros(1)})
  with pytest.raises(ValueError, match="batch_size must be >= 1"):
    evaluate(params, {"image": np.zeros(1), "label": np.zeros(1)}, 0)
