"""The digest by which files of JSON are told from damaged ones."""

import hashlib
import json
from typing import Any


def of_json(value: Any) -> str:
  """SHA-256 of a JSON value, whatever the order of its names."""
  text = json.dumps(value, sort_keys=True, allow_nan=False)
  return hashlib.sha256(text.encode()).hexdigest()
