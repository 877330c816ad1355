"""Releases whose noise, keys, batches or accounts are not what is declared.

What a subject is, its check in `planted.py` says.
"""

import contextlib
import dataclasses
import functools
import math
import pathlib
import tempfile
from unittest import mock

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

import jaxdp
from jaxdp import aggregation, clipping, noise, sampling
from jaxdp.training import _resume
from tests import test_mechanism, test_resume, toy
from tests.planted import Planted

NOISE = "scale and independence of the released noise"
AUDIT = "black-box audit"
EVENT = "event against batches"
FLAT = clipping.flat(0.5)
KEY = jax.random.key(0)
PARAMS = {name: jnp.zeros(2048) for name in "abc"}
UNITS = 4
MECHANISM = jaxdp.Mechanism(FLAT, sampling.FullBatch(UNITS), 2.0)


# What is released of zeros: noise.


def sum_of_zeros(mechanism, params):
  return aggregation.ClippedSum(
    params,
    jnp.zeros(0),
    (jnp.dtype("float32"),) * len(params),
    aggregation.rule_tag(mechanism.rule),
    mechanism.sampler.batch_size,
    True,
  )


def two_steps(mechanism=MECHANISM, patch=contextlib.nullcontext):
  """Noise of every leaf in two releases."""

  @jax.jit
  def run(state):
    means = []
    for _ in range(2):
      summed = sum_of_zeros(mechanism, PARAMS)
      mean, state = mechanism.release(summed, state)
      means += [mean[name] for name in PARAMS]
    return means

  state = mechanism.init(PARAMS, KEY)
  stddev = MECHANISM.noise_stddev(state, PARAMS)["a"]
  with patch():
    return [(mean, stddev) for mean in run(state)]


def patched(noise_fn):
  """`two_steps` with another function in place of the library's noise."""
  patch = functools.partial(
    mock.patch.object, noise, "add_gaussian_noise", noise_fn
  )
  return functools.partial(two_steps, patch=patch)


genuine_noise = noise.add_gaussian_noise


def not_on_the_last_leaf(key, tree, stddevs):
  leaves, treedef = jax.tree.flatten(genuine_noise(key, tree, stddevs))
  leaves[len(PARAMS) - 1] = jax.tree.leaves(tree)[len(PARAMS) - 1]
  return jax.tree.unflatten(treedef, leaves)


def one_key_for_leaves(key, tree, stddevs):
  return jax.tree.map(
    lambda x, s: x + s * noise.standard_normal(key, x.shape), tree, stddevs
  )


@jax.tree_util.register_dataclass
class OneKeyForSteps(jaxdp.Mechanism):
  """The step is not folded in."""

  def release(self, summed, state, **kwargs):
    first = state._replace(count=jnp.zeros_like(state.count))
    return super().release(summed, first, **kwargs)


@jax.tree_util.register_dataclass
class SumScaleOnMean(jaxdp.Mechanism):
  """Divided first, and then noised as the sum."""

  def release(self, summed, state, *, expected_num_units=None):
    units = expected_num_units or self.sampler.expected_num_units
    mean = jax.tree.map(lambda x: x / units, summed.grads)
    late = dataclasses.replace(summed, grads=mean)
    return super().release(late, state, expected_num_units=1.0)


@jax.tree_util.register_dataclass
class MeanScaleOnSum(jaxdp.Mechanism):
  """Noise of sigma C / B, added before the division."""

  def stddev(self, rule_state, step=0):
    units = self.sampler.expected_num_units
    return super().stddev(rule_state, step) / units


@jax.tree_util.register_dataclass
class HalfTheNoise(jaxdp.Mechanism):
  def stddev(self, rule_state, step=0):
    return super().stddev(rule_state, step) / 2


def mechanism():
  return MECHANISM


def of_kind(kind):
  fields = {
    f.name: getattr(MECHANISM, f.name) for f in dataclasses.fields(kind)
  }
  return kind(**fields)


