"""Studies: many private trainings, as a table, an analysis and a report.

A study is a config (``configs/studies/``): a base experiment, arms that change
something in it, what each arm may tune, and seeds. ``run`` executes it in
instalments, ``report`` draws what there is. Read ``_design.py``, then
``_sweep.py``.

A survey has factors instead of arms: runs at points of a design
(``jaxdp.studies.design``), made by ``run_survey``, and analysed by
``jaxdp.studies.analysis``; ``report_survey`` draws them, and
``compare_surveys`` sets several beside each other. An executor says where runs
are made: ``LocalExecutor``, ``RayExecutor``. Read ``_survey.py``, then
``_stream.py``.

``statement`` is the privacy statement of one run of either.
"""

from jaxdp.studies._catalogue import catalogue
from jaxdp.studies._design import Design, Run
from jaxdp.studies._executors import Executor, LocalExecutor
from jaxdp.studies._ray_executor import RayExecutor
from jaxdp.studies._run import report, run
from jaxdp.studies._statement import statement
from jaxdp.studies._summary import chosen, interval, paired, summarize
from jaxdp.studies._survey import Survey
from jaxdp.studies._survey_compare import compare_surveys
from jaxdp.studies._survey_report import report_survey
from jaxdp.studies._survey_run import run_survey, survey_groups
from jaxdp.studies._sweep import Results, Sweep

__all__ = [
  "Design",
  "Executor",
  "LocalExecutor",
  "RayExecutor",
  "Results",
  "Run",
  "Survey",
  "Sweep",
  "catalogue",
  "chosen",
  "compare_surveys",
  "interval",
  "paired",
  "report",
  "report_survey",
  "run",
  "run_survey",
  "statement",
  "summarize",
  "survey_groups",
]
