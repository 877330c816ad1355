"""Analyses of a study's runs: what matters, how, and how sure that is.

Pure functions of pandas tables with one row a run. Columns have one name
everywhere: `lr`, `C`, `batch_size`, `epochs`, `q`, `num_steps`, `accuracy`; and
of the cells `dataset`, `model`, `epsilon`.

| question | function |
|---|---|
| which factors matter, and together with which | `fanova` |
| how does the response move with a factor | `ale`, `ale_interaction` |
| and in single runs, or with the others held | `ice`, `pdp`, `pdp_surface` |
| do lr and C lie on a ridge | `ridge`, `rank_correlation` |
| does C matter but through lr C | `gain`, `explained`, `residuals` |
| do arms differ | `compare`, `holm` |
| how much is the seed | `noise_floor` |
| what do the runs say about the field's conjectures | `verdicts` |
| what do the published runs say | `read_published`, `published_factors` |

Every number has an interval, and every function says what it covers. Read
``_fanova.py`` first.

Example:
  >>> from jaxdp.studies import analysis, design
  >>> laws = [design.Factor("lr", 0, 1), design.Factor("C", 0, 1)]
  >>> runs = design.latin_hypercube(laws, 256)
  >>> runs["accuracy"] = runs.lr + 2 * runs.C
  >>> shares = analysis.fanova(runs, laws, num_trees=32).table
  >>> shares.share.round(1).tolist()  # of lr, C and their interaction
  [0.2, 0.8, 0.0]
"""

from jaxdp.studies.analysis._effects import (
  Curves,
  ale,
  ale_interaction,
  ice,
  pdp,
  pdp_surface,
)
from jaxdp.studies.analysis._fanova import Fanova, fanova
from jaxdp.studies.analysis._published import (
  CONTEXT,
  SETS,
  published_factors,
  read_published,
)
from jaxdp.studies.analysis._ridge import (
  best,
  rank_correlation,
  ridge,
  with_rate,
)
from jaxdp.studies.analysis._smooth import Gain, explained, gain, residuals
from jaxdp.studies.analysis._statistics import (
  NoiseFloor,
  compare,
  holm,
  noise_floor,
)
from jaxdp.studies.analysis._surrogate import scaled, surrogate
from jaxdp.studies.analysis._verdicts import (
  confounding,
  rate_name,
  through_rate,
  verdicts,
)

__all__ = [
  "CONTEXT",
  "SETS",
  "Curves",
  "Fanova",
  "Gain",
  "NoiseFloor",
  "ale",
  "ale_interaction",
  "best",
  "compare",
  "confounding",
  "explained",
  "fanova",
  "gain",
  "holm",
  "ice",
  "noise_floor",
  "pdp",
  "pdp_surface",
  "published_factors",
  "rank_correlation",
  "rate_name",
  "read_published",
  "residuals",
  "ridge",
  "scaled",
  "surrogate",
  "through_rate",
  "verdicts",
  "with_rate",
]
