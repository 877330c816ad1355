"""A study's folder holds the runs of one study."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from jaxdp import _lock
from jaxdp.training import _files


@contextlib.contextmanager
def alone(workdir: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """The folder, which is made, and held against other processes."""
  path = pathlib.Path(workdir)
  path.mkdir(parents=True, exist_ok=True)
  with _lock.only_process(path):
    yield path


def check(workdir: pathlib.Path, name: str, shared: Mapping[str, Any]) -> None:
  """Refuses to mix runs of different studies.

  Args:
    workdir: of the study.
    name: of the file that says which it is.
    shared: what every run depends on and its line in the results does not say.
  """
  path = workdir / name
  if not path.exists():
    return
  before = json.loads(path.read_text("utf-8"))
  now = json.loads(json.dumps(shared))
  changed = [
    f"{key} was {before.get(key)} and is {now.get(key)}"
    for key in sorted({*before, *now})
    if before.get(key) != now.get(key)
  ]
  if changed:
    raise ValueError(
      f"{workdir} holds runs of another design: {'; '.join(changed)}. Take "
      "another workdir, or the config of before."
    )


def claim(workdir: pathlib.Path, name: str, shared: Mapping[str, Any]) -> None:
  """Makes the folder that of this study, or raises as ``check`` does."""
  workdir.mkdir(parents=True, exist_ok=True)
  check(workdir, name, shared)
  text = json.dumps(shared, indent=1, ensure_ascii=False)
  _files.write_atomic(workdir / name, text + "\n")


def check_new(path: pathlib.Path) -> None:
  """Refuses a file of runs that holds any, as ``--noresume`` asks for."""
  if path.exists() and path.stat().st_size:
    raise ValueError(
      f"{path} holds runs, and resume is off. Go on with resume (the default), "
      "or take another workdir."
    )
