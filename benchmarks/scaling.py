"""How time and memory of clipping grow with the work, by engine.

Gradient, clip and sum for one batch, without an optimizer: sweeps over batch
size, tokens, width, kernel size and vocabulary, each for a non-private gradient
of the same loss, the engines of jaxdp, and jax_privacy if it is installed.
Writes a table, and with ``--out`` JSON and ``scaling.svg``.

  PYTHONPATH=. python benchmarks/scaling.py --sweeps=batch,tokens --out=runs/s
"""

import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator

import jaxdp
from benchmarks import _models, _timing

_SWEEPS = flags.DEFINE_list(
  "sweeps", ["batch", "tokens", "width", "kernel", "vocabulary"], "Which."
)
_BATCH_SIZE = flags.DEFINE_integer(
  "batch_size", 16, "Sequences of a batch, and half its images."
)
_ENGINES = ("auto", "factored", "stacked")
_BASELINE = "non-private"


def _convolution(size: int, batch_size: int) -> _models.Task:
  """Three convolutions of 32 channels with kernels of this size."""
  rng = np.random.default_rng(0)
  shapes = [(size, size, 3, 32), (size, size, 32, 32), (size, size, 32, 32)]
  params = [
    jnp.asarray(rng.standard_normal(s, np.float32) / np.sqrt(np.prod(s[:3])))
    for s in shapes
  ]

  def loss_fn(params: Any, x: jax.Array) -> jax.Array:
    for kernel in params:
      x = jnp.tanh(
        jax.lax.conv_general_dilated(
          x[None], kernel, (1, 1), "SAME",
          dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )[0]
      )  # fmt: skip
    return jnp.mean(x**2)

  batch = jnp.asarray(rng.standard_normal((batch_size, 16, 16, 3), np.float32))
  return _models.Task(loss_fn, params, batch, batch_size)


def _transformer(**size: int) -> _models.Task:
  return _models.transformer(_BATCH_SIZE.value, layers=1, **size)


_Sweep = tuple[tuple[int, ...], Callable[[int], _models.Task]]
_ALL: dict[str, _Sweep] = {
  "batch": (
    (16, 64, 256, 1024),
    functools.partial(_models.images, "tanh_cnn", (28, 28, 1)),
  ),
  "tokens": ((16, 64, 256, 1024), lambda n: _transformer(length=n)),
  "width": ((32, 128, 512, 2048), lambda n: _transformer(width=n)),
  "kernel": (
    (1, 3, 5, 7),
    lambda n: _convolution(n, 2 * _BATCH_SIZE.value),
  ),
  "vocabulary": (
    (100, 1000, 10_000, 100_000),
    lambda n: _transformer(vocabulary=n),
  ),
}


def _variants(task: _models.Task) -> Iterator[_timing.Variant]:
  mask = jnp.zeros(task.batch_size, bool)
  args = (task.params, task.batch, mask)
  gradient = jax.jit(_models.gradient(task.loss_fn))
  yield _timing.stateless(_BASELINE, gradient, *args)
  rule = jaxdp.clipping.flat(1.0)
  for engine in _ENGINES:
    method: Any = engine
    clip = jaxdp.clipped_sum(task.loss_fn, rule, method)
    fun = jax.jit(lambda *args, clip=clip: clip(*args)[0].grads)
    yield _timing.stateless(engine, fun, *args)
  try:
    import jax_privacy
  except ImportError:
    return
  peer = jax_privacy.clipped_grad(
    task.loss_fn, l2_clip_norm=1.0, keep_batch_dim=False
  )
  fun = jax.jit(lambda p, b, m: peer(p, b, is_padding_example=m))
  yield _timing.stateless("jax_privacy", fun, *args)


def _rows(sweep: str) -> list[dict[str, Any]]:
  values, make = _ALL[sweep]
  rows = []
  for value in values[:2] if _timing.QUICK.value else values:
    task = make(value)
    for row in _timing.compare(f"{sweep} {value}", list(_variants(task))):
      size = task.batch_size
      row |= {"sweep": sweep, "value": value, "us/example": row["ms"] / size}
      row["us/example"] *= 1000
      if row["MiB"] is not None:
        row["KiB/example"] = row["MiB"] * 1024 / size
      rows.append(row)
  return rows


def _draw(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
  sweeps = list(dict.fromkeys(row["sweep"] for row in rows))
  figure = Figure(
    figsize=(2.6 * len(sweeps) + 1.2, 5), layout="constrained", dpi=100
  )
  panels = figure.subplots(2, len(sweeps), squeeze=False, sharex="col")
  for column, sweep in zip(panels.T, sweeps, strict=True):
    for axes, measure in zip(column, ("x time", "KiB/example"), strict=True):
      mine = [r for r in rows if r["sweep"] == sweep and r.get(measure)]
      for i, variant in enumerate(dict.fromkeys(r["variant"] for r in mine)):
        points = [
          (r["value"], r[measure]) for r in mine if r["variant"] == variant
        ]
        x, y = zip(*points, strict=True)
        axes.plot(x, y, marker="os^Dv"[i], ms=4, label=variant)
      axes.set_xscale("log")
      if measure != "x time":
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_yticks([], minor=True)
      axes.set_xticks(sorted({r["value"] for r in mine}))
      axes.xaxis.set_major_formatter(EngFormatter(sep="", places=0))
      axes.set_xticks([], minor=True)
      axes.grid(alpha=0.3)
      axes.spines[["top", "right"]].set_visible(False)
    column[0].set_title(sweep, fontsize=10)
  panels[0, 0].set_ylabel("time over non-private")
  panels[1, 0].set_ylabel("KiB an example")
  panels[0, -1].legend(
    fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1)
  )
  figure.savefig(path)


def main(argv: list[str]) -> None:
  del argv
  _timing.prepare()
  rows: list[dict[str, Any]] = []
  for sweep in _SWEEPS.value:
    rows += _rows(sweep)
    _timing.report("scaling", rows)
    if _timing.OUT.value is not None:
      _draw(rows, pathlib.Path(_timing.OUT.value) / "scaling.svg")


if __name__ == "__main__":
  app.run(main)
