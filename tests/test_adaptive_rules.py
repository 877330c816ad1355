"""ALC, preconditioning and quantile clipping (METHODS 2.8 to 2.11)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp
from jaxdp import clipping
from jaxdp.accounting import gdp
from tests.rules import PARAMS

# Six layers with one kernel each.
LAYERS = {f"layer{i}": {"kernel": jnp.zeros(i + 1)} for i in range(6)}
PUBLIC = jnp.array([3.0, 0.5, 1.0, 6.0, 2.0, 4.0])
NORMS = jnp.asarray(
  10 ** np.random.default_rng(0).uniform(-3, 3, (6, 50)), jnp.float32
)


def refreshed(rule, public_norms=PUBLIC, params=LAYERS):
  return rule.refresh(rule.init(params), public_norms)


# --- ALC ---


def test_alc_radii_follow_the_public_norms():
  rule = clipping.adaptive_layerwise(1.5)
  radii = 1.5 * PUBLIC / 6
  state = refreshed(rule)
  expected = radii[:, None] / jnp.maximum(NORMS, radii[:, None])
  np.testing.assert_allclose(rule.weights(NORMS, state), expected, 1e-6)
  # In the paper's terms std_l = c sigma_p C_l with sigma_p = sqrt(L) sigma.
  np.testing.assert_allclose(rule.noise_shape(state), 6**0.5 * radii, 1e-6)


def test_alc_of_one_layer_is_flat():
  """METHODS 5.4 with L = 1."""
  rule, flat = clipping.adaptive_layerwise(0.9), clipping.flat(0.9)
  state = refreshed(rule, jnp.array([7.0]), {"a": {"kernel": jnp.zeros(3)}})
  norms = jnp.array([[0.0, 0.5, 0.9, 4.0, 1e9]])
  np.testing.assert_allclose(
    rule.weights(norms, state), flat.weights(norms, ()), 1e-6
  )
  np.testing.assert_allclose(rule.noise_shape(state), [0.9], 1e-6)


def test_alc_of_one_cluster_is_flat():
  """METHODS 2.9 with G = 1: at the root of the sum of C_l^2."""
  rule = clipping.adaptive_layerwise(1.0, num_clusters=1)
  state = refreshed(rule)
  flat = clipping.flat(float(jnp.linalg.norm(PUBLIC / 6)))
  expected = flat.weights(jnp.linalg.norm(NORMS, axis=0, keepdims=True), ())
  np.testing.assert_allclose(
    rule.weights(NORMS, state), jnp.broadcast_to(expected, NORMS.shape), 1e-5
  )
  np.testing.assert_allclose(
    rule.noise_shape(state), np.full(6, flat.l2_clip_norm), 1e-6
  )


def test_clusters_hold_layers_of_similar_radius():
  """METHODS 2.9: sorted by radius, cut into G; mu = sqrt(G) / sigma_p."""
  rule = clipping.adaptive_layerwise(1.0, num_clusters=3)
  state = refreshed(rule)
  assert state.cluster.tolist() == [1, 0, 0, 2, 1, 2]
  radii = np.asarray(PUBLIC / 6, np.float64)
  together = [(0, 4), (1, 2), (3, 5)]
  for layers in together:
    radius = np.linalg.norm(radii[list(layers)])
    norm = np.linalg.norm(np.asarray(NORMS)[list(layers)], axis=0)
    for layer in layers:
      np.testing.assert_allclose(
        rule.weights(NORMS, state)[layer], np.minimum(1, radius / norm), 1e-5
      )
      np.testing.assert_allclose(
        rule.noise_shape(state)[layer], 3**0.5 * radius, 1e-6
      )


@pytest.mark.parametrize("normalizer", ["max", "sum", "rms"])
def test_normalizers_differ_by_a_factor(normalizer):
  rule = clipping.adaptive_layerwise(1.0, normalizer=normalizer)
  total = {
    "max": 6.0,
    "sum": float(PUBLIC.sum()),
    "rms": float(np.sqrt(np.mean(np.square(PUBLIC)))),
  }
  np.testing.assert_allclose(
    refreshed(rule).scales, PUBLIC / total[normalizer], 1e-6
  )


@pytest.mark.parametrize(
  "make", [clipping.adaptive_layerwise, clipping.preconditioned]
)
def test_public_scales_have_a_floor(make):
  state = refreshed(
    make(1.0, floor=0.1), jnp.array([0.0, 1e-9, jnp.nan, 6.0, jnp.inf, 3.0])
  )
  np.testing.assert_allclose(state.scales, [0.1, 0.1, 0.1, 1, 0.1, 0.5], 1e-6)
  state = refreshed(make(1.0), jnp.zeros(6))
  np.testing.assert_allclose(state.scales, np.ones(6))


def test_bad_layerwise_numbers_are_refused():
  with pytest.raises(ValueError, match="num_clusters must be >= 1"):
    clipping.adaptive_layerwise(1.0, num_clusters=0)
  with pytest.raises(ValueError, match="normalizer must be one of"):
    clipping.adaptive_layerwise(1.0, normalizer="mean")
  with pytest.raises(ValueError, match="have 2 layers"):
    clipping.adaptive_layerwise(1.0, num_clusters=3).init(PARAMS)


# --- preconditioned ---


def test_preconditioned_with_equal_scales_is_flat():
  """METHODS 5.6: D = I."""
  rule, flat = clipping.preconditioned(0.9), clipping.flat(0.9)
  state = refreshed(rule, jnp.full(6, 4.0))
  expected = flat.weights(jnp.linalg.norm(NORMS, axis=0, keepdims=True), ())
  np.testing.assert_allclose(
    rule.weights(NORMS, state), jnp.broadcast_to(expected, NORMS.shape), 1e-5
  )
  np.testing.assert_allclose(rule.noise_shape(state), np.full(6, 0.9), 1e-6)


def test_preconditioned_depends_on_scale_times_clip_norm():
  """METHODS 5.6: (k D, C / k) is (D, C); ours has max D = 1."""
  a, b = clipping.preconditioned(0.9), clipping.preconditioned(0.9)
  states = refreshed(a), refreshed(b, 5 * PUBLIC)
  np.testing.assert_allclose(
    a.weights(NORMS, states[0]), b.weights(NORMS, states[1]), 1e-6
  )
  np.testing.assert_allclose(
    a.noise_shape(states[0]), b.noise_shape(states[1]), 1e-6
  )


def test_preconditioned_clips_in_scaled_coordinates():
  rule = clipping.preconditioned(0.9)
  state = refreshed(rule)
  scaled = np.linalg.norm(np.asarray(NORMS) / (PUBLIC[:, None] / 6), axis=0)
  expected = np.broadcast_to(np.minimum(1, 0.9 / scaled), NORMS.shape)
  np.testing.assert_allclose(rule.weights(NORMS, state), expected, 1e-5)


# --- adaptive quantile ---


def test_the_gradient_gets_what_the_bits_leave():
  """METHODS 5.8: z 1, s_b 5 -> z_g 1.00504, and the limit of no bits."""
  for fraction, z_g, s_b in [
    (0.01, 1.00504, 5.0),
    (1e-6, 1.0, 500.0),
    (0.75, 2.0, 0.57735),
  ]:
    rule = clipping.adaptive_quantile(0.7, budget_fraction=fraction)
    shape = rule.noise_shape(rule.init(PARAMS))
    np.testing.assert_allclose(shape, [0.7 * z_g, s_b], 1e-5)
    # z^-2 = z_g^-2 + (D_b / s_b)^2 with D_b = 1/2.
    np.testing.assert_allclose(z_g**-2 + (0.5 / s_b) ** 2, 1, 1e-5)


def test_layers_share_the_budget_of_the_bits():
  """METHODS 2.11: z_g^-2 = z^-2 - K (2 s_b)^-2."""
  rule = clipping.adaptive_quantile(0.7, by="layer")
  gradient, bits = np.split(rule.noise_shape(rule.init(PARAMS)), 2)
  z_g = gradient / 0.7  # "global": the root of the sum of C_l^2
  np.testing.assert_allclose(z_g**-2 + 2 * (2 * bits) ** -2, [1, 1], 1e-5)


def test_a_clip_norm_moves_to_its_quantile():
  """Without noise it ends where a quarter of the norms is below."""
  rule = clipping.adaptive_quantile(10.0, quantile=0.25)
  norms = jnp.asarray(
    np.random.default_rng(0).lognormal(size=(1, 400)), jnp.float32
  )

  @jax.jit
  def step(state):
    return rule.update(state, rule.statistic(norms, state).mean(axis=1))

  state = rule.init({"w": jnp.zeros(3)})
  for _ in range(200):
    state = step(state)
  target = np.quantile(norms, 0.25)
  np.testing.assert_allclose(state.l2_clip_norms, [target], 0.05)


def test_one_step_is_the_published_formula():
  rule = clipping.adaptive_quantile(2.0)
  state = rule.update(rule.init({"w": jnp.zeros(3)}), jnp.array([0.3]))
  np.testing.assert_allclose(
    state.l2_clip_norms, [2 * np.exp(-0.2 * (0.8 - 0.5))], 1e-6
  )


def test_bits_are_centred():
  """Absent units count 0, so that one moves the sum by 1/2 and not by 1."""
  rule = clipping.adaptive_quantile(2.0)
  state = rule.init({"w": jnp.zeros(3)})
  bits = rule.statistic(jnp.array([[0.0, 2.0, 2.1, 3e38]]), state)
  assert bits.tolist() == [[0.5, 0.5, -0.5, -0.5]]


@pytest.mark.parametrize("noise", [1e30, -1e30, 3e38])
def test_a_clip_norm_stays_finite_whatever_the_noise(noise):
  rule = clipping.adaptive_quantile(2.0)
  state = rule.init({"w": jnp.zeros(3)})
  for _ in range(5):
    state = rule.update(state, jnp.array([noise]))
  assert 1.99e-6 <= float(state.l2_clip_norms[0]) <= 2.01e6


@pytest.mark.parametrize("name", ["quantile", "budget_fraction"])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.5])
def test_bad_quantile_numbers_are_refused(name, value):
  with pytest.raises(ValueError, match=rf"{name} must be in \(0, 1\)"):
    clipping.adaptive_quantile(1.0, **{name: value})


# --- what the published noise of batch clipping with ALC is worth ---

SIGMA = 0.01875  # of arXiv:2307.11939: std = 2 C sigma, shuffled epochs


def published_mu(sigma, groups, epochs):
  """One release an epoch and group: METHODS 4c."""
  return gdp.compose([1 / sigma] * groups * epochs)


@pytest.mark.parametrize(
  "sigma, groups, epochs, mu, epsilon",
  [
    (SIGMA, 1, 1, 53.3, 1.65e3),
    (SIGMA, 1, 50, 377, 7.3e4),
    (SIGMA, 62, 1, 420, 9.0e4),
    (SIGMA, 62, 50, 2970, 4.4e6),
    (0.0375, 1, 1, 26.7, 468),
    (0.075, 1, 1, 13.3, 145),
  ],
)
def test_published_noise_gives_no_privacy(sigma, groups, epochs, mu, epsilon):
  """METHODS 4c: the reported accuracy is that of optimisation alone."""
  got = published_mu(sigma, groups, epochs)
  assert got == pytest.approx(mu, rel=3e-3)
  assert gdp.epsilon(got, 1e-5) == pytest.approx(epsilon, rel=1e-2)


@pytest.mark.parametrize(
  "groups, epsilon, sigma",
  [
    (1, 1, 26.4),
    (1, 3, 9.83),
    (1, 8, 4.24),
    (62, 1, 208),
    (62, 3, 77.4),
    (62, 8, 33.4),
  ],
)
def test_noise_that_fifty_epochs_need(groups, epsilon, sigma):
  """METHODS 4c, and the same from a mechanism with its own sqrt(G)."""
  needed = math.sqrt(groups * 50) / gdp.mu(epsilon, 1e-5)
  assert needed == pytest.approx(sigma, rel=2e-3)
  # In our terms the multiplier has no groups in it; the noise has.
  mechanism = jaxdp.Mechanism(
    clipping.adaptive_layerwise(1.0),
    jaxdp.sampling.Shuffled(num_examples=1000, batch_size=100),
    needed / math.sqrt(groups),
    jaxdp.NeighboringRelation.REPLACE_ONE,
  )
  assert mechanism.epsilon(50 * 10, 1e-5) == pytest.approx(epsilon, rel=1e-6)
