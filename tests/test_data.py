"""jaxdp.data: arrays, cache, packs, streams and the tokenizer."""

import concurrent.futures
import io
import json
import logging
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp import data
from jaxdp.data import __main__ as cli
from jaxdp.data import _cache

NUM_TRAIN, NUM_TEST = 150, 20


def make_arrays(num_rows, seed):
  rng = np.random.default_rng(seed)
  words = np.array(["good", "bad", "film", "Film", "it's"])
  return {
    "image": rng.integers(0, 256, (num_rows, 5, 4, 3), dtype=np.uint8),
    "label": rng.integers(0, 300, num_rows, dtype=np.int32),
    "score": rng.standard_normal(num_rows, np.float32),
    "review": [" ".join(rng.choice(words, 9)) for _ in range(num_rows)],
  }


def write_tfds(folder, version, splits):
  """A dataset in the format of TFDS, grouped as small records often are."""
  tfds = pytest.importorskip("tensorflow_datasets")
  serializer = pytest.importorskip(
    "tensorflow_datasets.core.example_serializer"
  )
  writer = pytest.importorskip("array_record.python.array_record_module")
  image = pytest.importorskip("PIL.Image")
  features = tfds.features.FeaturesDict(
    {
      "image": tfds.features.Image(shape=(5, 4, 3)),
      "label": tfds.features.ClassLabel(num_classes=300),
      "score": tfds.features.Scalar(np.float32),
      "review": tfds.features.Text(),
      "id": tfds.features.Text(),
    }
  )
  place = folder / "tiny" / version
  place.mkdir(parents=True)
  serialize = serializer.ExampleSerializer(features.get_serialized_info())
  infos = []
  for split, (arrays, shard_lengths) in splits.items():
    row = 0
    for shard, length in enumerate(shard_lengths):
      file = writer.ArrayRecordWriter(
        str(
          place
          / f"tiny-{split}.array_record-{shard:05}-of-{len(shard_lengths):05}"
        ),
        "group_size:16",
      )
      for _ in range(length):
        png = io.BytesIO()
        image.fromarray(arrays["image"][row]).save(png, "PNG")
        example = {
          "image": png.getvalue(),
          "label": np.int64(arrays["label"][row]),
          "score": arrays["score"][row],
          "review": arrays["review"][row].encode(),
          "id": f"person-{row}".encode(),
        }
        file.write(serialize.serialize_example(example))
        row += 1
      file.close()
    infos.append(
      {
        "name": split,
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "shardLengths": [str(length) for length in shard_lengths],
        "numBytes": "1",
      }
    )
  features.save_config(str(place))
  info = {"name": "tiny", "version": version, "fileFormat": "array_record"}
  (place / "dataset_info.json").write_text(
    json.dumps({**info, "splits": infos})
  )
  return place


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  """A folder with the dataset "tiny", and the arrays that are in it."""
  folder = tmp_path_factory.mktemp("tfds")
  train, test = make_arrays(NUM_TRAIN, 0), make_arrays(NUM_TEST, 1)
  write_tfds(
    folder, "1.0.0", {"train": (train, [80, 70]), "test": (test, [NUM_TEST])}
  )
  return folder, train


def assert_same(left, right):
  assert left.keys() == right.keys()
  for field in left:
    assert left[field].dtype == right[field].dtype, field
    np.testing.assert_array_equal(left[field], right[field])


