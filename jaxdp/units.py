"""Units that are not one example: views, the records of a user, buckets.

The leading axis of a batch says what is clipped; a loss of one unit says how it
is made of examples. So these are losses, and the engine knows nothing of them.
The gradient of a mean is the mean of gradients: all of it happens before the
clip, inside one unit, and costs no privacy.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from jaxdp import per_example


class Records(NamedTuple):
  """The records of one unit; a batch has one more leading axis.

  Attributes:
    examples: leaves ``[capacity, ...]``.
    is_padding_example: bool ``[capacity]``, True where there is no record.
  """

  examples: PyTree
  is_padding_example: Bool[Array, " capacity"] | Bool[np.ndarray, " capacity"]


def mean_over_views(
  loss_fn: Callable, augment_fn: Callable, num_views: int
) -> Callable:
  """The mean loss of K augmented views of one example.

  Args:
    loss_fn: ``loss_fn(params, example) -> scalar``.
    augment_fn: ``augment_fn(key, example) -> example``, of the same shapes, for
      instance ``random_crop_and_flip``.
    num_views: K >= 1.

  Returns:
    ``fn(params, example, key)``; pass it on with ``has_key=True``.

  Guarantees:
    One example is still one unit (c = 1): same noise, K times the computing.
    The randomness of the views is private and costs nothing.

  Example:
    >>> shift = lambda key, x: x + jax.random.normal(key)
    >>> fn = mean_over_views(lambda w, x: w * x, shift, num_views=1000)
    >>> bool(abs(fn(1.0, 3.0, jax.random.key(0)) - 3) < 0.2)
    True

  References:
    De et al. 2022, arXiv:2204.13650, section 3.3 (augmentation multiplicity).
  """
  if num_views < 1:
    raise ValueError(f"num_views must be >= 1, got {num_views}.")

  def fn(params: PyTree, example: PyTree, key: Array) -> Float[Array, ""]:
    keys = jax.random.split(key, num_views)
    views = jax.vmap(augment_fn, (0, None))(keys, example)
    return jnp.mean(jax.vmap(loss_fn, (None, 0))(params, views))

  return fn


def mean_over_records(loss_fn: Callable) -> Callable:
  """The mean loss of one unit's records: a user's examples, or a bucket.

  Args:
    loss_fn: ``loss_fn(params, example) -> scalar``, or with a key.

  Returns:
    ``fn(params, records)``, or with a key, for ``Records``: the mean over those
    that are there; 0 if there are none.

  Guarantees:
    What stands in padding changes no bit, if it is finite (``fit`` puts zeros
    there; a unit that holds a NaN anywhere is dropped). For users, rows of the
    data set are ``Records``, the sampler samples users, and "one example" in a
    statement is one row: a whole user.

  Example:
    >>> fn = mean_over_records(lambda w, x: w * x)
    >>> xs, empty = jnp.array([1.0, 5.0, 9.0]), jnp.array([False, False, True])
    >>> print(fn(2.0, Records(xs, empty)))
    6.0

  References:
    McMahan et al. 2018, arXiv:1710.06963 (users); van Dijk et al. 2022,
    arXiv:2212.05796 (batch clipping).
  """

  def fn(params: PyTree, records: Any, *key: Array) -> Float[Array, ""]:
    examples, padding = records
    examples = jax.tree.map(
      lambda x: per_example.zero_rows(padding, x), examples
    )
    keys = [jax.random.split(k, len(padding)) for k in key]
    axes = (None, 0, *(0 for _ in keys))
    losses = jax.vmap(loss_fn, axes)(params, examples, *keys)
    losses = jnp.where(padding, jnp.zeros_like(losses), losses)
    count = jnp.maximum(jnp.sum(~padding), 1)
    return jnp.sum(losses) / count.astype(losses.dtype)

  return fn


def random_crop_and_flip(
  key: Array, example: dict[str, Any], *, padding: int = 4, name: str = "image"
) -> dict[str, Any]:
  """The usual augmentation of small photographs, of one example.

  Args:
    key: of this view.
    example: a dict with an image ``[height, width, channels]``.
    padding: pixels by which the image is mirrored at each side before a crop of
      its own size; smaller than its sides.
    name: of the image in the example.

  Returns:
    The example with its image cropped anew and, half of the time, mirrored.

  References:
    He et al. 2016, arXiv:1512.03385, section 4.2; reflection as in De et al.
    2022, arXiv:2204.13650.
  """
  image = jnp.asarray(example[name])
  where, mirror = jax.random.split(key)
  widths = ((padding, padding), (padding, padding), (0, 0))
  padded = jnp.pad(image, widths, mode="reflect")
  corner = jax.random.randint(where, (2,), 0, 2 * padding + 1)
  image = jax.lax.dynamic_slice(padded, (*corner, 0), image.shape)
  image = jnp.where(jax.random.bernoulli(mirror), image[:, ::-1], image)
  return {**example, name: image}