def on_devices(noise_fn):
  """Noise of one leaf that eight devices share."""
  devices = jax.devices()
  mesh = jax.make_mesh((len(devices),), ("data",), devices=devices)
  leaf = jnp.zeros(1024 * len(devices))

  def draw():
    return [(noise_fn(mesh, leaf), 1.0)]

  return draw


def one_draw(mesh, leaf):
  split = NamedSharding(mesh, PartitionSpec("data"))
  return jax.jit(
    lambda x: noise.add_gaussian_noise(KEY, [x], [1.0])[0], out_shardings=split
  )(jax.device_put(leaf, split))


def one_key_for_devices(mesh, leaf):
  return jax.jit(
    jax.shard_map(
      lambda x: noise.add_gaussian_noise(KEY, [x], [1.0])[0],
      mesh=mesh,
      in_specs=PartitionSpec("data"),
      out_specs=PartitionSpec("data"),
      check_vma=False,
    )
  )(jax.device_put(leaf, NamedSharding(mesh, PartitionSpec("data"))))


def linear(params, example):
  return params["a"] @ example


def in_microsteps(noised_every):
  """Four units without a gradient, two at a time."""

  @jax.jit
  def run(state):
    rows = jnp.zeros((UNITS, len(PARAMS["a"])))
    params = {"a": PARAMS["a"]}
    if not noised_every:
      fn = jaxdp.clipped_sum(linear, FLAT, microbatch_size=2)
      return MECHANISM.release(fn(params, rows)[0], state)[0]["a"]
    total = jnp.zeros_like(params["a"])
    for half in jnp.split(rows, 2):
      summed, _ = jaxdp.clipped_sum(linear, FLAT)(params, half)
      summed = dataclasses.replace(summed, num_units=UNITS)
      mean, state = MECHANISM.release(summed, state)
      total = total + mean["a"]
    return total

  def draw():
    params = {"a": PARAMS["a"]}
    state = MECHANISM.init(params, KEY)
    return [(run(state), MECHANISM.noise_stddev(state, params)["a"])]

  return draw


def averaged(quiet):
  """The average of the parameters after one step without a gradient.

  It is 0.9 of them. The planted one follows parameters that were updated by
  the mean as it was before the noise.
  """

  def draw():
    params = {"a": PARAMS["a"]}
    rows = jnp.zeros((UNITS, len(params["a"])))
    mechanism = MECHANISM.replace(noise_multiplier=0.0) if quiet else MECHANISM
    step = jaxdp.make_train_step(
      linear, mechanism, optax.sgd(1.0), ema_decay=0.999
    )
    state, _ = step(step.init(params, KEY), rows)
    declared = MECHANISM.noise_stddev(MECHANISM.init(params, KEY), params)
    return [(state.ema_params["a"], 0.9 * declared["a"])]

  return draw


def resumed(changed):
  """Noise of steps 4 and 5, which ran in two lives of a run.

  Between them the data changed; ``changed`` is what finds that out. Noise is so
  large that gradients do not matter, and parameters are what was published.
  """

  def draw():
    seen = []
    arguments = {
      "params": {"kernel": jnp.zeros((6, 1024))},
      "mechanism": toy.mechanism(noise_multiplier=1e4),
      "optimizer": optax.sgd(1.0),
      "loss_fn": lambda params, x: jnp.sum(x["x"] @ params["kernel"]),
      "eval_fn": lambda params: seen.append(np.asarray(params["kernel"])) or {},
      "eval_every": 2,
      "num_steps": 8,
    }
    with tempfile.TemporaryDirectory() as name:
      workdir = pathlib.Path(name)
      test_resume.crash_after_step_6(workdir, **arguments)
      life = len(seen)
      other = {**arguments, "dataset": toy.dataset(seed=8)}
      with mock.patch.object(_resume, "_changed", changed):
        test_resume.fit(workdir, **other)
    stddev = 1e4 * 0.5 / toy.NUM_EXAMPLES * math.sqrt(2)
    # Published after steps 2, 4 and 6, and then again after step 6.
    assert life == 3
    return [(x - seen[1], stddev) for x in seen[2:4]]

  return draw


# Keys in programs.


