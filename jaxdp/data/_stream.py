"""Reading by row number: for data that does not fit into memory."""

from collections.abc import Callable, Mapping

import numpy as np


class Stream:
  """A dataset whose rows are read when they are asked for.

  ``len(stream)`` is the number of examples, and ``stream[indices]`` a dict of
  arrays ``[len(indices), ...]``, as a sampler's ``Batch.indices`` asks for.

  Example:
    >>> stream = Stream(3, lambda rows: {"x": 10 * rows})
    >>> len(stream), stream[np.array([2, 0, 2])]["x"].tolist()
    (3, [20, 0, 20])
  """

  def __init__(
    self,
    num_examples: int,
    read_fn: Callable[[np.ndarray], Mapping[str, np.ndarray]],
  ) -> None:
    """Wraps ``read_fn``, which gets row numbers ``int [rows]`` in range."""
    self._num_examples = num_examples
    self._read_fn = read_fn

  def __len__(self) -> int:
    return self._num_examples

  def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    rows = np.asarray(indices)
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
      raise TypeError(
        "a stream is indexed by a one-dimensional array of row numbers, got "
        f"an array of shape {rows.shape} and type {rows.dtype}. For one row: "
        "stream[np.array([row])]"
      )
    if rows.size and (rows.min() < 0 or rows.max() >= self._num_examples):
      raise IndexError(
        f"row numbers must be in [0, {self._num_examples}), got values from "
        f"{rows.min()} to {rows.max()}."
      )
    return dict(self._read_fn(rows))
