"""One process at a time in a directory, by a lock of the operating system.

The system lets go of it when a process ends, however it ends: what is left of a
killed process is an empty file ``.lock``, which locks nobody out. Not so
where a file system has no ``flock``: ``filelock`` warns of it, and the file is
the lock, to be deleted by hand if it stays behind.
"""

import contextlib
import errno
import pathlib
from collections.abc import Iterator

import filelock


@contextlib.contextmanager
def only_process(workdir: pathlib.Path) -> Iterator[None]:
  """Holds a directory, which must exist, for as long as the context is open.

  Raises:
    BlockingIOError: another process holds it.
  """
  lock = filelock.FileLock(workdir / ".lock", timeout=0, mode=0o600)
  try:
    lock.acquire()
  except filelock.Timeout:
    raise BlockingIOError(
      errno.EWOULDBLOCK,
      f"Another process is at work in {workdir}. Wait for it, or end it; then "
      "the same command goes on where it stopped. Or choose another workdir.",
    ) from None
  try:
    yield
  finally:
    lock.release()
