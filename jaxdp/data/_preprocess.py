"""From stored to network input, by public constants, inside the loss."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

Example = Mapping[str, Any]

# The largest value that a pixel can have, by the format: not the largest seen.
_LARGEST_PIXEL = {"digits": 16.0}


@functools.cache
def preprocess(name: str) -> Callable[[Example], dict[str, Any]]:
  r"""Returns the function that makes one stored example a network input.

  .. math:: \mathrm{image} = x / (x_{\max} / 2) - 1 \in [-1, 1]

  with :math:`x_{\max}` = 255, and 16 for ``"digits"``: constants of the file
  format. The usual per-channel mean and standard deviation are statistics of
  the training set, so using them is a release that no accountant charges; they
  are not offered. Fields that are not unsigned 8-bit are left as they are.

  Args:
    name: of the dataset, as for ``load``.

  Returns:
    A jittable function of ONE example (no batch axis; it also works on a
    batch). The same name gives the same object, so compiled code is found
    again.

  Edge cases:
    A floating-point ``image`` is taken as preprocessed and returned unchanged,
    NaN included: the clipping drops such a unit.

  Example:
    >>> import numpy as np
    >>> example = {"image": np.uint8([[0, 255]]), "label": np.int32(3)}
    >>> preprocess("mnist")(example)["image"].tolist()
    [[-1.0, 1.0]]
  """
  half = _LARGEST_PIXEL.get(name, 255.0) / 2

  def preprocess_fn(example: Example) -> dict[str, Any]:
    return {
      field: jnp.asarray(value, jnp.float32) / half - 1.0
      if jnp.result_type(value) == jnp.uint8
      else value
      for field, value in example.items()
    }

  return preprocess_fn
