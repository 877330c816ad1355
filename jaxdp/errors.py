"""Refusals: errors that say what was given, what is needed and what to do.

A *refusal* is an exception that a ``raise`` statement of jaxdp, of a script or
of a config made: bad input, which the message explains. Anything else (an
operation that failed, an exception from inside JAX or NumPy) is a bug, ours or
the caller's, and needs its traceback. ``run`` is ``absl.app.run`` for scripts:
a refusal is one message and exit status 2.
"""

import dis
import functools
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import app

from jaxdp import _config_flag

DEBUG = "JAXDP_DEBUG"
_HOME = pathlib.Path(__file__).resolve().parent
_OURS = (_HOME, _HOME.parent / "scripts", _HOME.parent / "configs")
_KINDS = (ValueError, TypeError, KeyError, OSError, ImportError, RuntimeError)


def is_refusal(error: BaseException) -> bool:
  """Whether a ``raise`` of ours made this error.

  Example:
    >>> from jaxdp import clipping
    >>> try:
    ...   clipping.flat(-1.0)
    ... except ValueError as error:
    ...   is_refusal(error)
    True
    >>> try:
    ...   clipping.flat()  # not a value that we have looked at
    ... except TypeError as error:
    ...   is_refusal(error)
    False
  """
  if not isinstance(error, _KINDS) or isinstance(error, NotImplementedError):
    return False
  trace = error.__traceback__
  while trace is not None and trace.tb_next is not None:
    trace = trace.tb_next
  if trace is None:
    return False
  code = trace.tb_frame.f_code
  path = pathlib.Path(code.co_filename).resolve()
  is_raise = dis.opname[code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"
  return is_raise and any(path.is_relative_to(folder) for folder in _OURS)


def message(error: BaseException) -> str:
  """What an error says; ``str`` of a KeyError is a quotation of that."""
  text = error.args[0] if isinstance(error, KeyError) and error.args else error
  return str(text)


def run(main: Callable[[list[str]], Any]) -> NoReturn:
  """Runs a script: ``absl.app.run``, with refusals in one message.

  Args:
    main: takes the arguments that are no flags.

  Raises:
    SystemExit: status 0; 1 for flags that cannot be read; 2 for a refusal,
      whose message is on stderr (its traceback too, if ``JAXDP_DEBUG`` is set).
  """
  app.run(explained(main), flags_parser=explained(_parse))


def explained(fun: Callable) -> Callable:
  """``fun``, but a refusal ends the program, as ``run`` says."""

  @functools.wraps(fun)
  def inner(arguments: Sequence[str]) -> Any:
    try:
      return fun(arguments)
    except _KINDS as error:
      if not is_refusal(error):
        raise
      if os.environ.get(DEBUG):
        traceback.print_exc()
      print(f"error: {message(error)}", file=sys.stderr)
      sys.exit(2)

  return inner


def _parse(arguments: Sequence[str]) -> list[str]:
  _config_flag.check(arguments)
  rest: list[str] = app.parse_flags_with_usage(list(arguments))
  if len(rest) > 1:
    raise ValueError(
      f"Arguments without a flag: {' '.join(rest[1:])}. Write --name=value."
    )
  return rest
