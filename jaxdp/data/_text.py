"""A public tokenizer: words hashed to a fixed number of buckets.

A vocabulary counted on sensitive text is a release of that text. Hashing needs
no vocabulary, so tokens say nothing about any text but their own.
"""

import re
import zlib
from collections.abc import Iterable

import numpy as np

VOCAB_SIZE = 10_000
MAX_LENGTH = 256
PADDING = 0

_BREAK = re.compile(r"<br\s*/?>")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


def tokenize(
  texts: Iterable[str | bytes],
  *,
  vocab_size: int = VOCAB_SIZE,
  max_length: int = MAX_LENGTH,
) -> np.ndarray:
  r"""Turns texts into rows of token ids, padded on the right with 0.

  A word is a run of letters and digits, with apostrophes inside, in lower
  case; ``<br />`` separates words. Its id is
  :math:`1 + \mathrm{crc32}(\mathrm{utf8}(word)) \bmod (V - 1)`.

  Args:
    texts: strings, or bytes in UTF-8 (a wrong byte becomes U+FFFD).
    vocab_size: V >= 2, the number of ids, with the padding id.
    max_length: words kept of each text, from its beginning; >= 1.

  Returns:
    int32 ``[texts, max_length]`` with values in ``[0, vocab_size)``.

  Guarantees:
    The row of a text depends on that text alone: not on other texts, on the
    process, on the platform or on the hash seed of Python.

  Edge cases:
    A text without words is a row of zeros.

  Example:
    >>> tokenize(["It's good.<br />It's GOOD", ""], max_length=6)
    array([[5054, 2274, 5054, 2274,    0,    0],
           [   0,    0,    0,    0,    0,    0]], dtype=int32)
  """
  if vocab_size < 2:
    raise ValueError(
      f"vocab_size must be >= 2 (padding and one word), got {vocab_size=}."
    )
  if max_length < 1:
    raise ValueError(f"max_length must be >= 1, got {max_length=}.")
  ids: dict[str, int] = {}  # Words repeat: hash each once.
  rows = []
  for text in texts:
    if isinstance(text, bytes):
      text = text.decode("utf-8", errors="replace")
    words = _WORD.findall(_BREAK.sub(" ", text.lower()))[:max_length]
    row = np.zeros(max_length, np.int32)
    for position, word in enumerate(words):
      token = ids.get(word)
      if token is None:
        token = 1 + zlib.crc32(word.encode("utf-8", "replace")) % (
          vocab_size - 1
        )
        ids[word] = token
      row[position] = token
    rows.append(row)
  return np.stack(rows) if rows else np.zeros((0, max_length), np.int32)
