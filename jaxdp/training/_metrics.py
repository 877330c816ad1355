"""Where numbers of a run go: JSON lines, TensorBoard and a progress bar.

What is not covered by the guarantee stands under the key ``sensitive``, and in
TensorBoard under the tag ``sensitive/``, or nowhere.
"""

import json
import pathlib
from typing import Any, Self

import tqdm

from jaxdp.training import _files


class Metrics:
  """Writes rows of metrics; continues the file of an earlier attempt."""

  def __init__(
    self,
    workdir: pathlib.Path | None,
    *,
    first_step: int,
    num_steps: int,
    progress: bool,
  ):
    self.rows: list[dict[str, Any]] = []
    self._file = None
    self._board = None
    if workdir is not None:
      path = workdir / "metrics.jsonl"
      # Rows after the checkpoint belong to steps that are made again.
      self.rows = [r for r in _read(path) if r["step"] <= first_step]
      text = "".join(json.dumps(row) + "\n" for row in self.rows)
      _files.write_atomic(path, text)
      self._file = path.open("a")
      self._board = _summary_writer(workdir / "tensorboard", first_step)
    self._bar = tqdm.tqdm(
      total=num_steps,
      initial=first_step,
      unit="step",
      disable=not progress,
      dynamic_ncols=True,
    )

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exc: object) -> None:
    self._bar.close()
    if self._file is not None:
      self._file.close()
    if self._board is not None:
      self._board.close()

  def advance(self, num_steps: int) -> None:
    """Moves the progress bar."""
    self._bar.update(num_steps)

  def show(self, **values: str) -> None:
    """Text beside the progress bar."""
    self._bar.set_postfix(values, refresh=False)

  def write(self, row: dict[str, Any]) -> None:
    """One row, with ``step`` and any of the numbers of the run."""
    row = _files.plain(row)
    self.rows.append(row)
    if self._file is not None:
      try:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
      except OSError as error:
        path = pathlib.Path(self._file.name)
        raise _files.explain_os_error(error, path) from error
    if self._board is not None:
      for name, value in _scalars(row):
        self._board.add_scalar(name, value, row["step"])


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
  """Rows of a metrics file; a last line that was cut short is left out."""
  rows = []
  for line in path.read_text().splitlines() if path.exists() else ():
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return rows


def _scalars(row: dict[str, Any], prefix: str = "") -> Any:
  for name, value in row.items():
    if isinstance(value, dict):
      yield from _scalars(value, f"{prefix}{name}/")
    elif isinstance(value, int | float) and name != "step":
      yield prefix + name, value


def _summary_writer(directory: pathlib.Path, first_step: int) -> Any:
  import tensorboardX

  return tensorboardX.SummaryWriter(
    str(directory), purge_step=first_step or None, flush_secs=10
  )
