"""Records of ``tfds.data_source`` as NumPy arrays, without TensorFlow."""

import concurrent.futures
import contextlib
import functools
import io
import logging
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxdp.data import _text

# What a record is called is no feature, and may identify a person.
_IDENTIFIERS = frozenset({"id", "image_id", "file_name", "filename"})
_FORMATS = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"RIFF": "WEBP"}
_MIN_ROWS_PER_THREAD = 64

ReadFn = Callable[[np.ndarray], dict[str, np.ndarray]]
Decoder = Callable[[list[Any]], np.ndarray]


def open_records(folder: pathlib.Path, split: str) -> tuple[int, ReadFn]:
  """Opens one split of a prepared dataset.

  Args:
    folder: holds ``dataset_info.json``, in ArrayRecord format.
    split: as in TFDS, also ``"train[:10%]"``.

  Returns:
    The number of records, and a function from row numbers ``int [rows]`` to
    one array ``[rows, ...]`` per field.
  """
  try:
    import array_record.python.array_record_data_source  # noqa: F401
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise ImportError(
      f"reading {folder} needs tensorflow-datasets and array-record "
      f"({error}). Run: pip install 'jaxdp[data]'; or make a pack on a machine "
      "that has them: python -m jaxdp.data pack"
    ) from error
  builder = tfds.builder_from_directory(folder)
  base_split = split.partition("[")[0]
  if not {*base_split.split("+")} <= {*builder.info.splits, "all"}:
    raise ValueError(
      f"dataset {builder.info.name!r} has the splits "
      f"{', '.join(map(repr, sorted(builder.info.splits)))}, got {split=}."
    )
  decoders = _decoders(builder.info.name, builder.info.features, tfds.features)
  images = [
    field
    for field in decoders
    if isinstance(builder.info.features[field], tfds.features.Image)
  ]
  skip = {field: tfds.decode.SkipDecoding() for field in images}
  source = builder.as_data_source(split=split, decoders=skip)
  pool = concurrent.futures.ThreadPoolExecutor(
    min(16, os.cpu_count() or 1), thread_name_prefix="jaxdp-read"
  )

  def read_some(rows: np.ndarray) -> dict[str, np.ndarray]:
    records = source.__getitems__(rows.tolist())
    return {
      field: decode([record[field] for record in records])
      for field, decode in decoders.items()
    }

  def read_fn(rows: np.ndarray) -> dict[str, np.ndarray]:
    num_threads = max(1, len(rows) // _MIN_ROWS_PER_THREAD)
    parts = np.array_split(rows, min(num_threads, pool._max_workers))
    with _without_group_size_error():
      read = list(pool.map(read_some, parts))
    return {
      field: np.concatenate([part[field] for part in read])
      for field in decoders
    }

  return len(source), read_fn


def _decoders(name: str, features: Any, types: Any) -> dict[str, Decoder]:
  """One decoder per field that has a fixed shape; the others are left out."""
  decoders: dict[str, Decoder] = {}
  for field, feature in features.items():
    if field in _IDENTIFIERS:
      continue
    if isinstance(feature, types.Image):
      if None in feature.shape or feature.np_dtype != np.uint8:
        raise ValueError(
          f"dataset {name!r} has images of shape {feature.shape} and type "
          f"{np.dtype(feature.np_dtype)} in field {field!r}; they must be "
          "uint8 of one size to be stacked. Prepare a resized copy."
        )
      decoders[field] = functools.partial(_decode_images, feature)
    elif isinstance(feature, types.Text):
      decoders[field] = _text.tokenize
    elif isinstance(feature, types.Tensor) and None not in feature.shape:
      dtype = np.dtype(feature.np_dtype)
      if dtype.kind in "biuf":
        narrow = {"i": np.dtype(np.int32), "f": np.dtype(np.float32)}
        decoders[field] = functools.partial(
          np.asarray, dtype=narrow.get(dtype.kind, dtype)
        )
  if not decoders:
    raise ValueError(
      f"dataset {name!r} has no image, text or number of fixed shape: "
      f"{features}. Read it with tfds.data_source and pass your own arrays."
    )
  return decoders


def _decode_images(feature: Any, encoded: list[bytes]) -> np.ndarray:
  from PIL import Image

  images = np.empty((len(encoded), *feature.shape), np.uint8)
  for image, data in zip(images, encoded, strict=True):
    # Naming the format spares Pillow from trying every one: twice the speed
    # on small images.
    image_format = "PPM" if data[:1] == b"P" else _FORMATS.get(data[:3])
    image_format = image_format or _FORMATS.get(data[:4])
    if image_format is not None:
      with Image.open(io.BytesIO(data), formats=[image_format]) as opened:
        if opened.mode in ("L", "RGB"):
          image[...] = np.asarray(opened).reshape(feature.shape)
          continue
    image[...] = feature.decode_example_np(data)
  return images


@contextlib.contextmanager
def _without_group_size_error() -> Iterator[None]:
  """Drops one harmless line that array_record logs as an error.

  It asks for group size 1, which costs several times the space on small
  records, for the sake of random access that a decoded cache does not need.
  """
  logger = logging.getLogger("absl")

  def is_other(record: logging.LogRecord) -> bool:
    return "Grain requires group size" not in record.getMessage()

  # A filter is removed by identity, so concurrent reads do not meet here.
  logger.addFilter(is_other)
  try:
    yield
  finally:
    logger.removeFilter(is_other)
