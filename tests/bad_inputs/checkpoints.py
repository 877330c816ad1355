"""Run directories that are not of the run, or damaged.

A row changes a finished run of `toy.fit` (seed 3, 12 steps) in its folder, and
then the arguments with which it is run again.
"""

import json
import shutil

import optax

from jaxdp import _digest
from tests import toy


def nothing(folder):
  pass


def no_ledger(folder):
  (folder / "ledger.json").unlink()


def older_ledger(folder):
  path = folder / "ledger.json"
  ledger = json.loads(path.read_text())
  ledger["next_step"] = 4
  ledger["segments"] = [
    {**segment, "num_steps": 4} for segment in ledger["segments"][:1]
  ]
  del ledger["digest"]
  ledger["digest"] = _digest.of_json(ledger)
  path.write_text(json.dumps(ledger))


def cut(name):
  def change(folder):
    path = folder / name
    path.write_text(path.read_text()[:-40])

  return change


def emptied(name):
  return lambda folder: (folder / name).write_text("")


def no_checkpoints(folder):
  shutil.rmtree(folder / "checkpoints")


def damaged_checkpoints(folder):
  for path in (folder / "checkpoints").rglob("*"):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


ROWS = {
  "more noise": (
    nothing,
    {"mechanism": toy.mechanism(noise_multiplier=6.0)},
    "noise_multiplier was 5.0, now 6.0. Choose another workdir",
  ),
  "more steps": (nothing, {"num_steps": 13}, "num_steps was 12, now 13"),
  "another delta": (nothing, {"delta": 1e-4}, "delta was 0.001, now 0.0001"),
  "no mechanism": (
    nothing,
    {"mechanism": None, "sampler": toy.full_batch()},
    "mechanism.* now None",
  ),
  "another config": (nothing, {"config": {"a": 1}}, "a was None, now 1"),
  "another optimizer": (
    nothing,
    {"optimizer": optax.adam(0.1)},
    "is of another model or optimizer: .*Choose another workdir",
  ),
  "no ledger": (no_ledger, {}, "ledger.json is missing or older"),
  "a ledger of before": (older_ledger, {}, "ledger.json is missing or older"),
  "a ledger cut off": (cut("ledger.json"), {}, "ledger"),
  "an empty ledger": (emptied("ledger.json"), {}, "ledger"),
  "a config cut off": (cut("config.json"), {}, "config.json is damaged"),
  "an empty config": (emptied("config.json"), {}, "config.json is damaged"),
  "no checkpoints": (
    no_checkpoints,
    {},
    "12 steps were charged, but there is no checkpoint",
  ),
  "no whole checkpoint": (
    damaged_checkpoints,
    {},
    "None of the checkpoints .* can be read.*Start in a new workdir",
  ),
}
