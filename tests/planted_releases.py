"""Releases whose noise or keys are not what is declared.

What a subject is, its check in `planted.py` says.
"""

import contextlib
import dataclasses
import functools
import math
import pathlib
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

import jaxdp
from jaxdp import aggregation, clipping, noise, sampling
from jaxdp.training import _resume
from tests import test_audit, test_mechanism, test_resume, toy
from tests.planted import Planted

NOISE = "scale and independence of the released noise"
AUDIT = "black-box audit"
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


class OneKeyForSteps(jaxdp.Mechanism):
  """The step is not folded in."""

  def release(self, summed, state, **kwargs):
    first = state._replace(count=jnp.zeros_like(state.count))
    return super().release(summed, first, **kwargs)


class SumScaleOnMean(jaxdp.Mechanism):
  """Divided first, and then noised as the sum."""

  def release(self, summed, state, *, expected_num_units=None):
    units = expected_num_units or self.sampler.expected_num_units
    mean = jax.tree.map(lambda x: x / units, summed.grads)
    late = dataclasses.replace(summed, grads=mean)
    return super().release(late, state, expected_num_units=1.0)


class MeanScaleOnSum(jaxdp.Mechanism):
  """Noise of sigma C / B, added before the division."""

  def stddev(self, rule_state, step=0):
    units = self.sampler.expected_num_units
    return super().stddev(rule_state, step) / units


def genuine_mechanism():
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


def averaged(before_noise):
  """The average of the parameters after one step without a gradient.

  It is 0.9 of them. The planted one follows parameters that were updated by
  the mean as it was before the noise.
  """

  def steps(sigma):
    mechanism = MECHANISM.replace(noise_multiplier=sigma)
    return jaxdp.make_train_step(
      linear, mechanism, optax.sgd(1.0), ema_decay=0.999
    )

  @jax.jit
  def run(state, rows):
    noisy, _ = steps(MECHANISM.sigma).run(state, None, rows, None)
    if before_noise:
      quiet, _ = steps(0.0).run(state, None, rows, None)
      noisy = noisy._replace(ema_params=quiet.ema_params)
    return noisy

  def draw():
    params = {"a": PARAMS["a"]}
    rows = jnp.zeros((UNITS, len(params["a"])))
    state = run(steps(MECHANISM.sigma).init(params, KEY), rows)
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


ERRORS = (
  Planted(
    "noise at half scale",
    AUDIT,
    genuine_mechanism,
    lambda: of_kind(test_audit.HalfTheNoise),
  ),
  Planted(
    "noise on the sum at mean scale",
    AUDIT,
    genuine_mechanism,
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
    averaged(before_noise=False),
    averaged(before_noise=True),
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
)
