"""Units that are not one example: views, users, buckets (METHODS 1.4, 2.12)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import jaxdp
from jaxdp import NeighboringRelation, clipping, sampling, units
from tests import toy
from tests.units import (
  BATCH,
  PARAMS,
  UNITS,
  expected_gradients,
  loop,
  loss_fn,
  normal,
)

KEY = jax.random.key(5)
CAPACITY = 4


def records(num_units=3, seed=0):
  """Units of 4, 2 and 0 records, with garbage where there is none."""
  examples = {
    "x": normal(seed, num_units, CAPACITY, 3),
    "y": normal(seed + 1, num_units, CAPACITY, 2),
  }
  padding = np.arange(CAPACITY) >= np.array([4, 2, 0])[:num_units, None]
  return units.Records(examples, padding)


def close(a, b, rtol=1e-5, atol=1e-6):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol, atol), a, b)


# --- records of one unit ---


def test_gradient_of_a_unit_is_the_mean_over_its_records():
  """Real records only; a unit without any has gradient 0."""
  batch = records()
  grads = jaxdp.per_example_grads(units.mean_over_records(loss_fn))(
    PARAMS, batch
  ).materialise()
  for unit, count in enumerate((4, 2)):
    rows = jax.tree.map(lambda x: x[unit, :count], batch.examples)  # noqa: B023
    expected = jax.tree.map(lambda g: g.mean(0), loop(loss_fn, PARAMS, rows))
    close(jax.tree.map(lambda g: g[unit], grads), expected)  # noqa: B023
  assert all((np.asarray(g[2]) == 0).all() for g in jax.tree.leaves(grads))


def test_padding_records_change_no_bit():
  clean = records()
  where = clean.is_padding_example[..., None]
  dirty = clean._replace(
    examples=jax.tree.map(lambda x: np.where(where, 1e30, x), clean.examples)
  )
  fn = jax.jit(jaxdp.per_example_grads(units.mean_over_records(loss_fn)))
  a, b = (fn(PARAMS, batch).materialise() for batch in (clean, dirty))
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_records_with_keys_get_one_each():
  fn = units.mean_over_records(lambda w, x, key: w * jax.random.normal(key))
  padding = np.zeros(CAPACITY, bool)
  got = fn(1.0, units.Records(np.zeros(CAPACITY), padding), KEY)
  keys = jax.random.split(KEY, CAPACITY)
  np.testing.assert_allclose(got, jax.vmap(jax.random.normal)(keys).mean())


# --- views ---


def shift(key, example):
  return {**example, "x": example["x"] + jax.random.normal(key, (3,))}


def test_norm_of_a_unit_of_views_is_that_of_the_mean_gradient():
  batch = {"x": normal(3, 5, 3), "y": normal(4, 5, 2)}
  fn = jaxdp.per_example_grads(
    units.mean_over_views(loss_fn, shift, 4), has_key=True
  )
  keys = jax.random.split(KEY, 5)
  grads = fn(PARAMS, batch, key=keys)
  for unit in range(5):
    views = jax.vmap(shift, (0, None))(
      jax.random.split(keys[unit], 4),
      jax.tree.map(lambda x: x[unit], batch),  # noqa: B023
    )
    mean = jax.tree.map(lambda g: g.mean(0), loop(loss_fn, PARAMS, views))
    np.testing.assert_allclose(
      grads.norms((0, 0, 0))[0, unit], optax.tree.norm(mean), 1e-5
    )


def test_views_are_different_and_their_number_is_checked():
  seen = units.mean_over_views(lambda w, x: w * x**2, lambda k, x: x + 1, 3)
  assert seen(2.0, 3.0, KEY) == 32
  noise = units.mean_over_views(
    lambda w, x: x**2, lambda k, x: jax.random.normal(k), 500
  )
  assert 0.8 < float(noise(1.0, 0.0, KEY)) < 1.2
  with pytest.raises(ValueError, match="num_views must be >= 1"):
    units.mean_over_views(loss_fn, shift, 0)


def test_crop_and_flip_keeps_shape_and_pixels_and_reaches_all_positions():
  image = np.arange(36, dtype=np.float32).reshape(6, 6, 1)
  keys = jax.random.split(KEY, 400)
  views = jax.jit(
    jax.vmap(
      lambda k: units.random_crop_and_flip(
        k, {"image": image, "label": 1}, padding=2
      )["image"]
    )
  )(keys)
  assert views.shape == (400, 6, 6, 1)
  corners, counts = np.unique(np.asarray(views)[:, 2, 2, 0], return_counts=True)
  assert set(np.asarray(views).ravel()) <= set(image.ravel())
  assert len(corners) >= 20
  assert counts.max() < 60
  # Half of the views are mirrored: then columns fall from left to right.
  mirrored = np.asarray(views[:, 2, 2, 0] > views[:, 2, 3, 0])
  assert 0.35 < mirrored.mean() < 0.65


# --- buckets ---

SAMPLER = sampling.Buckets(
  num_examples=48, expected_batch_size=12, num_buckets=4, bucket_size=5
)


def assert_records_draw_their_bucket_alone(cls):
  """Independently of each other, and uniformly."""
  sampler = cls(
    num_examples=30, expected_batch_size=12, num_buckets=3, bucket_size=30
  )
  batch = sampler.sample_many(seed=11, first_step=0, num_steps=4000)
  where = np.full((4000, 30), -1)
  step, bucket, place = np.nonzero(~batch.is_padding_example)
  where[step, batch.indices[step, bucket, place]] = bucket
  # Each record: absent with 0.6, in each bucket with 0.4 / 3.
  for record in range(30):
    counts = np.bincount(where[:, record] + 1, minlength=4)
    assert (
      stats.chisquare(counts, 4000 * np.array([0.6] + [0.4 / 3] * 3))[1] > 1e-5
    )
  # Pairs that are both there share a bucket as often as chance has it.
  both = (where[:, 0] >= 0) & (where[:, 1] >= 0)
  same = np.sum((where[:, 0] == where[:, 1]) & both)
  assert stats.binomtest(int(same), int(both.sum()), 1 / 3).pvalue > 1e-5
  # Consecutive cutting would tie a bucket's size to the sample's.
  sizes = (~batch.is_padding_example).sum(axis=2)
  assert sizes[:, 0].var() == pytest.approx(30 * (0.4 / 3) * (1 - 0.4 / 3), 0.1)


def test_records_draw_their_bucket_independently_and_uniformly():
  assert_records_draw_their_bucket_alone(sampling.Buckets)


class Consecutive(sampling.Buckets):
  """A planted error: the sampled list cut into buckets, one after the other."""

  def sample(self, seed, step):
    batch = super().sample(seed, step)
    records = batch.indices[~batch.is_padding_example]
    np.random.default_rng([seed, step]).shuffle(records)
    indices = np.zeros_like(batch.indices)
    mask = np.ones_like(batch.is_padding_example)
    for bucket, some in enumerate(np.array_split(records, self.num_buckets)):
      indices[bucket, : len(some)], mask[bucket, : len(some)] = some, False
    return sampling.Batch(indices, mask)


def test_consecutive_buckets_are_found():
  with pytest.raises(AssertionError):
    assert_records_draw_their_bucket_alone(Consecutive)


def test_buckets_of_one_are_single_examples_and_one_bucket_is_the_batch():
  """METHODS 5.5: the mean of one is itself; the mean of all is clipped."""
  rule, empty = clipping.flat(0.3), np.zeros((UNITS, 1), bool)
  loss = units.mean_over_records(loss_fn)
  singles = units.Records(jax.tree.map(lambda x: x[:, None], BATCH), empty)
  of_records = jax.jit(lambda r: jaxdp.clipped_sum(loss, rule)(PARAMS, r)[0])
  plain = jax.jit(lambda b: jaxdp.clipped_sum(loss_fn, rule)(PARAMS, b)[0])
  close(of_records(singles).grads, plain(BATCH).grads)
  whole = units.Records(jax.tree.map(lambda x: x[None], BATCH), empty.T)
  mean = jax.tree.map(lambda g: g.mean(0), expected_gradients())
  clipped, _ = optax.clip_by_global_norm(0.3).update(mean, ())
  close(of_records(whole).grads, clipped)


def test_an_overfull_bucket_keeps_a_random_subset_of_its_own():
  sampler = sampling.Buckets(
    num_examples=12, expected_batch_size=12, num_buckets=2, bucket_size=6
  )
  batch = sampler.sample_many(seed=3, first_step=0, num_steps=3000)
  full = ~batch.is_padding_example
  assert (full.sum(axis=2) <= 6).all()
  overfull = full.sum(axis=(1, 2)) < 12  # some records did not fit
  assert 0.5 < overfull.mean() < 0.9
  kept = np.bincount(batch.indices[full], minlength=12)
  assert stats.chisquare(kept)[1] > 1e-5


def test_buckets_have_sensitivity_two_and_the_event_of_poisson():
  """METHODS 1.4 and 2.12: c = 2; the multiplier is std / 2R."""
  mechanism = jaxdp.Mechanism(clipping.flat(0.7), SAMPLER, 1.5)
  np.testing.assert_allclose(mechanism.stddev(()), [1.5 * 2 * 0.7])
  plain = jaxdp.Mechanism(
    clipping.flat(0.7),
    sampling.Poisson(
      num_examples=48, expected_batch_size=12, max_batch_size=None
    ),
    1.5,
  )
  assert mechanism.dp_event(20) == plain.dp_event(20)
  assert mechanism.epsilon(20, 1e-3) == plain.epsilon(20, 1e-3)


def test_one_record_more_can_turn_a_bucket_around():
  """Control for the factor: at c = 1 this pair would be too far apart."""
  rule = clipping.flat(1.0)
  fn = jaxdp.clipped_sum(units.mean_over_records(lambda w, x: w @ x), rule)
  bucket = np.array([[[1.0, 0.0], [-100.0, 0.0]]], np.float32)
  sums = [
    fn(jnp.ones(2), units.Records(bucket, np.array([[False, absent]])))[0].grads
    for absent in (True, False)
  ]
  assert np.linalg.norm(sums[0] - sums[1]) == pytest.approx(2.0)


def test_replacement_and_bad_numbers_are_refused():
  with pytest.raises(ValueError, match="no accountant for neighboring_relatio"):
    jaxdp.Mechanism(
      clipping.flat(1.0), SAMPLER, 1.0, NeighboringRelation.REPLACE_ONE
    )
  with pytest.raises(ValueError, match="bucket_size=2 is smaller than the 3"):
    sampling.Buckets(
      num_examples=48, expected_batch_size=12, num_buckets=4, bucket_size=2
    )
  with pytest.raises(ValueError, match="num_buckets must be >= 1"):
    sampling.Buckets(num_examples=48, expected_batch_size=12, num_buckets=0)
  with pytest.raises(ValueError, match="is larger than num_examples=48"):
    sampling.Buckets(num_examples=48, expected_batch_size=60, num_buckets=4)


def test_a_list_cut_into_buckets_by_hand_is_refused():
  """METHODS 1.4: one record more would shift all buckets after it."""
  step = jaxdp.make_train_step(
    units.mean_over_records(toy.loss_fn),
    toy.mechanism(toy.poisson(max_batch_size=None), 1.0),
    optax.sgd(0.1),
  )
  data = jax.tree.map(lambda x: x.reshape(12, 4, *x.shape[1:]), toy.dataset())
  with pytest.raises(ValueError, match="The sum is over 12 rows"):
    step(step.init(toy.params(), KEY), data, np.zeros((12, 4), bool))


@pytest.mark.parametrize("on_device", [True, False])
def test_fit_trains_on_buckets(on_device):
  """As by hand: gathered, averaged in its bucket, clipped, summed, over m."""
  data = toy.dataset()
  data["x"][0] = np.nan  # row 0 stands in for missing records
  rule = clipping.flat(0.3)
  mechanism = jaxdp.Mechanism(rule, SAMPLER, 0.0)
  state, _ = jaxdp.fit(
    units.mean_over_records(toy.loss_fn),
    toy.params(),
    data,
    mechanism,
    optax.sgd(0.5),
    num_steps=3,
    delta=toy.DELTA,
    seed=1,
    progress=False,
    performance=jaxdp.PerformanceFlags(data_on_device=on_device),
  )
  kernel = np.asarray(toy.params()["kernel"], np.float64)
  grad = jax.jit(jax.grad(toy.loss_fn))
  seeds = jaxdp.training._seeds.Seeds.make(1)
  for step in range(3):
    batch = SAMPLER.sample(seeds.sampler_seed(0), step)
    total = np.zeros_like(kernel)
    for ids, padding in zip(*batch, strict=True):
      rows = ids[~padding]
      if len(rows) == 0 or 0 in rows:  # empty, or dropped for its NaN
        continue
      grads = [
        grad(
          {"kernel": jnp.asarray(kernel, jnp.float32)},
          jax.tree.map(lambda x: x[row], data),  # noqa: B023
        )["kernel"]
        for row in rows
      ]
      mean = np.mean(np.asarray(grads, np.float64), axis=0)
      total += mean * min(1, 0.3 / np.linalg.norm(mean))
    kernel -= 0.5 * total / 4
  np.testing.assert_allclose(state.params["kernel"], kernel, 1e-4, 1e-5)
