r"""Which hyperparameters of DP-SGD matter (arXiv:2411.02051), on images.

    python scripts/study.py --config=configs/studies/rr_images.py:mnist-log \
      --workdir=runs/rr_mnist_log --minutes=25

`mnist`: the tanh CNN of 26,010 parameters; `cifar10`: DP-CNN in bfloat16; each
on a fixed draw of 10,000 training images, at epsilon 7.5 and 3, 80 runs each
and 32 more of other seeds, under the law `published`, `log` or `normalized`,
see `_rr.py`. The same command goes on where the one before stopped.
"""

import ml_collections

from configs.studies import _rr

_MODELS = {
  "mnist": {"name": "tanh_cnn", "num_classes": 10},
  "cifar10": {"name": "dp_cnn", "num_classes": 10, "dtype": "bfloat16"},
}


def get_config(name: str = "mnist-log") -> ml_collections.ConfigDict:
  dataset, _, law = name.partition("-")
  if dataset not in _MODELS:
    raise ValueError(f"Give mnist-LAW or cifar10-LAW, got {name!r}.")
  return _rr.survey(
    law,
    dataset=dataset,
    model=_MODELS[dataset],
    num_examples=10_000,
    delta=1e-5,
    epsilons=(7.5, 3.0),
    epochs=(5, 50),
    published_epochs=(5, 50),
    num_runs=80,
    num_repeated=8,
    title=f"Hyperparameters of DP-SGD, on {dataset.upper()}",
  )
