r"""Which hyperparameters of DP-SGD matter (arXiv:2411.02051), on digits.

    python scripts/study.py --config=configs/studies/rr_digits.py:published \
      --workdir=runs/rr_digits_published

An MLP at epsilon 3 and 7.5, 200 runs each and 40 more of other seeds, under
the law `published`, `log` or `normalized`, see `_rr.py`; about 10 minutes of
two CPU cores a law.
"""

import ml_collections

from configs.studies import _rr


def get_config(law: str = "published") -> ml_collections.ConfigDict:
  return _rr.survey(
    law,
    dataset="digits",
    model={"name": "mlp", "num_classes": 10},
    num_examples=1437,
    delta=1e-4,
    epsilons=(3.0, 7.5),
    epochs=(5, 200),
    published_epochs=(25, 500),
    num_runs=200,
    num_repeated=10,
    title="Hyperparameters of DP-SGD, on digits",
  )
