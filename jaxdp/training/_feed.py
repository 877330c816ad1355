"""Rows of the data set for every step: on the device, or streamed."""

import collections
import concurrent.futures
import functools
import hashlib
import math
import os
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from jaxdp.sampling import Sampler
from jaxdp.training import _sharding

# Data goes to the device if it takes at most this share of its memory.
_DEVICE_SHARE = 0.25
# Streamed rows of one call, at most.
_STREAM_BYTES = 1 << 28
# Data sets are told apart by all of their rows up to this size, else by some.
_DIGEST_BYTES = 1 << 28
_DIGEST_ROWS = 64


# Steps first, then rows, which are dealt out to the devices.
_SPEC = P(None, _sharding.AXIS)


class Reader(Protocol):
  """A data set that is not in memory: ``jaxdp.data.stream`` makes one."""

  def __len__(self) -> int: ...

  def __getitem__(self, indices: np.ndarray) -> PyTree: ...


class Call(NamedTuple):
  """What several steps in one program need."""

  first_step: int
  num_steps: int
  rows: PyTree  # leaves [steps, rows, ...]: indices, or the batches themselves
  mask: Any  # bool [steps, rows, *unit_shape]


class Feed:
  """Makes the rows of calls, one call ahead of the device.

  Args:
    dataset: a tree of arrays with the examples on the first axis, or a
      ``Reader``.
    sampler: says which rows.
    mesh: where rows go.
    on_device: keep the whole data set on the device; None to decide by size.
  """

  def __init__(
    self,
    dataset: PyTree | Reader,
    sampler: Sampler,
    mesh: Mesh | None,
    on_device: bool | None,
  ):
    self._sampler = sampler
    self.mesh = mesh
    self._shards = _sharding.num_shards(mesh)
    self.dataset = dataset
    is_tree = not _is_reader(dataset)
    sampler.check(num_rows(dataset))
    if on_device is None:
      # On a CPU NumPy gathers rows faster, and beside the program.
      on_cpu = jax.default_backend() == "cpu"
      on_device = is_tree and not on_cpu and _num_bytes(dataset) <= _room()
    if on_device and not is_tree:
      raise ValueError(
        "data_on_device=True needs arrays, got a reader of "
        f"{len(dataset)} examples. Load the arrays, or leave it at 'auto'."
      )
    self.data = _sharding.place(dataset, mesh) if on_device else None

  @property
  def streams(self) -> bool:
    """Whether batches travel to the device call by call."""
    return self.data is None

  def max_steps_per_call(self) -> int:
    """How many steps' batches may travel together."""
    if not self.streams:
      return 1 << 30
    row = _num_bytes(self._example)
    rows = self._sampler.batch_size * math.prod(self._sampler.unit_shape)
    return max(1, _STREAM_BYTES // (row * rows))

  def shapes(self, num_steps: int) -> tuple[PyTree, Any]:
    """Shapes, dtypes and sharding of a call's rows and mask."""
    units = _sharding.padded_rows(self._sampler.batch_size, self._shards)
    sharding = None if self.mesh is None else NamedSharding(self.mesh, _SPEC)

    def abstract(x: Any) -> jax.ShapeDtypeStruct:
      dtype = jax.dtypes.canonicalize_dtype(x.dtype)
      shape = (num_steps, units, *self._sampler.unit_shape, *x.shape[1:])
      return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    rows = self._example if self.streams else np.zeros(1, np.int32)
    return jax.tree.map(abstract, rows), abstract(np.zeros(1, bool))

  def calls(self, plan: list[tuple[int, int]], seed: int) -> Iterator[Call]:
    """The calls of a plan of (first_step, num_steps), each made in advance."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
      ahead = collections.deque[concurrent.futures.Future[Call]]()
      for part in plan:
        ahead.append(pool.submit(self._call, *part, seed))
        if len(ahead) > 1:
          yield ahead.popleft().result()
      while ahead:
        yield ahead.popleft().result()

  def _call(self, first_step: int, num_steps: int, seed: int) -> Call:
    batch = self._sampler.sample_many(seed, first_step, num_steps)
    rows = _sharding.lay_out(batch.indices, self._shards, 0, axis=1)
    mask = batch.is_padding_example
    mask = _sharding.lay_out(mask, self._shards, True, axis=1)
    if self.streams:
      rows = self._gather(rows)
    rows, mask = _sharding.place((rows, mask), self.mesh, _SPEC)
    return Call(first_step, num_steps, rows, mask)

  @functools.cached_property
  def _example(self) -> PyTree:
    return first_row(self.dataset)

  def _gather(self, indices: np.ndarray) -> PyTree:
    """The rows of several steps; a reader is asked for one step at a time."""
    if not _is_reader(self.dataset):
      return jax.tree.map(lambda x: np.take(x, indices, axis=0), self.dataset)
    steps = [self.dataset[step.ravel()] for step in indices]
    return jax.tree.map(
      lambda *x: np.stack(x).reshape(*indices.shape, *x[0].shape[1:]), *steps
    )


def _is_reader(dataset: Any) -> bool:
  leaves = jax.tree.leaves(dataset)
  return (
    len(leaves) == 1 and leaves[0] is dataset and not hasattr(dataset, "shape")
  )


def num_rows(dataset: PyTree | Reader) -> int:
  """How many examples a data set has.

  Raises:
    ValueError: its arrays disagree.
  """
  if _is_reader(dataset):
    return len(dataset)
  shapes = jax.tree.map(np.shape, dataset)
  leaves = jax.tree.leaves(dataset)
  lengths = {np.shape(x)[:1] for x in leaves}
  if len(lengths) != 1 or () in lengths:
    raise ValueError(
      "The arrays of a data set need the same first axis (one row an example), "
      f"got shapes {shapes}."
    )
  dtypes = {str(x.dtype): x.dtype.kind for x in map(_first, leaves)}
  if wrong := [name for name, kind in dtypes.items() if kind in "OUSmM"]:
    raise ValueError(
      f"An array of the data set has dtype {wrong[0]}. All need numbers: leave "
      "the others out, or map them to integers."
    )
  return lengths.pop()[0]


def _first(x: Any) -> Any:
  """The first rows; also of what is no array, such as a list."""
  return x[:1] if hasattr(x, "dtype") else np.asarray(x[:1])


def first_row(dataset: PyTree | Reader) -> PyTree:
  """A batch of the first example alone."""
  rows = np.zeros(1, np.int64)
  if _is_reader(dataset):
    return jax.tree.map(np.asarray, dataset[rows])
  return jax.tree.map(lambda x: np.asarray(x[:1]), dataset)


def digest(dataset: PyTree | Reader) -> str:
  """Tells data sets apart: by all rows, or by some of a large one."""
  length = num_rows(dataset)
  some = np.unique(np.linspace(0, length - 1, _DIGEST_ROWS).astype(np.int64))
  if _is_reader(dataset):
    dataset = dataset[some]
  elif _num_bytes(dataset) > _DIGEST_BYTES:
    dataset = jax.tree.map(lambda x: x[some], dataset)
  sha = hashlib.sha256(str(length).encode())
  for leaf in jax.tree.leaves(dataset):
    leaf = np.ascontiguousarray(leaf)
    sha.update(f"{leaf.dtype}{leaf.shape}".encode())
    sha.update(leaf.tobytes())
  return sha.hexdigest()


def _num_bytes(tree: PyTree) -> int:
  return sum(np.asarray(x[:1]).nbytes * len(x) for x in jax.tree.leaves(tree))


def _room() -> float:
  stats = jax.local_devices()[0].memory_stats()
  if stats and "bytes_limit" in stats:
    return _DEVICE_SHARE * stats["bytes_limit"]
  pages = os.sysconf("SC_PHYS_PAGES")
  return _DEVICE_SHARE * pages * os.sysconf("SC_PAGE_SIZE")
