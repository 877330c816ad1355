r"""Which hyperparameters of DP-SGD matter (arXiv:2411.02051), on texts.

    python scripts/study.py --config=configs/studies/rr_text.py:log \
      --workdir=runs/rr_text_log --minutes=25

IMDB reviews and an LSTM in bfloat16 on frozen random embeddings, as in
`configs/imdb.py`; a fixed draw of 5,000 reviews trains, at epsilon 7.5, 100
runs and 20 more of other seeds, under the law `published`, `log` or
`normalized`, see `_rr.py`. The same command goes on where the one before
stopped.
"""

import ml_collections

from configs.studies import _rr


def get_config(law: str = "log") -> ml_collections.ConfigDict:
  return _rr.survey(
    law,
    dataset="imdb_reviews",
    model={"name": "lstm", "num_classes": 2, "dtype": "bfloat16"},
    num_examples=5_000,
    delta=1e-5,
    epsilons=(7.5,),
    epochs=(5, 50),
    published_epochs=(5, 50),
    num_runs=100,
    num_repeated=5,
    title="Hyperparameters of DP-SGD, on IMDB reviews",
  )
