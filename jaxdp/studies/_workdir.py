"""A study's folder holds the runs of one study."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any


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
  # By way of another name, so that a crash leaves no half of a file.
  partial = workdir / f".{name}.partial"
  partial.write_text(text + "\n", "utf-8")
  partial.replace(workdir / name)


def check_new(path: pathlib.Path) -> None:
  """Refuses a file of runs that holds any, as ``--noresume`` asks for."""
  if path.exists() and path.stat().st_size:
    raise ValueError(
      f"{path} holds runs, and resume is off. Go on with resume (the default), "
      "or take another workdir."
    )