def release_of(closed_over):
  def make():
    params = {"a": jnp.zeros(3)}
    state = MECHANISM.init(params, test_mechanism.SECRET)
    summed = sum_of_zeros(MECHANISM, params)
    if closed_over:
      fun = jax.jit(lambda summed: MECHANISM.release(summed, state)[0])
      return fun, (summed,)
    return jax.jit(lambda *args: MECHANISM.release(*args)[0]), (summed, state)

  return make


# Events and batches.

STEPS, N, B = 2000, 80, 20
POISSON = sampling.Poisson(
  num_examples=N, expected_batch_size=B, max_batch_size=None
)


def claimed(sampler, num_steps=STEPS):
  mechanism = jaxdp.Mechanism(FLAT, sampler, 1.0)
  return mechanism.dp_event(num_steps)


def executed(sampler, event=POISSON):
  """The sampler's batches, and the event that another claims for them."""

  def make():
    batches = [sampler.sample(7, step) for step in range(STEPS)]
    return claimed(event), batches, N

  return make


POISSON_BATCHES = executed(POISSON)


class WithoutEmpty(sampling.Poisson):
  """An empty batch is skipped, and another takes its place."""

  def sample(self, seed, step):
    batches = (
      super(WithoutEmpty, self).sample(seed + i, step) for i in range(100)
    )
    return next(b for b in batches if not b.is_padding_example.all())


RARE, NEVER_EMPTY = (
  kind(num_examples=N, expected_batch_size=2, max_batch_size=None)
  for kind in (sampling.Poisson, WithoutEmpty)
)


def resumed_ledger(forgets):
  """Twelve steps, of which 4 to 7 ran twice: with new keys and batches."""

  def make():
    ledger = jaxdp.Mechanism(FLAT, POISSON, 1.0).ledger()
    ledger.charge(1200)
    if not forgets:
      ledger.begin_incarnation(first_step=400)
    ledger.charge(800, first_step=400)
    batches = [POISSON.sample(7, step) for step in range(1200)]
    batches += [POISSON.sample(8, step) for step in range(800)]
    return ledger.dp_event(), batches, N

  return make


QUANTILE = jaxdp.Mechanism(
  clipping.adaptive_quantile(1.0, budget_fraction=0.5),
  sampling.Poisson(
    num_examples=1000, expected_batch_size=20, max_batch_size=None
  ),
  1.0,
)


def amplified_apart(num_steps):
  """Gradient and bits each as a release of its own sample."""
  parts = [
    QUANTILE.sampler.dp_event(
      QUANTILE.sigma / math.sqrt(share), num_steps, QUANTILE.relation
    )
    for share in (0.5, 0.5)
  ]
  return dp_accounting.ComposedDpEvent(parts)


# Refusals.

STACKED = {"a": jnp.zeros((UNITS, 3))}
POISSON_OF_FOUR = MECHANISM.replace(
  sampler=sampling.Poisson(
    num_examples=8, expected_batch_size=2, max_batch_size=UNITS
  )
)


def release(mechanism, rule=FLAT, mask=None):
  def call():
    params = {"a": jnp.zeros(3)}
    rows = jnp.zeros((UNITS, 3))
    summed, _ = jaxdp.clipped_sum(linear, rule)(params, rows, mask)
    mechanism.release(summed, mechanism.init(params, KEY))

  return call


def update(make):
  """One update by an optax chain on stacked gradients."""

  def call():
    tx = make()
    tx.update(STACKED, tx.init({"a": jnp.zeros(3)}))

  return call


@functools.cache
def _plain_fit():
  toy.fit()


def with_statistics(params, example):
  mean = example["x"] @ params["kernel"]
  return toy.loss_fn(params, example), {"batch_stats": {"mean": mean}}


def injected():
  return optax.inject_hyperparams(jaxdp.clip_per_example)(rule=FLAT)


def refused(genuine, planted, words):
  return (lambda: (genuine, words)), (lambda: (planted, words))


MASK = jnp.zeros(UNITS, bool)

