"""One compact file per dataset, for machines that cannot read TFDS.

A pack is an ``.npz`` with the arrays ``train/image``, ``train/label``, ... in
the smallest unsigned type that holds them, and a ``meta`` string. It may be
split into parts ``<name>-00000-of-00003.npz``, each with a share of the rows.
"""

import json
import os
import pathlib
import re
import time
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxdp.data import _folder

# Raised when what ``load`` returns for the same records changes: it is part of
# the cache's key and is checked in packs.
PREPROCESSING_VERSION = 1

_UNSIGNED = (np.uint8, np.uint16, np.uint32)


def write_pack(
  file: pathlib.Path,
  name: str,
  splits: dict[str, dict[str, np.ndarray]],
  parts: int,
) -> list[pathlib.Path]:
  """Writes ``{split: {field: rows}}``; see ``pack``."""
  paths = [file]
  if parts > 1:
    paths = [
      file.with_name(f"{file.stem}-{part:05}-of-{parts:05}.npz")
      for part in range(parts)
    ]
  for part, path in enumerate(paths):
    arrays = {}
    dtypes = {}
    for split, fields in splits.items():
      for field, rows in fields.items():
        share = np.array_split(np.asarray(rows), parts)[part]
        arrays[f"{split}/{field}"] = _compact(rows, share)
        dtypes[f"{split}/{field}"] = rows.dtype.name
    meta = {
      "name": name,
      "preprocessing": PREPROCESSING_VERSION,
      "part": part,
      "parts": parts,
      "dtypes": dtypes,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(path, {"meta": np.array(json.dumps(meta)), **arrays})
  return paths


def read_pack(
  name: str, split: str, data_dir: pathlib.Path
) -> dict[str, np.ndarray] | None:
  """The split of a pack in ``data_dir``; None if there is no pack."""
  paths = _find(_folder.file_stem(name), data_dir)
  if not paths:
    return None
  shares = [_read_part(path, name, split, len(paths)) for path in paths]
  return {
    field: np.concatenate([share[field] for share in shares])
    for field in shares[0]
  }


def _find(stem: str, data_dir: pathlib.Path) -> Sequence[pathlib.Path]:
  whole = data_dir / f"{stem}.npz"
  if whole.is_file():
    return [whole]
  pattern = re.compile(re.escape(stem) + r"-(\d{5})-of-(\d{5})\.npz")
  found = {}
  if data_dir.is_dir():
    for path in sorted(data_dir.iterdir()):
      if match := pattern.fullmatch(path.name):
        found[int(match[1]), int(match[2])] = path
  if not found:
    return []
  counts = {parts for _, parts in found}
  missing = sorted(
    {(part, max(counts)) for part in range(max(counts))} - {*found}
  )
  if missing or len(counts) > 1:
    raise FileNotFoundError(
      f"the pack {stem!r} in {data_dir} is not whole: there are "
      f"{', '.join(path.name for path in found.values())}. Copy all parts of "
      "one pack there and remove the parts of others."
    )
  return [found[part, parts] for part, parts in sorted(found)]


def _read_part(
  path: pathlib.Path, name: str, split: str, parts: int
) -> dict[str, np.ndarray]:
  try:
    with path.open("rb") as stream:
      if not zipfile.is_zipfile(stream):
        raise zipfile.BadZipFile("not a zip file, or cut off")
    with np.load(path, allow_pickle=False) as file:
      meta = json.loads(str(file["meta"]))
      if meta["preprocessing"] != PREPROCESSING_VERSION:
        raise ValueError(
          f"the pack {path} was made by another version of jaxdp "
          f"(preprocessing {meta['preprocessing']}, here "
          f"{PREPROCESSING_VERSION}). Make it again: "
          f"python -m jaxdp.data pack {name}"
        )
      dtypes = meta["dtypes"]
      splits = sorted({key.partition("/")[0] for key in dtypes})
      if split not in splits:
        raise ValueError(
          f"the pack {path} has the splits {splits}, got {split=}."
        )
      return {
        key.partition("/")[2]: _read_array(file, key).astype(dtype, copy=False)
        for key, dtype in dtypes.items()
        if key.startswith(f"{split}/")
      }
  except (zipfile.BadZipFile, EOFError, KeyError, OSError) as error:
    raise OSError(
      f"the pack {path} is damaged ({error}). Copy it again, or make it again: "
      f"python -m jaxdp.data pack {name}"
    ) from error


def _read_array(file: Any, key: str) -> np.ndarray:
  try:
    array: np.ndarray = file[key]
  except ValueError as error:  # pickled objects, which are never loaded
    raise EOFError(str(error)) from None
  return array


def _compact(rows: np.ndarray, share: np.ndarray) -> np.ndarray:
  """The smallest unsigned type for whole numbers; others as they are."""
  if rows.dtype.kind not in "iu" or not rows.size or rows.min() < 0:
    return share
  largest = rows.max()
  for dtype in _UNSIGNED:
    if largest <= np.iinfo(dtype).max:
      return share.astype(dtype)
  return share


def _save(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  # Not a file of tempfile's: a pack is there to be read by others.
  temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.time_ns()}")
  try:
    with temporary.open("xb") as stream:
      np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)
