"""Interleaved timing, compiled memory, and where results go.

Variants of one thing are timed in turn, round after round, so that whatever
else the machine does falls on all of them; a ratio is the median over rounds of
two times of the same round.
"""

import datetime
import json
import os
import pathlib
import platform
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags, logging

OUT = flags.DEFINE_string("out", None, "Folder for the results, as JSON.")
QUICK = flags.DEFINE_bool("quick", False, "Tiny sizes: does it run at all?")
ROUNDS = flags.DEFINE_integer("rounds", 20, "Rounds over all variants.")

# One sample takes at least this long, or calls would be timed by their noise.
_MIN_SECONDS = 0.02
_PACKAGES = ("jaxdp", "jax", "jaxlib", "optax", "numpy", "jax_privacy")


class Variant(NamedTuple):
  """One way to do it."""

  name: str
  call: Callable[[], Any]  # returns what to wait for
  memory: int | None = None  # bytes, of the compiled program
  compile_seconds: float = 0.0  # tracing included


class Timing(NamedTuple):
  """How long one call took, by round."""

  seconds: np.ndarray

  @property
  def median(self) -> float:
    return float(np.median(self.seconds))

  @property
  def spread(self) -> float:
    """Interquartile range over the median."""
    low, high = np.quantile(self.seconds, [0.25, 0.75])
    return float((high - low) / self.median)

  def over(self, other: "Timing") -> float:
    """Median over rounds of the ratio of the two."""
    return float(np.median(self.seconds / other.seconds))


def interleave(
  variants: Sequence[Variant], rounds: int | None = None
) -> dict[str, Timing]:
  """Times all variants in turn, each round in another order."""
  rounds = rounds or (2 if QUICK.value else ROUNDS.value)
  repeats = {}
  for variant in variants:
    _seconds(variant, 1)
    once = min(_seconds(variant, 1) for _ in range(2))
    repeats[variant.name] = max(1, round(_MIN_SECONDS / once))
  samples = np.empty((len(variants), rounds))
  for r in range(rounds):
    for i in np.roll(np.arange(len(variants)), r).tolist():
      samples[i, r] = _seconds(variants[i], repeats[variants[i].name])
  names = [variant.name for variant in variants]
  return {name: Timing(row) for name, row in zip(names, samples, strict=True)}


def _seconds(variant: Variant, repeats: int) -> float:
  start = time.perf_counter()
  for _ in range(repeats):
    out = variant.call()
  jax.block_until_ready(out)
  return (time.perf_counter() - start) / repeats


def compare(model: str, variants: Sequence[Variant]) -> list[dict[str, Any]]:
  """A row for each variant: its time and memory, and those over the first's."""
  timings = interleave(variants)
  base = variants[0]
  return [
    {
      "model": model,
      "variant": name,
      "ms": timings[name].median * 1e3,
      "iqr %": timings[name].spread * 100,
      "x time": timings[name].over(timings[base.name]),
      "MiB": None if memory is None else memory / 2**20,
      "x memory": memory / base.memory if memory and base.memory else None,
      "compile s": seconds,
      "samples": timings[name].seconds.tolist(),
    }
    for name, _, memory, seconds in variants
  ]


def stateful(name: str, jitted: Any, state: Any, *args: Any) -> Variant:
  """A variant of ``jitted(state, *args) -> (state, ...)``, compiled here."""
  compiled, seconds = _compile(jitted, state, *args)
  box = [state]

  def call() -> Any:
    box[0] = compiled(box[0], *args)[0]
    return box[0]

  return Variant(name, call, memory_bytes(compiled), seconds)


def stateless(name: str, jitted: Any, *args: Any) -> Variant:
  """A variant of ``jitted(*args)``, compiled here."""
  compiled, seconds = _compile(jitted, *args)
  return Variant(name, lambda: compiled(*args), memory_bytes(compiled), seconds)


def _compile(jitted: Any, *args: Any) -> tuple[Any, float]:
  """The program, and how long it took to trace and compile."""
  start = time.perf_counter()
  compiled = jitted.lower(*args).compile()
  return compiled, time.perf_counter() - start


def memory_bytes(compiled: Any) -> int | None:
  """Arguments, results and temporaries of a program, shared ones once."""
  analysis = compiled.memory_analysis()
  if analysis is None:
    return None
  return int(
    analysis.argument_size_in_bytes
    + analysis.output_size_in_bytes
    + analysis.temp_size_in_bytes
    - analysis.alias_size_in_bytes
  )


def header() -> dict[str, Any]:
  """What ran on what, and how busy it was."""
  versions = {}
  for name in _PACKAGES:
    try:
      versions[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      continue
  return {
    "date": datetime.date.today().isoformat(),
    "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    "platform": jax.default_backend(),
    "cores": os.cpu_count(),
    "load": round(os.getloadavg()[0], 1),
    "python": platform.python_version(),
    **versions,
  }


def prepare() -> None:
  """Silences the chatter of orbax and JAX, and has everything compiled anew."""
  jax.config.update("jax_enable_compilation_cache", False)
  logging.set_verbosity(logging.WARNING)


def report(script: str, rows: Sequence[dict[str, Any]]) -> None:
  """Prints rows as a table; with ``--out`` also writes them as JSON."""
  head = header()
  if OUT.value is not None:
    path = pathlib.Path(OUT.value) / f"{script}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**head, "rows": list(rows)}, indent=1))
  print(" ".join(f"{key}={value}" for key, value in head.items()))
  columns = [key for key in rows[0] if key != "samples"]
  cells = [columns] + [[_cell(row.get(key)) for key in columns] for row in rows]
  widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
  for row in cells:
    line = (text.ljust(width) for text, width in zip(row, widths, strict=True))
    print(" | ".join(line).rstrip())


def _cell(value: Any) -> str:
  if value is None:
    return "-"
  return f"{value:.4g}" if isinstance(value, float) else str(value)
