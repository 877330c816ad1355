"""The public functions: where a dataset comes from, and in which form."""

import hashlib
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from jaxdp.data import _cache, _digits, _folder, _pack, _stream, _tfds

_ROWS_PER_CHUNK = 2048


def load(
  name: str,
  split: str = "train",
  *,
  data_dir: _folder.StrPath | None = None,
  cache_dir: _folder.StrPath | None = None,
) -> dict[str, np.ndarray]:
  """Loads one split of a dataset as arrays with one row per example.

  It is looked for in this order: ``"digits"`` comes with scikit-learn; a pack
  ``<name>.npz`` (or its parts) in ``data_dir``, which needs NumPy alone; the
  folder ``<name>/`` in ``data_dir`` as written by TFDS in ArrayRecord format.
  The last is decoded once, in threads, into ``cache_dir`` and memory-mapped
  from then on. TensorFlow is never imported.

  Args:
    name: of the dataset; for TFDS ``name[/config][:version]``.
    split: ``"train"`` or ``"test"``; for TFDS any split, also ``"train[:9%]"``.
    data_dir: default ``$JAXDP_DATA_DIR``, else the folder TFDS uses.
    cache_dir: default ``$JAXDP_CACHE_DIR``, else ``~/.cache/jaxdp``.

  Returns:
    Arrays with equal leading axis, as stored:

    ===================== ====================== ==========================
    feature               array                  note
    ===================== ====================== ==========================
    image of fixed shape  uint8 [n, h, w, c]     scale with ``preprocess``
    text                  int32 [n, 256]         ids of ``tokenize``
    class label, integer  int32 [n, ...]
    floating point        float32 [n, ...]
    names of records      left out               id, file_name, ...
    anything else         left out
    ===================== ====================== ==========================

  Guarantees:
    The same records give the same rows in the same order, from the cache, from
    a pack or decoded anew. A damaged cache is decoded anew. Any number of
    processes may call this at once. Cache files are readable by their owner
    only.

  Example:
    >>> digits = load("digits", "test")
    >>> digits["image"].shape, digits["image"].dtype, digits["label"][:4]
    ((360, 8, 8, 1), dtype('uint8'), array([9, 2, 1, 6], dtype=int32))
  """
  _folder.check_name(name)
  if name == "digits":
    return _digits.load_digits(split)
  folder = _folder.resolve_data_dir(data_dir)
  packed = _pack.read_pack(name, split, folder)
  if packed is not None:
    return packed
  dataset = _folder.find_dataset(name, folder)
  place = _cache_folder(_folder.resolve_cache_dir(cache_dir), dataset, split)
  arrays = _cache.read_arrays(place)
  if arrays is not None:
    return arrays
  num_rows, read_fn = _tfds.open_records(dataset, split)

  def chunks() -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, num_rows, _ROWS_PER_CHUNK):
      yield read_fn(np.arange(start, min(start + _ROWS_PER_CHUNK, num_rows)))

  return _cache.cached(place, num_rows, chunks)


def stream(
  name: str,
  split: str = "train",
  *,
  data_dir: _folder.StrPath | None = None,
) -> _stream.Stream:
  """Opens one split for reading by row number, without decoding it first.

  For data larger than memory: ``stream(...)[indices]`` holds the same rows as
  ``load(...)``. Nothing is cached.

  Args:
    name: as for ``load``.
    split: as for ``load``.
    data_dir: as for ``load``.

  Returns:
    An object with ``len`` and ``[indices]``.

  Example:
    >>> stream("digits", "test")[np.array([1, 0])]["label"]
    array([2, 9], dtype=int32)
  """
  _folder.check_name(name)
  folder = _folder.resolve_data_dir(data_dir)
  if name == "digits":
    arrays: dict[str, np.ndarray] | None = _digits.load_digits(split)
  else:
    arrays = _pack.read_pack(name, split, folder)
  if arrays is None:
    dataset = _folder.find_dataset(name, folder)
    return _stream.Stream(*_tfds.open_records(dataset, split))
  in_memory = arrays
  return _stream.Stream(
    len(next(iter(in_memory.values()))),
    lambda rows: {field: all_[rows] for field, all_ in in_memory.items()},
  )


def pack(
  names: str | Sequence[str],
  out: _folder.StrPath,
  *,
  splits: Sequence[str] = ("train", "test"),
  parts: int = 1,
  data_dir: _folder.StrPath | None = None,
  cache_dir: _folder.StrPath | None = None,
) -> list[pathlib.Path]:
  """Writes datasets as compact ``.npz`` files that ``load`` reads anywhere.

  The command line is ``python -m jaxdp.data pack NAME... --out OUT``.

  Args:
    names: of the datasets, as for ``load``.
    out: a folder, which gets ``<name>.npz``; or, for one dataset, such a file.
      ``load`` finds it by the name of the dataset.
    splits: that the pack holds.
    parts: > 1 splits it into files ``<name>-00000-of-00003.npz``, ... with as
      many rows each, for places that limit the size of a file.
    data_dir: as for ``load``.
    cache_dir: as for ``load``.

  Returns:
    The files written.
  """
  names = [names] if isinstance(names, str) else list(names)
  target = pathlib.Path(out).expanduser()
  is_file = target.suffix == ".npz"
  if parts < 1:
    raise ValueError(f"parts must be >= 1, got {parts=}.")
  if is_file and len(names) > 1:
    raise ValueError(
      f"out={str(target)!r} is one file for {len(names)} datasets; give a "
      "folder."
    )
  written = []
  for name in names:
    arrays = {
      split: load(name, split, data_dir=data_dir, cache_dir=cache_dir)
      for split in splits
    }
    file = target if is_file else target / f"{_folder.file_stem(name)}.npz"
    written += _pack.write_pack(file, name, arrays, parts)
  return written


def _cache_folder(
  cache_dir: pathlib.Path, dataset: pathlib.Path, split: str
) -> pathlib.Path:
  """Says all that the rows depend on: records, split and preprocessing."""
  key = hashlib.sha256(
    f"{_folder.fingerprint(dataset)} {split}".encode()
  ).hexdigest()[:16]
  return (
    cache_dir
    / "data"
    / f"{dataset.parent.name}-{dataset.name}"
    / f"{_folder.file_stem(split)}-v{_pack.PREPROCESSING_VERSION}-{key}"
  )
