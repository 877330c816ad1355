"""Datasets as arrays, read without TensorFlow.

``load`` returns the rows as they are stored (uint8 images, token ids), and
``preprocess`` the function that makes one of them a network input on the
device, inside the loss. ``stream`` reads rows by number when they do not fit
into memory, and ``pack`` makes one file that any machine with NumPy can load.

Everything done to the data depends on public constants or on the one example
at hand: no vocabulary, mean or class weight is taken from a dataset, since that
would be a release which no accountant charges.

Read ``_load`` first, then ``_tfds`` (decoding), ``_cache``, ``_pack`` and
``_text``.

Example:
  >>> from jaxdp import data
  >>> train = data.load("digits", "train")
  >>> {field: array.shape for field, array in train.items()}
  {'image': (1437, 8, 8, 1), 'label': (1437,)}
  >>> preprocess_fn = data.preprocess("digits")
"""

from jaxdp.data._load import load, pack, stream
from jaxdp.data._preprocess import preprocess
from jaxdp.data._stream import Stream
from jaxdp.data._text import tokenize

__all__ = ["Stream", "load", "pack", "preprocess", "stream", "tokenize"]
