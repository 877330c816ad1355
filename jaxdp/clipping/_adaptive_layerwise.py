"""Rules whose scales by layer follow a public batch: ALC, and preconditioning.

The scales come from public data, so that they cost nothing; from private data
they would be a release without noise. ``jaxdp.public_norms`` measures them and
``Mechanism.refresh`` takes them in.
"""

from typing import ClassVar, Literal, NamedTuple, get_args

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxdp.clipping import _rule
from jaxdp.clipping._groups import assign_groups

Normalizer = Literal["max", "sum", "rms"]


class LayerState(NamedTuple):
  """What the last public batch said. Public."""

  scales: Float[Array, " layers"]
  cluster: Int[Array, " layers"]  # layers with one number are clipped together


class _PublicScales(_rule.ClippingRule):
  adaptive: ClassVar[bool] = True
  needs_public_norms: ClassVar[bool] = True
  floor: float

  def group(self, path: str) -> str:
    return path.rpartition("/")[0]

  def init(self, params: PyTree) -> LayerState:
    layers = len(assign_groups(self, params).names)
    state = LayerState(jnp.ones(layers), jnp.zeros(layers, jnp.int32))
    return self.refresh(state, jnp.ones(layers))

  def _scales(self, norms: Float[Array, " layers"]) -> Float[Array, " layers"]:
    """Norms over the largest, none too small; equal ones if all are 0."""
    norms = jnp.asarray(norms, jnp.float32)
    norms = jnp.where(jnp.isfinite(norms), norms, jnp.zeros_like(norms))
    largest = jnp.max(norms)
    norms = jnp.where(largest > 0, norms / largest, jnp.ones_like(norms))
    return jnp.maximum(norms, jnp.asarray(self.floor, jnp.float32))


