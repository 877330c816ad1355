"""The part of the PSASC study that no other has: its slope s.

(C, s) is a factor C/s of the learning rate times PSAC with r/s in place of r in
the numerator (``clipping.psasc``). So s is swept twice from the tuned run: with
lr C / s held, which shows what s does, and with lr held, as it was published,
which also moves the step.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping

from jaxdp.studies._design import Design, Run

MATCHED, UNMATCHED = "s, lr C/s held", "s, lr held"


def slopes(
  design: Design, best: Mapping[tuple[str, str], Run]
) -> Iterator[Run]:
  """PSASC at each slope of ``options["slopes"]``, on the evaluation seeds."""
  values, arm = design.options.get("slopes", ()), design.options.get("sloped")
  for setting, s in itertools.product(design.settings, values):
    base = best.get((setting, arm)) if arm is not None else None
    if base is None:
      continue
    before = design.config(base)["rule"]["s"]
    for stage, rate in (
      (MATCHED, base.rate),
      (UNMATCHED, base.rate * before / s),
    ):
      for seed in design.seeds:
        yield dataclasses.replace(
          base,
          stage=stage,
          rate=rate,
          seed=seed,
          overrides={**base.overrides, "rule.s": s},
        )
