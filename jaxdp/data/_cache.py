"""Arrays on disk: written once, whole or not at all, and memory-mapped after.

A cached dataset is a folder with one ``.npy`` file per field and a manifest
with sizes and checksums. It is built beside its place and renamed into it, so
that several processes can build it at once: the first to finish wins, and all
return the same arrays. No lock, since locks do not hold on network disks.
"""

import contextlib
import errno
import json
import logging
import os
import pathlib
import shutil
import tempfile
import time
import urllib.parse
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

Arrays = dict[str, np.ndarray]

_MANIFEST = "manifest.json"
_BUILDING = ".building-"
_ABANDONED_AFTER_S = 7 * 24 * 3600.0
_BLOCK = 2**20
_BLOCKS = 256  # A file of up to 256 MiB is checked whole, in 0.2 s.


def cached(
  folder: pathlib.Path,
  num_rows: int,
  chunks: Callable[[], Iterable[Mapping[str, np.ndarray]]],
) -> Arrays:
  """Returns the arrays of ``folder``, building them if they are not there.

  Args:
    folder: place of this dataset; its path says everything the content
      depends on.
    num_rows: rows over all chunks.
    chunks: makes the rows, in order, as mappings from field to array.

  Returns:
    Read-only memory maps ``[num_rows, ...]``, one per field.

  Guarantees:
    A folder with a missing, truncated or altered file is built again.
    A failure while building leaves nothing behind, and the old folder as it
    was.
  """
  arrays = read_arrays(folder)
  if arrays is not None:
    return arrays
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder.parent)
    with _temporary_beside(folder) as temporary:
      _write_arrays(temporary, num_rows, chunks())
      _publish(temporary, folder)
  except OSError as error:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
      raise OSError(
        error.errno,
        f"the array cache cannot be written ({os.strerror(error.errno)}). "
        "Free some space, or pass cache_dir= (or set JAXDP_CACHE_DIR) to a "
        "folder that has it",
        str(folder),
      ) from error
    raise
  for _ in range(10):  # Another process may just be replacing it.
    arrays = read_arrays(folder)
    if arrays is not None:
      return arrays
    time.sleep(0.1)
  raise OSError(
    errno.EIO,
    "the array cache does not read back as it was written; the disk may be "
    "failing. Pass cache_dir= to a folder on another disk",
    str(folder),
  )


def read_arrays(folder: pathlib.Path) -> Arrays | None:
  """The arrays of a folder; None if it is absent or (logged) damaged."""
  if not folder.is_dir():
    return None
  try:
    manifest = json.loads((folder / _MANIFEST).read_text())
    arrays = {}
    for field, checks in manifest.items():
      file = folder / _file_name(field)
      if _checks(file) != checks:
        raise ValueError(f"{file.name} is not as it was written")
      arrays[field] = np.load(file, mmap_mode="r", allow_pickle=False)
    return arrays
  except (OSError, ValueError, AttributeError) as error:
    logging.getLogger(__name__).warning(
      "The array cache %s is damaged (%s); building it again.", folder, error
    )
    return None


def _file_name(field: str) -> str:
  return urllib.parse.quote(field, safe="") + ".npy"


def _checks(file: pathlib.Path) -> dict[str, int]:
  """Size, and a checksum over evenly spaced blocks that end with the last."""
  size = file.stat().st_size
  total = -(-size // _BLOCK)
  blocks = {
    int(block)
    for block in np.linspace(0, total - 1, min(total, _BLOCKS)).round()
  }
  checksum = 0
  with file.open("rb") as stream:
    for block in sorted(blocks):
      stream.seek(block * _BLOCK)
      checksum = zlib.crc32(stream.read(_BLOCK), checksum)
  return {"bytes": size, "crc32": checksum}


def _write_arrays(
  folder: pathlib.Path,
  num_rows: int,
  chunks: Iterable[Mapping[str, np.ndarray]],
) -> None:
  """Appends chunks to one file per field: no dataset is held in memory."""
  written = 0
  fields: list[str] = []
  with contextlib.ExitStack() as stack:
    streams = {}
    # Written, not memory-mapped: a full disk is then an error, not a SIGBUS.
    for chunk in chunks:
      for field, rows in chunk.items():
        if field not in streams:
          stream = (folder / _file_name(field)).open("wb")
          streams[field] = stack.enter_context(stream)
          header = np.lib.format.header_data_from_array_1_0(rows[:0])
          header["shape"] = (num_rows, *rows.shape[1:])
          np.lib.format.write_array_header_1_0(stream, header)
        streams[field].write(np.ascontiguousarray(rows).data)
      fields = list(chunk)
      written += len(chunk[fields[0]])
  if written != num_rows:
    raise ValueError(f"expected {num_rows} rows to cache, got {written}.")
  manifest = {field: _checks(folder / _file_name(field)) for field in fields}
  (folder / _MANIFEST).write_text(json.dumps(manifest))


@contextlib.contextmanager
def _temporary_beside(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  # Readable by its owner only, as mkdtemp makes it: the data may be sensitive.
  temporary = tempfile.mkdtemp(prefix=_BUILDING, dir=folder.parent)
  try:
    yield pathlib.Path(temporary)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def _remove_abandoned(parent: pathlib.Path) -> None:
  """Removes what processes left that were killed while building."""
  for folder in parent.glob(_BUILDING + "*"):
    with contextlib.suppress(FileNotFoundError):
      if time.time() - folder.stat().st_mtime > _ABANDONED_AFTER_S:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(temporary: pathlib.Path, folder: pathlib.Path) -> None:
  """Renames into place, unless another process has put a good one there."""
  while True:
    try:
      temporary.rename(folder)
      return
    except OSError as error:
      if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
        raise
    if read_arrays(folder) is not None:
      return
    # Renaming onto an empty folder replaces it. Gone already: try again.
    gone = contextlib.suppress(FileNotFoundError)
    with _temporary_beside(folder) as damaged, gone:
      folder.rename(damaged)
