"""The embedded default: scikit-learn's 1,797 handwritten digits, 8x8."""

import hashlib

import numpy as np

NUM_TRAIN = 1437  # Four fifths of 1,797; the other 360 are the test set.


def load_digits(split: str) -> dict[str, np.ndarray]:
  """Images ``uint8 [n, 8, 8, 1]`` in 0..16 and labels ``int32 [n]``."""
  if split not in ("train", "test"):
    raise ValueError(
      f"dataset 'digits' has the splits 'train' and 'test', got {split=}."
    )
  try:
    from sklearn import datasets
  except ImportError as error:
    raise ImportError(
      "dataset 'digits' comes with scikit-learn, which is not installed. "
      "Run: pip install 'jaxdp[data]'"
    ) from error
  digits = datasets.load_digits()
  # The order must not hang on the writers, who are grouped in the file, nor on
  # the labels, nor on a random generator that NumPy may change: SHA-256 of the
  # row number.
  order = sorted(
    range(len(digits.target)),
    key=lambda row: hashlib.sha256(str(row).encode()).digest(),
  )
  rows = np.array(order[:NUM_TRAIN] if split == "train" else order[NUM_TRAIN:])
  return {
    "image": digits.images[rows].astype(np.uint8)[..., None],
    "label": digits.target[rows].astype(np.int32),
  }
