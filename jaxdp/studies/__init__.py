"""Studies: many private trainings, as a table, an analysis and a report.

A study is a config (``configs/studies/``): a base experiment, arms that change
something in it, what each arm may tune, and seeds. ``run`` executes it in
instalments, ``report`` draws what there is. Read ``_design.py``, then
``_sweep.py``.

A survey has factors instead of arms: runs at points of a design
(``jaxdp.studies.design``), made by ``run_survey``, and analysed by
``jaxdp.studies.analysis``; ``report_survey`` draws them. Read ``_survey.py``,
then ``_stream.py``.
"""

from jaxdp.studies._design import Design, Run
from jaxdp.studies._run import report, run
from jaxdp.studies._summary import chosen, interval, paired, summarize
from jaxdp.studies._survey import Survey
from jaxdp.studies._survey_report import report_survey
from jaxdp.studies._survey_run import run_survey, survey_groups
from jaxdp.studies._sweep import Results, Sweep

__all__ = [
  "Design",
  "Results",
  "Run",
  "Survey",
  "Sweep",
  "chosen",
  "interval",
  "paired",
  "report",
  "report_survey",
  "run",
  "run_survey",
  "summarize",
  "survey_groups",
]
