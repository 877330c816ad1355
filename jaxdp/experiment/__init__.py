"""From a config to a run: the one place that reads a ConfigDict.

``train``, ``evaluate`` and ``plan`` are what the scripts call. A config names a
data set, a model, a clipping rule, a sampler, an optimizer and a budget;
``ExperimentConfig`` checks all of it before anything is loaded or compiled.
"""

from jaxdp.experiment._config import ExperimentConfig
from jaxdp.experiment._run import evaluate, plan, train

__all__ = ["ExperimentConfig", "evaluate", "plan", "train"]
