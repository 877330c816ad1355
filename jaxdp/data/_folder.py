"""Where a dataset is on disk: resolved without importing any reader."""

import hashlib
import json
import os
import pathlib
import re
from typing import Any

_INFO = "dataset_info.json"

StrPath = str | os.PathLike[str]


def resolve_data_dir(data_dir: StrPath | None) -> pathlib.Path:
  """The argument, else JAXDP_DATA_DIR, else the default folder of TFDS."""
  folder = (
    data_dir
    or os.environ.get("JAXDP_DATA_DIR")
    or os.environ.get("TFDS_DATA_DIR")
    or "~/tensorflow_datasets"
  )
  return pathlib.Path(folder).expanduser().absolute()


def resolve_cache_dir(cache_dir: StrPath | None) -> pathlib.Path:
  """The argument, else JAXDP_CACHE_DIR, else ``~/.cache/jaxdp``."""
  folder = cache_dir or os.environ.get("JAXDP_CACHE_DIR") or "~/.cache/jaxdp"
  return pathlib.Path(folder).expanduser().absolute()


def check_name(name: Any) -> None:
  """Raises for what is no name of a dataset, such as a path out of a folder."""
  if not isinstance(name, str) or not re.fullmatch(r"\w[\w/.:+-]*", name) or (
    ".." in name
  ):  # fmt: skip
    raise ValueError(
      "The name of a dataset must be as TFDS writes it, such as 'mnist' or "
      f"'glue/sst2:2.0.0', got {name!r}."
    )


def file_stem(name: str) -> str:
  """The name of a dataset as a part of file names: ``glue/sst2`` has none."""
  return re.sub(r"[^A-Za-z0-9._+-]+", "-", name)


def find_dataset(name: str, data_dir: pathlib.Path) -> pathlib.Path:
  """The newest prepared version of ``name[/config][:version]``.

  Returns:
    The folder that holds ``dataset_info.json``.
  """
  path, _, version = name.partition(":")
  root = data_dir / path
  found = [info.parent for info in root.glob(f"*/{_INFO}")]
  found += [info.parent for info in root.glob(f"*/*/{_INFO}")]
  if version:
    found = [folder for folder in found if folder.name == version]
  if not found:
    raise FileNotFoundError(_not_found(name, data_dir))
  configs = sorted({folder.parent for folder in found})
  if len(configs) > 1:
    choices = [str(config.relative_to(data_dir)) for config in configs]
    raise ValueError(
      f"dataset {name!r} is there in several configurations; name one of "
      f"{', '.join(map(repr, choices))}."
    )
  newest = max(found, key=lambda folder: _version_key(folder.name))
  try:
    info = json.loads((newest / _INFO).read_text())
  except ValueError as error:
    raise ValueError(
      f"{newest / _INFO} is damaged ({error}). Copy the folder again, or "
      f"prepare it again:\n{_how_to_prepare(path, data_dir)}"
    ) from None
  file_format = info.get("fileFormat")
  if file_format != "array_record":
    raise ValueError(
      f"dataset {name!r} in {newest} is stored as {file_format}, which has no "
      f"random access. Prepare it again:\n{_how_to_prepare(path, data_dir)}"
    )
  return newest


def fingerprint(folder: pathlib.Path) -> str:
  """Identifies the content of a dataset folder by its info and its shards.

  Two folders may hold one version in different orders, so name and version do
  not identify the rows.
  """
  digest = hashlib.sha256((folder / _INFO).read_bytes())
  for file in sorted(folder.iterdir()):
    digest.update(f"{file.name}:{file.stat().st_size}\n".encode())
  return digest.hexdigest()[:16]


def _version_key(version: str) -> tuple[int, ...]:
  return tuple(int(part) for part in re.findall(r"\d+", version))


def _how_to_prepare(name: str, data_dir: pathlib.Path) -> str:
  return (
    "  pip install tensorflow 'jaxdp[data]'   # TensorFlow for this step only\n"
    '  python -c "import tensorflow_datasets as tfds; '
    f"tfds.builder('{name}', data_dir='{data_dir}', "
    "file_format='array_record').download_and_prepare()\""
  )


def _not_found(name: str, data_dir: pathlib.Path) -> str:
  there: set[str] = set()
  if data_dir.is_dir():
    for entry in data_dir.iterdir():
      if entry.is_dir() and not entry.name.startswith("."):
        there.add(entry.name)
      elif entry.suffix == ".npz":
        there.add(re.sub(r"-\d{5}-of-\d{5}$", "", entry.stem))
  path = name.partition(":")[0]
  return (
    f"dataset {name!r} is not in data_dir={str(data_dir)!r} (which "
    + (f"holds {', '.join(sorted(there))}" if there else "is empty or absent")
    + "). Pass data_dir=, or set JAXDP_DATA_DIR, to the folder that has "
    f"{path}/ as written by TFDS or a pack {file_stem(path)}.npz made by "
    "`python -m jaxdp.data pack`; or get it once, with network:\n"
    f"{_how_to_prepare(path, data_dir)}\n"
    "Dataset 'digits' needs no download."
  )
