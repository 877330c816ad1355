"""Bad data sets: arrays for `fit`, and packs for `experiment.train`."""

import json

import numpy as np

from jaxdp.data import _pack
from tests import toy


def changed(**fields):
  return {**toy.dataset(), **fields}


class Short(toy.Reader):
  """A reader that says another length than the sampler was made for."""

  def __len__(self):
    return 47


ARRAYS = {
  "nothing": ({}, "need the same first axis"),
  "None": (None, "need the same first axis"),
  "no rows": (
    {name: x[:0] for name, x in toy.dataset().items()},
    "has 0 rows but .* num_examples=48",
  ),
  "a number for an array": (changed(label=3), "the same first axis"),
  "words": (changed(label=np.array(["a"] * 48)), "has dtype <U1"),
  "Python objects": (
    changed(label=np.array([{}] * 48, object)),
    "has dtype object. .*numbers",
  ),
  "a reader of another length": (Short(), "47 rows but .* num_examples=48"),
}


def image(rows=40, shape=(8, 8, 1)):
  return np.zeros((rows, *shape), np.uint8)


def label(rows=40):
  return np.arange(rows) % 10


def write(folder, name="mine", parts=1, **fields):
  splits = {"train": fields, "test": fields}
  _pack.write_pack(folder / f"{name}.npz", name, splits, parts)


def whole(folder):
  write(folder, image=image(), label=label())


def cut(folder):
  whole(folder)
  path = folder / "mine.npz"
  path.write_bytes(path.read_bytes()[:-300])


def overwritten(folder):
  whole(folder)
  path = folder / "mine.npz"
  content = bytearray(path.read_bytes())
  content[60:90] = bytes(30)
  path.write_bytes(content)


def pickled(folder):
  meta = {"preprocessing": 1, "dtypes": {"train/image": "object"}}
  arrays = {"train/image": np.array([{}] * 3, object)}
  np.savez(folder / "mine.npz", meta=json.dumps(meta), **arrays)


def foreign(folder):
  np.savez(folder / "mine.npz", image=image(), label=label())


def older(folder):
  meta = {"preprocessing": 0, "dtypes": {"train/label": "int32"}}
  np.savez(folder / "mine.npz", meta=json.dumps(meta))


def missing_part(folder):
  write(folder, parts=3, image=image(), label=label())
  (folder / "mine-00001-of-00003.npz").unlink()


def train_alone(folder):
  fields = {"image": image(), "label": label()}
  _pack.write_pack(folder / "mine.npz", "mine", {"test": fields}, 1)


def prepared(info):
  def make(folder):
    (folder / "mine" / "1.0.0").mkdir(parents=True)
    (folder / "mine" / "1.0.0" / "dataset_info.json").write_text(info)

  return make


def configurations(folder):
  for name in ("small", "large"):
    (folder / "mine" / name / "1.0.0").mkdir(parents=True)
    (folder / "mine" / name / "1.0.0" / "dataset_info.json").write_text("{}")


def fields(**arrays):
  return lambda folder: write(folder, **arrays)


PACKS = {
  "an empty folder": (lambda folder: None, "is not in data_dir.*Pass data_dir"),
  "a pack cut off": (cut, "is damaged.*Copy it again"),
  "a pack with other bytes": (overwritten, "is damaged.*Copy it again"),
  "a pack of Python objects": (pickled, "is damaged.*Copy it again"),
  "a file of other arrays": (foreign, "is damaged.*make it again"),
  "a pack of another version": (older, "another version of jaxdp.*again"),
  "a part that is missing": (missing_part, "is not whole.*Copy all parts"),
  "a split that is missing": (
    train_alone,
    r"has the splits \['test'\], got split='train'",
  ),
  "no labels": (fields(image=image()), "needs an image or a text, and a label"),
  "no inputs": (fields(label=label()), "needs an image or a text, and a label"),
  "labels of floating point": (
    fields(image=image(), label=label() / 2),
    "must be integers, one a row, got float64",
  ),
  "labels of two columns": (
    fields(image=image(), label=np.zeros((40, 2), int)),
    r"must be integers, one a row, got int64\[40, 2\]",
  ),
  "labels beyond the classes": (
    fields(image=image(), label=label() + 1),
    "go from 1 to 10, but config.model.num_classes=10 takes 0 to 9",
  ),
  "negative labels": (
    fields(image=image(), label=label() - 1),
    "go from -1 to 8",
  ),
  "no rows": (fields(image=image(0), label=label(0)), "is empty"),
  "fewer labels than images": (
    fields(image=image(), label=label(39)),
    "same number of rows",
  ),
  "TFDS records without random access": (
    prepared('{"fileFormat": "tfrecord"}'),
    "stored as tfrecord.*Prepare it again",
  ),
  "an information file that is damaged": (
    prepared('{"fileFor'),
    "dataset_info.json is damaged",
  ),
  "several configurations": (
    configurations,
    "in several configurations; name one of",
  ),
}