@_rule.rule("num_clusters", "normalizer")
class AdaptiveLayerwise(_PublicScales):
  """See ``adaptive_layerwise``."""

  l2_clip_norm: float
  num_clusters: int | None = None
  normalizer: Normalizer = "max"
  floor: float = 1e-3

  def __post_init__(self) -> None:
    _rule.check_positive(l2_clip_norm=self.l2_clip_norm, floor=self.floor)
    if self.num_clusters is not None and self.num_clusters < 1:
      raise ValueError(
        f"num_clusters must be >= 1 or None, got {self.num_clusters}."
      )
    if self.normalizer not in get_args(Normalizer):
      raise ValueError(
        f"normalizer must be one of {get_args(Normalizer)}, got "
        f"{self.normalizer!r}."
      )

  def _count(self, layers: int) -> int:
    """How many clusters there are of so many layers."""
    return layers if self.num_clusters is None else self.num_clusters

  def refresh(
    self, state: LayerState, public_norms: Float[Array, " layers"]
  ) -> LayerState:
    layers = len(state.scales)
    if self._count(layers) > layers:
      raise ValueError(
        f"num_clusters={self.num_clusters}, but the parameters have {layers} "
        "layers. Lower it, or None for one a layer."
      )
    scales = self._scales(public_norms)
    total = {
      "max": jnp.max(scales),
      "sum": jnp.sum(scales),
      "rms": jnp.sqrt(jnp.mean(scales**2)),
    }[self.normalizer]
    # Sorted by radius and cut into runs of equal length.
    rank = jnp.argsort(jnp.argsort(scales))
    return LayerState(scales / total, rank * self._count(layers) // layers)

  def noise_shape(self, state: LayerState) -> Float[Array, " layers"]:
    # Every cluster has the same share of the budget, whatever its radius.
    count = self._count(len(state.scales))
    return jnp.sqrt(jnp.float32(count)) * self._radii(state)

  def weights(
    self, norms: Float[Array, "layers units"], state: LayerState
  ) -> Float[Array, "layers units"]:
    radii = self._radii(state).astype(norms.dtype)[:, None]
    shares = joint_norms(norms / radii, _same_cluster(state))
    return 1 / jnp.maximum(shares, jnp.ones_like(shares))

  def _radii(self, state: LayerState) -> Float[Array, " layers"]:
    """The radius of each layer's cluster: that of its layers together."""
    own = jnp.asarray(self.l2_clip_norm, jnp.float32) * state.scales
    return joint_norms(own[:, None], _same_cluster(state))[:, 0]


def adaptive_layerwise(
  l2_clip_norm: float,
  *,
  num_clusters: int | None = None,
  normalizer: Normalizer = "max",
  floor: float = 1e-3,
) -> AdaptiveLayerwise:
  r"""Clips each layer at a radius that follows a public batch (ALC).

  .. math:: g_{i,l} \mapsto g_{i,l} \min(1, C_l / \|g_{i,l}\|_2),
            \quad C_l = C \, e_l / \max_j e_j

  e_l is the mean norm of layer l's gradient over a public batch, at the current
  parameters (``Mechanism.refresh``); before the first one all are equal. The
  noise on layer l is proportional to C_l: in the paper's terms its standard
  deviation is c sigma_p C_l with sigma_p = sqrt(L) noise_multiplier.

  Args:
    l2_clip_norm: C > 0, the radius of the layer with the largest gradient.
    num_clusters: G; layers are sorted by radius and cut into G clusters of
      equal size, each clipped as a whole at sqrt(sum of C_l^2). None for one a
      layer. 1 is flat clipping.
    normalizer: what e_l is divided by: "max", "sum" or "rms".
    floor: least e_l as a fraction of the largest.

  Guarantees:
    Each cluster's norm is <= its radius (1 + 8 ulp). A step's privacy depends
    on the noise multiplier alone; sqrt(G) is the price, paid in noise.

  Edge cases:
    As ``per_layer``.

  Example:
    >>> rule = adaptive_layerwise(1.0)
    >>> params = {"a": {"kernel": jnp.ones(3)}, "b": {"kernel": jnp.ones(5)}}
    >>> state = rule.refresh(rule.init(params), jnp.array([3.0, 6.0]))
    >>> print(rule.weights(jnp.array([[1.0], [2.0]]), state)[:, 0])
    [0.5 0.5]

  References:
    arXiv:2307.11939.
  """
  return AdaptiveLayerwise(l2_clip_norm, num_clusters, normalizer, floor)


@_rule.rule()
class Preconditioned(_PublicScales):
  """See ``preconditioned``."""

  l2_clip_norm: float
  floor: float = 1e-3

  def __post_init__(self) -> None:
    _rule.check_positive(l2_clip_norm=self.l2_clip_norm, floor=self.floor)

  def refresh(
    self, state: LayerState, public_norms: Float[Array, " layers"]
  ) -> LayerState:
    return state._replace(scales=self._scales(public_norms))

  def noise_shape(self, state: LayerState) -> Float[Array, " layers"]:
    return jnp.asarray(self.l2_clip_norm, jnp.float32) * state.scales

  def weights(
    self, norms: Float[Array, "layers units"], state: LayerState
  ) -> Float[Array, "layers units"]:
    radii = self.noise_shape(state).astype(norms.dtype)[:, None]
    shares = joint_norms(norms / radii, _same_cluster(state))
    return 1 / jnp.maximum(shares, jnp.ones_like(shares))


def preconditioned(
  l2_clip_norm: float, *, floor: float = 1e-3
) -> Preconditioned:
  r"""Flat clipping and noise in coordinates that are scaled by layer.

  .. math:: g_i \mapsto D \, \mathrm{clip}_C(D^{-1} g_i), \quad
            D = \mathrm{diag}(e_l / \max_j e_j)

  Layerwise scales as those of ``adaptive_layerwise``, without its sqrt(L):
  there is one weight for the whole gradient.

  Args:
    l2_clip_norm: C > 0, the radius in scaled coordinates.
    floor: least e_l as a fraction of the largest.

  Guarantees:
    Per unit, the norm of the scaled gradient is <= C (1 + 8 ulp).

  Edge cases:
    As ``per_layer``. Before the first refresh it is ``flat``.

  Example:
    >>> rule = preconditioned(1.0)
    >>> params = {"a": {"kernel": jnp.ones(3)}, "b": {"kernel": jnp.ones(5)}}
    >>> state = rule.refresh(rule.init(params), jnp.array([3.0, 6.0]))
    >>> print(rule.noise_shape(state))
    [0.5 1. ]

  References:
    The multiplication factors of arXiv:2307.11939, as a preconditioner.
  """
  return Preconditioned(l2_clip_norm, floor)


def joint_norms(
  norms: Float[Array, "layers units"], together: Bool[Array, "layers layers"]
) -> Float[Array, "layers units"]:
  """For each layer, the norm of all layers that belong to it."""
  # Relative to the largest of them, or squares would overflow or underflow.
  theirs = jnp.where(together[:, :, None], norms[None], 0.0)
  largest = jnp.max(theirs, axis=1)
  largest = jnp.where(largest > 0, largest, jnp.ones_like(largest))
  squares = jnp.sum((theirs / largest[:, None]) ** 2, axis=1)
  return largest * jnp.sqrt(squares)


def _same_cluster(state: LayerState) -> Bool[Array, "layers layers"]:
  return state.cluster[:, None] == state.cluster[None, :]
