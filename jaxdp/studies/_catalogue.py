"""The studies of a folder."""

import ast
import pathlib


def catalogue(folder: pathlib.Path) -> str:
  """A line for each config: its name, and what it says of itself."""
  lines = []
  for path in sorted(folder.glob("[!_]*.py")):
    text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or " "
    lines.append(f"{path.name:20} {text.splitlines()[0]}")
  return "\n".join(lines)
