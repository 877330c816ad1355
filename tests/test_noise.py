"""Noise by its formula, by its statistics and by its streams."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import NamedSharding, PartitionSpec

from jaxdp import noise

pytestmark = pytest.mark.rounding

KEY = jax.random.key(2024)


# The formula, at chosen random words.


def words_of_u():
  """Numerators of u: every power of two and its neighbours, and at random."""
  rng = np.random.default_rng(0)
  near = [2**k + d for k in range(64) for d in (-1, 0, 1)]
  mirrored = [2**64 - 1 - n for n in near]
  at_random = [int(x) for x in rng.integers(0, 2**64, 300, np.uint64)]
  return near + mirrored + at_random


def words_of_angle():
  rng = np.random.default_rng(1)
  special = [0, 1, 2**30 - 1, 2**30, 2**31 - 1, 2**31, 2**32 - 1, 2**29]
  return special + [int(x) for x in rng.integers(0, 2**32, 200)]


def exact_radius(numerator):
  """sqrt(-2 ln u) in float64, from the integer, without cancellation."""
  if numerator < 2**63:
    return math.sqrt(-2 * math.log((numerator + 0.5) / 2**64))
  rest = (2**64 - 1 - numerator + 0.5) / 2**64
  return math.sqrt(-2 * math.log1p(-rest))


def exact_cosine(angle):
  signed = angle if angle < 2**31 else angle - 2**32
  return math.cos(2 * math.pi * (signed + 0.5) / 2**32)


def from_words(numerators, angles):
  high = np.array([n >> 32 for n in numerators], np.uint32)
  low = np.array([n & (2**32 - 1) for n in numerators], np.uint32)
  return np.asarray(
    noise.normal_from_bits(high, low, np.array(angles, np.uint32)), np.float64
  )


def test_values_are_right_over_the_whole_range_of_words():
  """Against float64, with u near 0, 1 and 1/2 and all quadrants of angles."""
  numerators, angles = words_of_u(), words_of_angle()
  n = [x for x in numerators for _ in angles]
  a = angles * len(numerators)
  radius = np.repeat([exact_radius(x) for x in numerators], len(angles))
  cosine = np.tile([exact_cosine(x) for x in angles], len(numerators))
  error = np.abs(from_words(n, a) - radius * cosine)
  assert (error <= 1e-6 * radius).all()
  far = np.abs(cosine) > 0.1
  assert (error[far] <= 1e-5 * np.abs(radius * cosine)[far]).all()


def test_radius_is_right_to_a_few_ulp():
  numerators = words_of_u()
  exact = np.array([exact_radius(x) for x in numerators])
  got = from_words(numerators, [0] * len(numerators))
  np.testing.assert_allclose(got, exact, 5e-7, 0)


def test_both_tails_reach_beyond_nine_standard_deviations():
  """jax.random.normal in float32 cannot, as its own formula shows."""
  least = [0, 1, 100, 2**35]
  upper, lower = from_words(least, [0] * 4), from_words(least, [2**31] * 4)
  assert upper[0] > 9.4
  assert lower[0] < -9.4
  np.testing.assert_allclose(-lower, upper, 1e-6)
  assert (upper > 5.5).all()
  assert (np.diff(upper) < 0).all()

  edge = jnp.nextafter(jnp.float32(-1), jnp.float32(0))
  bounded = math.sqrt(2) * jax.lax.erf_inv(edge)
  assert -5.5 < bounded < -5


def test_no_words_give_an_infinite_or_missing_value():
  n = [0, 2**63 - 1, 2**63, 2**64 - 1]
  assert np.isfinite(from_words(n * 2, [0] * 4 + [2**30] * 4)).all()


# The distribution.


@pytest.fixture(scope="module")
def sample():
  return np.asarray(noise.standard_normal(KEY, (200_000,)), np.float64)


def test_moments_are_those_of_a_standard_normal(sample):
  n = len(sample)
  # Standard errors of the first four moments: 1, 2, 15 and 96 over n.
  for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
    error = abs(np.mean(sample**power) - mean)
    assert error < 5 * math.sqrt(variance / n)


def test_kolmogorov_and_smirnov_see_a_normal_of_the_right_scale(sample):
  assert scipy.stats.kstest(sample, "norm").pvalue > 1e-3


@pytest.mark.parametrize("factor", [2 / 3, 3 / 2, 0.97, 1.03])
def test_noise_at_another_scale_is_rejected(sample, factor):
  """Control: the tests above would see it."""
  scaled = factor * sample
  assert scipy.stats.kstest(scaled, "norm").pvalue < 1e-6
  assert abs(np.mean(scaled**2) - 1) > 5 * math.sqrt(2 / len(sample))


def test_tails_hold_as_many_values_as_they_should():
  """Both survival functions up to 5 sd; counts are Poisson."""
  draws = 2**23
  limits = jnp.array([1.0, 2.0, 3.0, 4.0, 4.5, 5.0])

  @jax.jit
  def count(key):
    x = noise.standard_normal(key, (2**20,))[None, :]
    above = jnp.sum(x > limits[:, None], axis=1)
    return above, jnp.sum(x < -limits[:, None], axis=1)

  counts = jax.lax.map(count, jax.random.split(KEY, draws // 2**20))
  expected = draws * scipy.stats.norm.sf(np.asarray(limits, np.float64))
  low, high = scipy.stats.poisson.interval(1 - 1e-6, expected)
  for seen in counts:
    total = np.asarray(seen).sum(axis=0)
    assert (low <= total).all()
    assert (total <= high).all()
  assert low[-2] > 0  # too thin a tail would be seen, too


# The generator.


@pytest.mark.parametrize(
  "key, counter, words",
  [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((2**32 - 1,) * 2, (2**32 - 1,) * 2, (0x1CB996FC, 0xBB002BE7)),
    (
      (0x13198A2E, 0x03707344),
      (0x243F6A88, 0x85A308D3),
      (0xC4923A9C, 0x483DF7A0),
    ),
  ],
)
def test_threefry_gives_the_known_answers_of_random123(key, counter, words):
  first, second = (jnp.uint32(x) for x in counter)
  got = noise.threefry2x32(jnp.array(key, jnp.uint32), first, second)
  assert tuple(int(x) for x in got) == words


def test_fold_in_is_that_of_jax():
  for data in (0, 1, 2**31 - 1, 2**32 - 1):
    theirs = jax.random.fold_in(KEY, jnp.uint32(data))
    np.testing.assert_array_equal(
      noise.fold_in(KEY, np.uint32(data)), jax.random.key_data(theirs)
    )


@pytest.mark.parametrize("shape", [(3000,), (30, 100), (5, 20, 30), (1, 3000)])
def test_no_two_places_of_an_array_share_their_words(shape):
  values = np.unique(np.asarray(noise.standard_normal(KEY, shape)))
  assert len(values) > 2990  # of 24-bit values, a few do collide


# Streams.


LENGTH = 1 << 14


@pytest.fixture(scope="module")
def streams():
  """Noise of three steps on a tree of four leaves, from three keys."""
  tree = {name: jnp.zeros(LENGTH) for name in "abcd"}
  stddevs = dict.fromkeys("abcd", 1.0)

  @jax.jit
  def draw(key):
    return noise.add_gaussian_noise(key, tree, stddevs)

  drawn = {}
  keys = [noise.make_key(0), noise.make_key(1)]
  keys.append(jax.random.fold_in(keys[0], 2**31 + 1))  # a new incarnation
  for run, key in enumerate(keys):
    for step in range(3):
      for name, x in draw(jax.random.fold_in(key, step)).items():
        drawn[run, step, name] = np.asarray(x)
  return drawn


def test_leaves_steps_and_runs_are_uncorrelated(streams):
  matrix = np.stack(list(streams.values())).astype(np.float64)
  assert len(matrix) == 36
  limit = 5 / math.sqrt(LENGTH)
  for shift in (0, 1):  # also not one stream moved by one
    a, b = matrix[:, shift:], matrix[:, : LENGTH - shift]
    correlation = a @ b.T / LENGTH
    np.fill_diagonal(correlation, correlation[0, 1])
    assert np.abs(correlation).max() < limit


def test_correlation_limit_sees_a_reused_key(streams):
  """Control: streams that share a hundredth part of their values."""
  x, y = (streams[0, step, "a"].astype(np.float64) for step in (0, 1))
  mixed = np.where(np.arange(LENGTH) % 16 == 0, x, y)
  assert abs(x @ mixed / LENGTH) > 5 / math.sqrt(LENGTH)


def test_no_two_streams_share_a_prefix_or_many_values(streams):
  first = [x[0] for x in streams.values()]
  assert len(set(first)) == len(first)
  values = np.concatenate(list(streams.values()))
  # Floats near a density peak do collide; a shared stretch would be far more.
  assert len(np.unique(values)) > 0.97 * len(values)


def test_leaves_of_different_shapes_share_no_prefix():
  """One key gives equal prefixes across shapes (jax#3646); leaves fold it."""
  tree = [jnp.zeros(64), jnp.zeros(LENGTH)]
  a, b = noise.add_gaussian_noise(KEY, tree, [1.0, 1.0])
  assert not np.isin(a, np.asarray(b)[:64]).any()


def test_one_key_is_one_noise_and_another_key_another():
  tree, stddevs = {"w": jnp.zeros(64)}, {"w": 1.0}
  a, b = (noise.add_gaussian_noise(KEY, tree, stddevs)["w"] for _ in range(2))
  np.testing.assert_array_equal(a, b)
  other = noise.add_gaussian_noise(jax.random.key(1), tree, stddevs)["w"]
  assert not np.isin(a, other).any()


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_noise_is_equal_on_any_number_of_devices(devices):
  tree, stddevs = (
    {"a": jnp.zeros(LENGTH), "b": jnp.zeros(64)},
    {"a": 1.0, "b": 2.0},
  )
  reference = noise.add_gaussian_noise(KEY, tree, stddevs)
  mesh = jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices])
  split, whole = (
    NamedSharding(mesh, PartitionSpec(*spec)) for spec in (("data",), ())
  )
  shardings = {"a": split, "b": whole}
  sharded = jax.jit(
    lambda tree: noise.add_gaussian_noise(KEY, tree, stddevs),
    out_shardings=shardings,
  )(jax.device_put(tree, shardings))
  assert len(sharded["a"].sharding.device_set) == devices
  for name, x in sharded.items():
    np.testing.assert_allclose(x, reference[name], 1e-6, 1e-7)