def run(code, **env):
  return subprocess.Popen(
    [sys.executable, "-c", code],
    env={**os.environ, **env},
    cwd=pathlib.Path(__file__).parent.parent,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


# --- digits ---


def test_digits_are_whole_and_split_by_a_fixed_permutation():
  train, test = data.load("digits"), data.load("digits", "test")
  assert train["image"].shape == (1437, 8, 8, 1)
  assert test["image"].shape == (360, 8, 8, 1)
  assert train["image"].dtype == np.uint8
  assert train["label"].dtype == np.int32
  assert train["image"].max() == 16
  # From the table in scikit-learn's documentation: 1,797 rows, these counts.
  counts = np.bincount(np.concatenate([train["label"], test["label"]]))
  assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
  assert train["label"][:8].tolist() == [0, 4, 0, 7, 5, 5, 5, 7]


def test_digits_have_no_row_in_both_splits():
  both = [data.load("digits", split)["image"] for split in ("train", "test")]
  rows = np.concatenate(both).reshape(1797, -1)
  assert len(np.unique(rows, axis=0)) == 1797


def test_unknown_split_of_digits_is_refused():
  with pytest.raises(ValueError, match="'train' and 'test', got split='dev'"):
    data.load("digits", "dev")


# --- TFDS ---


def test_records_become_arrays(tiny, tmp_path):
  folder, train = tiny
  loaded = data.load("tiny", data_dir=folder, cache_dir=tmp_path)
  assert loaded.keys() == {"image", "label", "score", "review"}  # no id
  assert_same(
    {**loaded},
    {**train, "review": data.tokenize(train["review"])},
  )
  assert all(isinstance(array, np.memmap) for array in loaded.values())


def test_second_load_reads_the_cache_alone(tiny, tmp_path, monkeypatch):
  folder, _ = tiny
  first = data.load("tiny", "test", data_dir=folder, cache_dir=tmp_path)
  monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
  second = data.load("tiny", "test", data_dir=folder, cache_dir=tmp_path)
  assert_same(first, second)
  with pytest.raises(ImportError, match="pip install 'jaxdp\\[data\\]'"):
    data.load("tiny", "train", data_dir=folder, cache_dir=tmp_path)


def test_sub_splits_are_cached_apart(tiny, tmp_path):
  folder, train = tiny
  part = data.load("tiny", "train[:10]", data_dir=folder, cache_dir=tmp_path)
  rest = data.load("tiny", "train[10:]", data_dir=folder, cache_dir=tmp_path)
  np.testing.assert_array_equal(part["image"], train["image"][:10])
  np.testing.assert_array_equal(rest["image"], train["image"][10:])


def test_newest_version_is_taken_unless_one_is_named(tiny, tmp_path):
  old, new = make_arrays(3, 2), make_arrays(4, 3)
  write_tfds(tmp_path, "2.9.0", {"train": (old, [3])})
  write_tfds(tmp_path, "2.10.0", {"train": (new, [4])})
  options = {"data_dir": tmp_path, "cache_dir": tmp_path / "cache"}
  assert len(data.load("tiny", **options)["label"]) == 4
  assert len(data.load("tiny:2.9.0", **options)["label"]) == 3


def test_one_version_in_another_folder_has_another_cache(tiny, tmp_path):
  folder, train = tiny
  other = make_arrays(NUM_TRAIN, 7)
  write_tfds(tmp_path, "1.0.0", {"train": (other, [NUM_TRAIN])})
  cache_dir = tmp_path / "cache"
  first = data.load("tiny", data_dir=folder, cache_dir=cache_dir)
  second = data.load("tiny", data_dir=tmp_path, cache_dir=cache_dir)
  np.testing.assert_array_equal(first["label"], train["label"])
  np.testing.assert_array_equal(second["label"], other["label"])


def test_group_size_line_is_not_logged_and_others_are(tiny, tmp_path, caplog):
  folder, _ = tiny
  with caplog.at_level(logging.INFO):
    data.load("tiny", data_dir=folder, cache_dir=tmp_path)
    logging.getLogger("absl").error("Grain requires group size 1, and after")
  messages = [record.getMessage() for record in caplog.records]
  assert [text for text in messages if "group size" in text] == [
    "Grain requires group size 1, and after"
  ]


def test_unknown_split_names_those_there_are(tiny, tmp_path):
  folder, _ = tiny
  with pytest.raises(ValueError, match="splits 'test', 'train', got split='v'"):
    data.load("tiny", "v", data_dir=folder, cache_dir=tmp_path)


def test_missing_dataset_says_how_to_get_it(tiny):
  folder, _ = tiny
  with pytest.raises(FileNotFoundError) as error:
    data.load("mnist", data_dir=folder)
  message = str(error.value)
  assert f"data_dir={str(folder)!r} (which holds tiny)" in message
  assert "JAXDP_DATA_DIR" in message
  assert "tfds.builder('mnist'" in message
  assert "download_and_prepare()" in message


def test_data_folder_is_argument_then_variable(tiny, tmp_path, monkeypatch):
  folder, _ = tiny
  monkeypatch.setenv("JAXDP_CACHE_DIR", str(tmp_path / "cache"))
  monkeypatch.setenv("JAXDP_DATA_DIR", str(folder))
  assert len(data.load("tiny", "test")["label"]) == NUM_TEST
  assert (tmp_path / "cache").is_dir()
  with pytest.raises(FileNotFoundError, match="empty or absent"):
    data.load("tiny", "test", data_dir=tmp_path / "nothing")


def test_other_file_formats_are_refused(tiny, tmp_path):
  place = tmp_path / "old" / "1.0.0"
  place.mkdir(parents=True)
  (place / "dataset_info.json").write_text('{"fileFormat": "tfrecord"}')
  with pytest.raises(ValueError, match=r"stored as tfrecord.*no random access"):
    data.load("old", data_dir=tmp_path)


@pytest.mark.slow
def test_loading_imports_no_tensorflow(tiny, tmp_path):
  folder, _ = tiny
  # Found by whoever looks for it, and fatal to whoever imports it.
  (tmp_path / "tensorflow").mkdir()
  (tmp_path / "tensorflow" / "__init__.py").write_text("import os; os.abort()")
  code = f"""
import sys
import jaxdp.data as data
for module in ("sklearn", "tensorflow_datasets", "flax", "PIL"):
  assert module not in sys.modules, module
data.load("tiny", data_dir={str(folder)!r}, cache_dir={str(tmp_path)!r})
data.stream("tiny", data_dir={str(folder)!r})
data.load("digits")
assert "tensorflow_datasets" in sys.modules
assert "tensorflow" not in sys.modules
"""
  path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
  process = run(code, PYTHONPATH=path)
  _, errors = process.communicate()
  assert process.returncode == 0, errors


# --- cache ---


def build_cache(folder, value=1, num_rows=5):
  def chunks():
    for row in range(num_rows):
      yield {
        "a/b": np.full((1, 3), value + row, np.int32),
        "image": np.full((1, 2, 2), row, np.uint8),
      }

  return _cache.cached(folder, num_rows, chunks)


def test_cache_is_built_once(tmp_path):
  first = build_cache(tmp_path / "x", value=1)
  second = build_cache(tmp_path / "x", value=2)
  assert_same(first, second)
  assert first["a/b"][:, 0].tolist() == [1, 2, 3, 4, 5]
  assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(
  "damage", ["truncated", "altered", "removed", "no manifest", "bad manifest"]
)
def test_damaged_cache_is_built_again(tmp_path, caplog, damage):
  folder = tmp_path / "x"
  before = {field: np.array(a) for field, a in build_cache(folder).items()}
  file = folder / "image.npy"
  match damage:
    case "truncated":
      file.write_bytes(file.read_bytes()[:-1])
    case "altered":
      content = bytearray(file.read_bytes())
      content[-1] ^= 1
      file.write_bytes(content)
    case "removed":
      file.unlink()
    case "no manifest":
      (folder / "manifest.json").unlink()
    case "bad manifest":
      (folder / "manifest.json").write_text('["image"')
  after = build_cache(folder)
  assert_same(before, dict(after))
  assert "is damaged" in caplog.text
  assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_arrays_stay_readable_while_their_cache_is_replaced(tmp_path):
  folder = tmp_path / "x"
  arrays = build_cache(folder)
  (folder / "manifest.json").unlink()
  build_cache(folder, value=7)
  assert arrays["a/b"][0, 0] == 1


def test_failed_build_leaves_nothing(tmp_path):
  def chunks():
    yield {"image": np.zeros((1, 2), np.uint8)}
    raise RuntimeError("no more")

  with pytest.raises(RuntimeError, match="no more"):
    _cache.cached(tmp_path / "x", 2, chunks)
  with pytest.raises(ValueError, match="expected 3 rows to cache, got 0"):
    _cache.cached(tmp_path / "x", 3, list)
  assert not [*tmp_path.iterdir()]


def test_full_disk_names_the_folder_and_the_remedy(tmp_path):
  def chunks():
    raise OSError(28, "No space left on device")
    yield {}

  with pytest.raises(OSError, match=r"No space.*cache_dir=.*x") as error:
    _cache.cached(tmp_path / "x", 2, chunks)
  assert error.value.errno == 28


def test_abandoned_builds_are_removed(tmp_path):
  old, recent = tmp_path / ".building-old", tmp_path / ".building-recent"
  old.mkdir()
  recent.mkdir()
  os.utime(old, (0, 0))
  build_cache(tmp_path / "x")
  assert {path.name for path in tmp_path.iterdir()} == {"x", recent.name}


def test_several_threads_build_one_cache(tmp_path):
  # As processes do, they share nothing but the folder.
  folder = tmp_path / "x"
  build_cache(folder)
  for _ in range(5):
    (folder / "manifest.json").unlink()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
      built = list(pool.map(lambda _: build_cache(folder), range(4)))
    assert [a["a/b"].sum() for a in built] == [45] * 4
  assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.slow
def test_several_processes_build_one_cache(tiny, tmp_path):
  folder, train = tiny
  damaged = data.load("tiny", data_dir=folder, cache_dir=tmp_path)["label"]
  manifest = next(tmp_path.rglob("manifest.json"))
  manifest.write_text("{")
  code = f"""
from jaxdp import data
folder, cache_dir = {str(folder)!r}, {str(tmp_path)!r}
arrays = data.load("tiny", data_dir=folder, cache_dir=cache_dir)
print(int(arrays["label"].sum()))
"""
  processes = [run(code) for _ in range(2)]
  for process in processes:
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert int(output) == train["label"].sum() == damaged.sum()
  assert len([*tmp_path.rglob("manifest.json")]) == 1
  assert not [*tmp_path.rglob(".building-*")]


# --- packs ---


@pytest.mark.parametrize("parts", [1, 3])
def test_pack_loads_as_the_dataset_without_its_readers(
  tiny, tmp_path, monkeypatch, parts
):
  folder, _ = tiny
  options = {"data_dir": folder, "cache_dir": tmp_path / "cache"}
  written = data.pack("tiny", tmp_path / "packs", parts=parts, **options)
  assert len(written) == parts
  for module in ("tensorflow_datasets", "array_record", "PIL"):
    monkeypatch.setitem(sys.modules, module, None)
  for split in ("train", "test"):
    packed = data.load("tiny", split, data_dir=tmp_path / "packs")
    assert_same(packed, dict(data.load("tiny", split, **options)))
    rows = data.stream("tiny", split, data_dir=tmp_path / "packs")
    assert_same(
      rows[np.array([3, 0])],
      {field: array[[3, 0]] for field, array in packed.items()},
    )


def test_pack_uses_the_smallest_unsigned_types(tmp_path):
  data.pack("digits", tmp_path / "digits.npz")
  with np.load(tmp_path / "digits.npz") as file:
    assert file["train/label"].dtype == np.uint8
    assert file["train/image"].dtype == np.uint8


def test_incomplete_damaged_and_outdated_packs_are_refused(tmp_path):
  written = data.pack("digits", tmp_path / "new.npz", parts=3)
  with pytest.raises(ValueError, match=r"splits \['test', 'train'\], got"):
    data.load("new", "dev", data_dir=tmp_path)
  content = written[1].read_bytes()
  written[1].unlink()
  with pytest.raises(FileNotFoundError, match=r"'new' in .* is not whole"):
    data.load("new", data_dir=tmp_path)
  written[1].write_bytes(content[: len(content) // 2])
  with pytest.raises(OSError, match=r"new-00001-of-00003.npz is damaged"):
    data.load("new", data_dir=tmp_path)
  meta = {"preprocessing": 0, "dtypes": {}}
  np.savez(tmp_path / "old.npz", meta=np.array(json.dumps(meta)))
  with pytest.raises(ValueError, match="made by another version"):
    data.load("old", data_dir=tmp_path)


def test_pack_command_writes_parts(tmp_path, capsys):
  out = str(tmp_path / "digits.npz")
  assert cli.main(["pack", "digits", "--out", out, "--parts", "2"]) == 0
  assert "digits-00001-of-00002.npz" in capsys.readouterr().out
  assert cli.main(["pack", "mnist", "--out", out, "--data_dir", out]) == 1
  assert "error: dataset 'mnist' is not in" in capsys.readouterr().err
  assert cli.main(["pack", "a", "b", "--out", out]) == 1
  assert "one file for 2 datasets" in capsys.readouterr().err


# --- stream ---


def test_stream_reads_the_rows_that_are_asked_for(tiny, tmp_path):
  folder, _ = tiny
  loaded = data.load("tiny", data_dir=folder, cache_dir=tmp_path)
  rows = data.stream("tiny", data_dir=folder)
  assert len(rows) == NUM_TRAIN
  # Padding rows of a batch repeat row 0; 140 is in the second shard.
  for indices in ([140, 0, 79, 80, 0, 0], [], range(NUM_TRAIN)):
    indices = np.array(indices, np.int32)
    assert_same(
      rows[indices],
      {field: np.asarray(array[indices]) for field, array in loaded.items()},
    )


def test_stream_refuses_what_is_no_row():
  rows = data.stream("digits", "test")
  with pytest.raises(IndexError, match=r"\[0, 360\), got values from -1 to 2"):
    rows[np.array([2, -1])]
  with pytest.raises(TypeError, match=r"shape \(\) and type int64"):
    rows[3]
  with pytest.raises(TypeError, match="type bool"):
    rows[np.ones(360, bool)]


# --- tokenizer and preprocessing ---


def test_tokens_are_those_of_the_first_release():
  # Computed once with zlib.crc32; a change of them is a change of every model.
  text = "The film wasn't GOOD.<br /><br />Über-fine, 10/10_x \x00"
  tokens = data.tokenize([text], max_length=12)[0]
  words = [1 + crc32 % 9999 for crc32 in CRC32_OF_WORDS]
  assert tokens.tolist() == [*words, 0, 0, 0]


# the film wasn't good über fine 10 10 x
CRC32_OF_WORDS = [
  1011183078,
  2185543202,
  3050908735,
  1820610194,
  3537962120,
  3198768274,
  2707236321,
  2707236321,
  2363233923,
]


def test_tokens_of_a_text_do_not_depend_on_other_texts():
  texts = ["a film", "", "film a film", b"bytes \xff film"]
  together = data.tokenize(texts)
  alone = np.concatenate([data.tokenize([text]) for text in texts])
  np.testing.assert_array_equal(together, alone)
  assert together.shape == (4, 256)
  assert together.dtype == np.int32


@pytest.mark.parametrize("vocab_size", [2, 3, 100])
def test_tokens_are_in_range_and_only_padding_is_zero(vocab_size):
  text = " ".join(f"word{i}" for i in range(300))
  row = data.tokenize([text], vocab_size=vocab_size)[0]
  assert row.min() >= 1
  assert row.max() < vocab_size
  assert len(np.unique(row)) > 0.8 * (vocab_size - 1)


def test_tokenizer_refuses_bad_sizes():
  with pytest.raises(ValueError, match="vocab_size must be >= 2"):
    data.tokenize(["a"], vocab_size=1)
  with pytest.raises(ValueError, match="max_length must be >= 1"):
    data.tokenize(["a"], max_length=0)
  assert data.tokenize([]).shape == (0, 256)


def test_preprocessing_scales_by_constants_of_the_format():
  image = np.array([[[0], [16]]], np.uint8)
  example = {"image": image, "label": np.int32(3)}
  digits = jax.jit(data.preprocess("digits"))(example)
  np.testing.assert_array_equal(digits["image"], [[[-1.0], [1.0]]])
  assert digits["image"].dtype == jnp.float32
  assert digits["label"] == 3
  other = jax.jit(data.preprocess("cifar10"))(example)
  np.testing.assert_allclose(other["image"][0, 1, 0], 16 / 127.5 - 1)


def test_preprocessing_leaves_tokens_and_floats_alone():
  example = {
    "text": np.array([5, 0], np.int32),
    "image": np.array([np.nan, 2.0], np.float32),
  }
  assert_same(data.preprocess("imdb_reviews")(example), example)


def test_preprocessing_is_one_object_per_name():
  assert data.preprocess("mnist") is data.preprocess("mnist")


# --- the real datasets, where they are there ---


def require(data_dir, name):
  if not (data_dir / name).is_dir():
    pytest.skip(f"no {name} in {data_dir}")
  return data_dir


def test_real_mnist_has_the_published_statistics(data_dir, tmp_path):
  folder = require(data_dir, "mnist")
  test = data.load("mnist", "test", data_dir=folder, cache_dir=tmp_path)
  assert test["image"].shape == (10_000, 28, 28, 1)
  counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
  assert np.bincount(test["label"]).tolist() == counts


@pytest.mark.slow
def test_real_mnist_training_set_has_the_published_mean(data_dir, tmp_path):
  folder = require(data_dir, "mnist")
  train = data.load("mnist", "train", data_dir=folder, cache_dir=tmp_path)
  assert train["image"].shape == (60_000, 28, 28, 1)
  np.testing.assert_allclose(train["image"].mean(), 33.318421449829934)
  counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
  assert np.bincount(train["label"]).tolist() == counts


@pytest.mark.slow
def test_real_cifar10_has_the_published_statistics(data_dir, tmp_path):
  folder = require(data_dir, "cifar10")
  train = data.load("cifar10", "train", data_dir=folder, cache_dir=tmp_path)
  assert train["image"].shape == (50_000, 32, 32, 3)
  assert np.bincount(train["label"]).tolist() == [5000] * 10
  pixels = train["image"].astype(np.float64) / 255
  np.testing.assert_allclose(
    pixels.mean((0, 1, 2)), [0.4913997, 0.4821584, 0.4465309], atol=1e-7
  )
  np.testing.assert_allclose(
    pixels.std((0, 1, 2)), [0.2470322, 0.2434851, 0.2615878], atol=1e-7
  )
  test = data.load("cifar10", "test", data_dir=folder, cache_dir=tmp_path)
  assert np.bincount(test["label"]).tolist() == [1000] * 10


@pytest.mark.slow
def test_real_cifar100_has_the_published_counts(data_dir, tmp_path):
  folder = require(data_dir, "cifar100")
  test = data.load("cifar100", "test", data_dir=folder, cache_dir=tmp_path)
  assert test["image"].shape == (10_000, 32, 32, 3)
  assert np.bincount(test["label"]).tolist() == [100] * 100
  assert np.bincount(test["coarse_label"]).tolist() == [500] * 20


@pytest.mark.slow
def test_real_imdb_reviews_become_tokens(data_dir, tmp_path):
  folder = require(data_dir, "imdb_reviews")
  train = data.load("imdb_reviews", data_dir=folder, cache_dir=tmp_path)
  assert train["text"].shape == (25_000, 256)
  assert np.bincount(train["label"]).tolist() == [12_500] * 2
  lengths = (train["text"] != 0).sum(1)
  assert lengths.min() >= 1
  rows = data.stream("imdb_reviews", data_dir=folder)[np.array([24_999, 7])]
  np.testing.assert_array_equal(rows["text"], train["text"][[24_999, 7]])
