"""Where numbers of a run go: JSON lines, TensorBoard and a progress bar.

What is not covered by the guarantee stands under the key ``sensitive``, and in
TensorBoard under the tag ``sensitive/``, or nowhere.
"""

import contextlib
import hashlib
import json
import logging
import pathlib
import time
from collections.abc import Iterator
from typing import Any, Self

import tqdm

from jaxdp.training import _files

_LOG = logging.getLogger("jaxdp")

NO_ROWS = hashlib.sha256().hexdigest()


class Metrics:
  """Writes rows of metrics; continues the file of an earlier attempt.

  Every row is on its way to the disk when ``write`` returns, so that a crash
  costs none and a full disk raises there.
  """

  def __init__(
    self,
    workdir: pathlib.Path | None,
    *,
    first_step: int,
    num_steps: int,
    progress: bool,
    digest: str | None = None,
  ):
    self.rows: list[dict[str, Any]] = []
    self._sha = hashlib.sha256()
    self._path = None
    self._board = None
    if workdir is not None:
      self._path = workdir / "metrics.jsonl"
      # Rows after the checkpoint belong to steps that are made again.
      self.rows = [r for r in _read(self._path) if r["step"] <= first_step]
      text = "".join(json.dumps(row) + "\n" for row in self.rows)
      self._sha.update(text.encode())
      self._check(self._path, first_step, digest)
      _files.write_atomic(self._path, text)
    if workdir is not None and first_step < num_steps:
      self._board = _Board(workdir / "tensorboard", first_step)
    self._bar = tqdm.tqdm(
      total=num_steps,
      initial=first_step,
      unit=" steps",
      disable=not progress or first_step == num_steps,
      dynamic_ncols=True,
    )

  def __enter__(self) -> Self:
    return self

  def __exit__(self, kind: object, *_: object) -> None:
    self._bar.close()
    if self._board is not None:
      # A full disk was reported already, and would be once more.
      with contextlib.suppress(*([OSError] if kind else [])):
        self._board.close()

  @property
  def digest(self) -> str:
    """Of all rows so far, which a checkpoint keeps."""
    return self._sha.hexdigest()

  def _check(self, path: pathlib.Path, step: int, digest: str | None) -> None:
    """Refuses rows other than those that the checkpoint was written with."""
    if digest in (None, self.digest):
      return
    if path.exists():
      raise ValueError(
        f"{path} is damaged: its rows up to step {step} are not those that "
        "were written. Bring it back, or delete it: the run then goes on "
        "without these rows."
      )
    _LOG.warning(
      "%s is missing: the run goes on without its rows up to step %d.",
      path,
      step,
    )

  def advance(self, num_steps: int) -> None:
    """Moves the progress bar."""
    self._bar.update(num_steps)

  def write(self, row: dict[str, Any]) -> None:
    """One row, with ``step`` and any of the numbers of the run."""
    row = _files.plain(row)
    self.rows.append(row)
    self._bar.set_postfix_str(bar_text(row), refresh=False)
    if self._path is not None:
      text = json.dumps(row) + "\n"
      self._sha.update(text.encode())
      _files.append(self._path, text)
    if self._board is not None:
      self._board.write(row)


def bar_text(row: dict[str, Any]) -> str:
  """What stands beside the progress bar: epsilon, accuracy and speed.

  >>> bar_text({"step": 10, "epsilon": 0.6, "examples_per_second": 14651.0})
  'ε=0.600, 14.7k ex/s'
  """
  parts = []
  if row.get("epsilon") is not None:
    parts.append(f"ε={row['epsilon']:#.3g}")
  if row.get("test_accuracy") is not None:
    parts.append(f"accuracy={row['test_accuracy']:.3f}")
  if row.get("examples_per_second") is not None:
    rate = tqdm.tqdm.format_sizeof(row["examples_per_second"])
    parts.append(f"{rate} ex/s")
  return ", ".join(parts)


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
  """Rows of a metrics file, up to one that was cut short or is damaged."""
  rows = []
  for line in _files.read(path).splitlines():
    try:
      row = json.loads(line)
    except ValueError:
      break
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
      break
    rows.append(row)
  return rows


def _scalars(
  row: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, float]]:
  for name, value in row.items():
    if isinstance(value, dict):
      yield from _scalars(value, f"{prefix}{name}/")
    elif isinstance(value, list):
      for i, x in enumerate(value):
        yield from _scalars({str(i): x}, f"{prefix}{name}/")
    elif isinstance(value, int | float) and name != "step":
      yield prefix + name, value


class _Board:
  """An event file of TensorBoard, written in this thread.

  Not ``tensorboardX.SummaryWriter``: its thread dies of a full disk, and the
  program then waits for it for ever.
  """

  def __init__(self, directory: pathlib.Path, first_step: int):
    from tensorboardX import event_file_writer, summary
    from tensorboardX.proto import event_pb2

    self._scalar, self._event = summary.scalar, event_pb2.Event
    self._path = directory
    with _files.explained_disk_errors(self._path):
      _files.make_directory(directory)
      self._writer = event_file_writer.EventsWriter(
        str(directory / "events"), f".{time.time_ns()}"
      )
      # Hides what an earlier attempt wrote of steps that are made again.
      start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._writer.write_event(
        self._event(step=first_step + 1, session_log=start)
      )
      self._writer.flush()
      _files.owner_only(directory)

  def write(self, row: dict[str, Any]) -> None:
    now = time.time()
    with _files.explained_disk_errors(self._path):
      for name, value in _scalars(row):
        summary = self._scalar(name, value)
        self._writer.write_event(
          self._event(wall_time=now, step=row["step"], summary=summary)
        )
      self._writer.flush()

  def close(self) -> None:
    with _files.explained_disk_errors(self._path):
      self._writer.close()