ERRORS = (
  Planted(
    "noise at half scale",
    AUDIT,
    mechanism,
    lambda: of_kind(HalfTheNoise),
  ),
  Planted(
    "noise on the sum at mean scale",
    AUDIT,
    mechanism,
    lambda: of_kind(MeanScaleOnSum),
  ),
  Planted(
    "noise on the mean at sum scale",
    NOISE,
    two_steps,
    lambda: two_steps(of_kind(SumScaleOnMean)),
  ),
  Planted(
    "no noise on one leaf", NOISE, two_steps, patched(not_on_the_last_leaf)
  ),
  Planted(
    "same key on all leaves", NOISE, two_steps, patched(one_key_for_leaves)
  ),
  Planted(
    "same key on all steps",
    NOISE,
    two_steps,
    lambda: two_steps(of_kind(OneKeyForSteps)),
  ),
  Planted(
    "same key on all devices",
    NOISE,
    on_devices(one_draw),
    on_devices(one_key_for_devices),
  ),
  Planted(
    "accumulation noised every microstep",
    NOISE,
    in_microsteps(noised_every=False),
    in_microsteps(noised_every=True),
  ),
  Planted(
    "EMA from un-noised parameters",
    NOISE,
    averaged(quiet=False),
    averaged(quiet=True),
  ),
  Planted(
    "resume that replays a key on another batch",
    NOISE,
    resumed(_resume._changed),
    resumed(lambda old, new: []),
  ),
  Planted(
    "float32 normal noise with its bounded tails",
    "tails of the noise",
    lambda: functools.partial(noise.standard_normal, KEY),
    lambda: functools.partial(jax.random.normal, KEY),
  ),
  Planted(
    "a key closed over into the compiled program",
    "search of the program",
    release_of(closed_over=False),
    release_of(closed_over=True),
  ),
  Planted(
    "Poisson accounting over shuffled batches",
    EVENT,
    POISSON_BATCHES,
    executed(sampling.Shuffled(num_examples=N, batch_size=B), POISSON),
  ),
  Planted(
    "q off by one batch",
    EVENT,
    POISSON_BATCHES,
    executed(
      POISSON,
      sampling.Poisson(
        num_examples=N + B, expected_batch_size=B, max_batch_size=None
      ),
    ),
  ),
  Planted(
    "empty batches skipped",
    EVENT,
    executed(RARE, RARE),
    executed(NEVER_EMPTY, RARE),
  ),
  Planted(
    "repeated steps not charged",
    EVENT,
    resumed_ledger(forgets=False),
    resumed_ledger(forgets=True),
  ),
  Planted(
    "two separately amplified releases",
    "event against releases",
    lambda: (QUANTILE, QUANTILE.dp_event),
    lambda: (QUANTILE, amplified_apart),
  ),
  Planted(
    "N from the test set",
    "refusal",
    *refused(
      _plain_fit,
      lambda: toy.fit(mechanism=toy.mechanism(toy.full_batch(10))),
      "Make the sampler with num_examples=48",
    ),
  ),
  Planted(
    "a forgotten padding mask",
    "refusal",
    *refused(
      release(POISSON_OF_FOUR, mask=MASK),
      release(POISSON_OF_FOUR),
      "Pass is_padding_example=",
    ),
  ),
  Planted(
    "noise for the clip norm of another rule",
    "refusal",
    *refused(
      release(MECHANISM),
      release(MECHANISM, clipping.flat(5.0)),
      "Use one rule for both",
    ),
  ),
  Planted(
    "leaves masked out of the release",
    "refusal",
    *refused(
      update(lambda: MECHANISM.aggregate(KEY)),
      update(lambda: optax.masked(MECHANISM.aggregate(KEY), {"a": False})),
      "mask after the release",
    ),
  ),
  Planted(
    "a clip norm among mutable hyperparameters",
    "refusal",
    *refused(
      update(lambda: jaxdp.clip_per_example(FLAT)),
      injected,
      "Inject after the release",
    ),
  ),
  Planted(
    "batch statistics in the result",
    "refusal",
    *refused(
      _plain_fit,
      lambda: toy.fit(loss_fn=with_statistics, has_aux=True),
      "take the statistics for evaluation from public examples",
    ),
  ),
)
