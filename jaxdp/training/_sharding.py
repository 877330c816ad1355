"""Data parallelism: rows over the devices of a mesh, one noise draw for all.

Every device clips and sums its own rows; the sums are added across devices, and
the noise is drawn once for the total. So the result is that of one device, to
the rounding of a sum.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, PyTree

from jaxdp.aggregation import ClipInfo, ClippedSum

AXIS = "data"


def data_mesh(devices: Any = None) -> Mesh:
  """A mesh with one axis, ``data``, over all (or these) devices."""
  devices = jax.devices() if devices is None else devices
  return Mesh(np.asarray(devices), (AXIS,))


def num_shards(mesh: Mesh | None) -> int:
  """Devices along the data axis."""
  if mesh is None:
    return 1
  if AXIS not in mesh.shape:
    raise ValueError(
      f"The mesh needs an axis named {AXIS!r}, got {dict(mesh.shape)}. Make "
      "one with jaxdp.training.data_mesh()."
    )
  return int(mesh.shape[AXIS])


def padded_rows(batch_size: int, shards: int) -> int:
  """Rows of a batch, filled up so that every device has as many."""
  return -(-batch_size // shards) * shards


def lay_out(
  rows: np.ndarray, shards: int, fill: Any, axis: int = 0
) -> np.ndarray:
  """Deals an axis out to devices in turn, so that padding is shared.

  A sampler's padding stands at the end of a batch. Device d gets rows d, d + D,
  d + 2 D, ...: equal work, with the padding last on each, where microbatches
  of padding alone are skipped.
  """
  rows = np.moveaxis(rows, axis, -1)
  missing = padded_rows(rows.shape[-1], shards) - rows.shape[-1]
  widths = [(0, 0)] * (rows.ndim - 1) + [(0, missing)]
  rows = np.pad(rows, widths, constant_values=fill)
  dealt = rows.reshape(*rows.shape[:-1], -1, shards)
  dealt = np.swapaxes(dealt, -1, -2).reshape(rows.shape)
  return np.moveaxis(dealt, -1, axis)


def positions(rows: int, shards: int) -> np.ndarray:
  """For each row of a laid-out batch, where the sampler had it."""
  return lay_out(np.arange(rows, dtype=np.uint32), shards, 0)


def wait_for_all_processes(what: str) -> None:
  """Returns when every process got here; they share one file system."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(what)


def as_process_0_says(value: bool) -> bool:
  """The value of process 0, in every process."""
  if jax.process_count() == 1:
    return value
  from jax.experimental import multihost_utils

  return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def replicated(mesh: Mesh | None) -> NamedSharding | None:
  """The sharding of what every device has a copy of."""
  return None if mesh is None else NamedSharding(mesh, P())


def place(tree: PyTree, mesh: Mesh | None, spec: P | None = None) -> PyTree:
  """Host arrays onto the mesh; with several processes, each its own part.

  Every process holds the same host arrays: what a device needs is cut out here.
  """
  if mesh is None:
    return jax.device_put(tree)
  sharding = NamedSharding(mesh, spec or P())

  def put(x: Any) -> Array:
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

  return jax.tree.map(put, tree)


def sum_over_devices(
  fun: Callable[..., tuple[ClippedSum, ClipInfo]], mesh: Mesh | None
) -> Callable[..., tuple[ClippedSum, ClipInfo]]:
  """``fun(params, data, rows, mask, rule_state, keys)`` on every device's rows.

  ``rows``, ``mask`` and ``keys`` are split along their first axis; the rest is
  the same everywhere.
  """
  if mesh is None:
    return fun
  shards = num_shards(mesh)

  def local(*args: Any) -> tuple[ClippedSum, ClipInfo]:
    summed, info = fun(*args)
    return jax.lax.psum(summed, AXIS), info

  by_unit: Any = P(AXIS)
  by_group: Any = P(None, AXIS)
  info_specs = ClipInfo(by_group, by_group, by_unit, by_unit)
  sharded = jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(P(), P(), by_unit, by_unit, P(), by_unit),
    out_specs=(P(), info_specs),
    axis_names={AXIS},
    check_vma=False,
  )

  def whole(*args: Any) -> tuple[ClippedSum, ClipInfo]:
    summed, info = sharded(*args)
    units = summed.num_units * shards
    return dataclasses.replace(summed, num_units=units), info

  return whole


def split_rows(
  mesh: Mesh | None, tree: PyTree
) -> PyTree[Bool[Array, "units ..."]]:
  """Tells the compiler that the first axis is split over the devices."""
  if mesh is None:
    return tree
  sharding = NamedSharding(mesh, P(AXIS))
  return jax.tree.map(
    lambda x: jax.lax.with_sharding_constraint(x, sharding), tree
  )
