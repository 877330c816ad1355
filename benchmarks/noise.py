"""Noise with exact tails against ``jax.random.normal``.

``standard_normal`` takes 96 random bits a value where ``jax.random.normal``
takes 32, and has no temporary arrays.

  python benchmarks/noise.py
"""

from typing import Any

import jax
from absl import app

import jaxdp
from benchmarks import _timing


def main(argv: list[str]) -> None:
  del argv
  _timing.prepare()
  key = jax.random.key(0)
  rows: list[dict[str, Any]] = []
  sizes = (1000,) if _timing.QUICK.value else (26_010, 550_570, 10_000_000)
  for size in sizes:
    variants = []
    for name, fun in (
      ("jax.random.normal", jax.random.normal),
      ("jaxdp", jaxdp.noise.standard_normal),
    ):
      jitted = jax.jit(lambda key, fun=fun, size=size: fun(key, (size,)))
      variants.append(_timing.stateless(name, jitted, key))
    timings = _timing.interleave(variants)
    base = timings[variants[0].name]
    for variant in variants:
      timing = timings[variant.name]
      memory = variant.memory or 0
      rows.append(
        {
          "values": size,
          "variant": variant.name,
          "ms": timing.median * 1e3,
          "iqr %": timing.spread * 100,
          "x time": timing.over(base),
          "MiB": memory / 2**20,
          "samples": timing.seconds.tolist(),
        }
      )
  _timing.report("noise", rows)


if __name__ == "__main__":
  app.run(main)
