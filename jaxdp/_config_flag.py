"""What ``--config=FILE:ARGUMENT --config.a.b=value`` may say, checked first.

ml_collections reads these flags; its errors are about its own insides.
"""

import inspect
import pathlib
import re
import runpy
from collections.abc import Sequence
from typing import Any

from jaxdp import _types

_FLAG = re.compile(r"^--?config[=\n](.*)$", re.MULTILINE)
_OVERRIDE = re.compile(
  r"--?(?:no)?config\.([^=\[]+)(\[.*?)?(?:=.*)?", re.DOTALL
)
_EXAMPLE = "such as configs/digits.py"


def check(arguments: Sequence[str]) -> None:
  """Raises unless the config can be read and has what the flags set.

  Raises:
    ValueError: no such file, not a config, or no such value in it.
  """
  named = _FLAG.findall("\n".join(arguments))
  if not named:
    return
  config = _read(named[-1])
  for argument in arguments:
    if match := _OVERRIDE.fullmatch(argument):
      _find(config, match[1], argument)


def _read(name: str) -> Any:
  path, colon, argument = name.partition(":")
  if not pathlib.Path(path).is_file():
    raise ValueError(
      f"--config={name}: there is no file {path!r}. Pass the path of a Python "
      f"file that defines get_config, {_EXAMPLE}."
    )
  try:
    get_config = runpy.run_path(path).get("get_config")
  except (SyntaxError, UnicodeDecodeError) as error:
    raise ValueError(
      f"--config={name} is not Python: {error}. A config is a Python file that "
      f"defines get_config, {_EXAMPLE}."
    ) from error
  if not callable(get_config):
    raise ValueError(
      f"--config={name} defines no get_config(). A config is a Python file "
      f"that does, {_EXAMPLE}."
    )
  given = [argument] if colon else []
  try:
    inspect.signature(get_config).bind(*given)
  except TypeError:
    raise ValueError(
      f"--config={name}: its get_config() "
      + (
        "takes no argument. Leave out the colon and what follows."
        if colon
        else f"needs an argument, as in --config={name}:ARGUMENT."
      )
    ) from None
  config = get_config(*given)
  if not hasattr(config, "to_dict"):
    raise ValueError(
      f"--config={name}: get_config() must return an "
      f"ml_collections.ConfigDict, got {type(config).__name__}."
    )
  return config


def _find(config: Any, path: str, argument: str) -> None:
  node, section = config, "config"
  for name in path.split("."):
    if not hasattr(node, "keys"):
      return  # ml_collections says what else may be set
    if name not in node:
      hint = _types.did_you_mean(name, node)
      raise ValueError(f"{argument}: {section} has no {name!r}; {hint}.")
    node, section = node[name], f"{section}.{name}"
