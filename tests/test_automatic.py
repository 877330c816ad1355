"""Identities of AUTO-V, AUTO-S, PSAC and PSASC (METHODS 5.2 and 5.3)."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp import clipping

NORMS = np.array(
  [0.0, 1e-6, 0.01, 0.1, 0.3, 1.0, 3.0, 1e3, 1e6, 1e12, 1e18], np.float32
)


def weights(rule, norms=NORMS):
  return np.asarray(rule.weights(jnp.asarray([norms], jnp.float32), ()))[0]


def exact(norms, clip, r, s):
  x = np.asarray(norms, np.float64)
  return clip / (s * x + r / (x + r))


@pytest.mark.parametrize("s", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("r", [0.01, 0.1, 2.0])
@pytest.mark.parametrize("clip", [0.5, 2.0])
def test_psasc_is_its_formula(clip, r, s):
  """METHODS 2.6, with w(0) = C, and (C/s) W(r/s, r) of METHODS 5.2."""
  rule = clipping.psasc(clip, r=r, s=s)
  got = weights(rule)
  np.testing.assert_allclose(got, exact(NORMS, clip, r, s), 1e-5)
  np.testing.assert_allclose(got[0], clip, 1e-6)
  x = NORMS.astype(np.float64)
  np.testing.assert_allclose(got, clip / s / (x + (r / s) / (x + r)), 1e-5)
  assert rule.noise_shape(()) == pytest.approx(clip / s)


def test_psac_is_psasc_with_slope_one():
  """METHODS 5.2."""
  np.testing.assert_array_equal(
    weights(clipping.psac(0.7, r=0.05)),
    weights(clipping.psasc(0.7, r=0.05, s=1.0)),
  )


def test_psasc_without_r_is_the_inverse_norm():
  """METHODS 5.2: r -> 0 gives C / (s x) for x > 0."""
  norms = [0.01, 1.0, 1e6]
  np.testing.assert_allclose(
    weights(clipping.psasc(0.7, r=1e-9, s=0.5), norms),
    0.7 / (0.5 * np.float64(norms)),
    1e-4,
  )


def test_psasc_with_a_large_r_is_auto_s():
  """METHODS 2.6: r -> inf is AUTO-S with (C/s, gamma = 1/s)."""
  norms = [0.0, 0.01, 1.0, 100.0]
  np.testing.assert_allclose(
    weights(clipping.psasc(0.7, r=1e9, s=0.5), norms),
    weights(clipping.automatic(1.4, gamma=2.0), norms),
    1e-4,
  )


def test_wrong_variants_of_psac_differ():
  """METHODS 5.2 and 2.5: other brackets, and a clip norm for each unit."""
  x, r, clip = 0.2, 0.1, 1.0
  right = weights(clipping.psac(clip, r=r), [x])[0]
  other_brackets = clip / (x + (r / x + r))
  own_clip_norm = min(1.0, clip * right / x)
  assert abs(other_brackets - right) > 0.1 * right
  assert abs(own_clip_norm - right) > 0.1 * right


def test_auto_s_without_gamma_is_auto_v():
  """METHODS 5.3."""
  auto_v = weights(clipping.automatic(0.7, gamma=0.0))
  np.testing.assert_allclose(
    weights(clipping.automatic(0.7, gamma=1e-12))[2:], auto_v[2:], 1e-6
  )
  np.testing.assert_allclose(auto_v[1:], 0.7 / NORMS[1:], 1e-6)
  assert auto_v[0] == 0
  assert weights(clipping.automatic(0.7, gamma=0.01))[0] == pytest.approx(70)


@pytest.mark.parametrize(
  "s, r, norm, largest",
  [
    (1, 0.1, 0.2162, 1.8781),
    (1, 0.01, 0.0900, 5.2632),
    (0.5, 0.1, 0.3472, 2.5175),
  ],
)
def test_largest_weight_of_psasc(s, r, norm, largest):
  """METHODS 5.3: where it is, and how large."""
  norms = np.linspace(0, 1, 100_001, dtype=np.float32)
  got = weights(clipping.psasc(1.0, r=r, s=s), norms)
  assert norms[got.argmax()] == pytest.approx(norm, abs=2e-3)
  assert got.max() == pytest.approx(largest, rel=1e-4)
  assert math.sqrt(r / s) - r == pytest.approx(norm, abs=1e-4)


def test_contribution_of_psasc_grows_to_its_bound():
  """METHODS 5.3: sup x w = C/s, approached and not exceeded beyond 8 ulp."""
  norms = np.logspace(-6, 18, 500).astype(np.float32)
  got = norms * weights(clipping.psasc(0.7, r=0.1, s=0.5), norms)
  assert (np.diff(got) >= -2e-6 * got[1:]).all()
  assert got.max() <= 1.4 * (1 + 8 * 2.0**-23)
  assert got[norms <= 1e6].max() >= 1.4 * (1 - 1e-5)


@pytest.mark.parametrize(
  "make",
  [
    clipping.automatic,
    lambda c: clipping.automatic(c, gamma=0.0),
    clipping.psac,
    lambda c: clipping.psasc(c, s=0.5),
  ],
)
def test_weights_are_linear_in_the_clip_norm(make):
  """METHODS 5.13: so that (lr / k, k C) is the same training, noise and all."""
  np.testing.assert_allclose(weights(make(2.0)), 4 * weights(make(0.5)), 1e-6)
  np.testing.assert_allclose(
    make(2.0).noise_shape(()), 4 * make(0.5).noise_shape(())
  )


def test_slope_buys_no_privacy_and_no_small_gradients():
  """METHODS 2.6: in units of the noise, s < 1 weighs all x less than PSAC."""
  steep = clipping.psasc(1.0, r=0.1, s=0.25)
  plain = clipping.psac(1.0, r=0.1)
  a, b = (weights(r) / np.asarray(r.noise_shape(())) for r in (steep, plain))
  assert (a <= b * (1 + 1e-6)).all()
  assert a[0] == pytest.approx(0.25)


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: clipping.automatic(gamma=-1.0), "gamma must be > 0"),
    (lambda: clipping.automatic(0.0), "l2_clip_norm must be > 0"),
    (lambda: clipping.psac(r=0.0), "r must be > 0"),
    (lambda: clipping.psasc(s=0.0), "s must be > 0"),
  ],
)
def test_bad_numbers_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()
