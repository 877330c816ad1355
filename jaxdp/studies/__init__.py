"""Studies: many private trainings, as a table, an analysis and a report.

A study is a config (``configs/studies/``): a base experiment, arms that change
something in it, what each arm may tune, and seeds. ``run`` executes it in
instalments, ``report`` draws what there is. Read ``_design.py``, then
``_sweep.py``. A survey samples factors instead of comparing arms;
``report_survey`` draws it from its table of runs.
"""

from jaxdp.studies._design import Design, Run
from jaxdp.studies._run import report, run
from jaxdp.studies._summary import chosen, interval, paired, summarize
from jaxdp.studies._survey_report import report_survey
from jaxdp.studies._sweep import Results, Sweep

__all__ = [
  "Design",
  "Results",
  "Run",
  "Sweep",
  "chosen",
  "interval",
  "paired",
  "report",
  "report_survey",
  "run",
  "summarize",
]