# Scales and dtypes.


def test_stddev_scales_each_leaf_and_zero_adds_nothing():
  zeros = {name: jnp.zeros(64) for name in "abc"}
  unit = noise.add_gaussian_noise(KEY, zeros, dict.fromkeys("abc", 1.0))
  tree = zeros | {"a": jnp.arange(64.0)}
  vector = jnp.linspace(0.0, 9.0, 64)
  noisy = noise.add_gaussian_noise(KEY, tree, {"a": 0.0, "b": 2.5, "c": vector})
  np.testing.assert_array_equal(noisy["a"], tree["a"])
  np.testing.assert_allclose(noisy["b"], 2.5 * unit["b"], 1e-6)
  np.testing.assert_allclose(noisy["c"], vector * unit["c"], 1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_noise_is_never_added_in_less_than_float32(dtype):
  with pytest.raises(ValueError, match=jnp.dtype(dtype).name):
    noise.add_gaussian_noise(KEY, [jnp.zeros(3, dtype)], [1.0])


# Keys.


def test_keys_from_the_operating_system_differ():
  data = {tuple(noise.key_data(noise.make_key()).tolist()) for _ in range(50)}
  assert len(data) == 50


def test_keys_from_seeds_repeat_and_differ_by_seed():
  data = [tuple(noise.key_data(noise.make_key(s)).tolist()) for s in range(50)]
  again = [tuple(noise.key_data(noise.make_key(s)).tolist()) for s in range(50)]
  assert data == again
  assert len(set(data)) == 50
  assert noise.make_key(2**127).shape == ()


@pytest.mark.parametrize("implementation", ["rbg", "unsafe_rbg"])
def test_keys_whose_stream_depends_on_sharding_are_refused(implementation):
  with pytest.raises(ValueError, match=f"'{implementation}'.*make_key"):
    noise.key_data(jax.random.key(0, impl=implementation))


def test_what_is_not_one_key_is_refused():
  with pytest.raises(ValueError, match=r"array of \(3,\)"):
    noise.key_data(jax.random.split(KEY, 3))
  with pytest.raises(ValueError, match="float32"):
    noise.key_data(jnp.zeros(2))
  with pytest.raises(ValueError, match=r"shape \(4,\)"):
    noise.key_data(jnp.zeros(4, jnp.uint32))


def test_raw_key_data_is_taken_as_it_is():
  words = jnp.array([1, 2], jnp.uint32)
  np.testing.assert_array_equal(noise.key_data(words), words)


def test_a_tree_without_leaves_gets_no_noise():
  assert noise.add_gaussian_noise(KEY, {"a": ()}, {"a": ()}) == {"a": ()}
