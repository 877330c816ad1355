"""The 3,822 published runs of arXiv:2411.02051, analysed with our tools.

    python scripts/report.py --config=configs/studies/rr_published.py \
      --workdir=runs/rr_published

Nothing trains. The authors' CSV files are read from the folder rr_2411_02051 in
JAXDP_PUBLISHED_DIR. About 5 minutes on one CPU core.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  report = {
    "title": "DP-SGD's hyperparameters: published runs",
    "texts": (
      "Which of batch size, epochs, learning rate and clip norm matter for the "
      "accuracy of DP-SGD, which interact, and do the field's conjectures "
      "hold? The runs are those that Morsbach, Reubold and Strufe published "
      "with arXiv:2411.02051; the conjectures are in our words, and the "
      "analyses ours.",
      "Plain DP-SGD: flat clipping, Poisson sampling, the noise calibrated to "
      "ε. The batch size was drawn too, uniform on 16, 32, .., N, but the "
      "loader cut the data into batches and passed on their number, so what "
      "trained is q = 1/⌈N/B⌉, as the recorded noise confirms.",
    ),
    "context": ("dataset", "model", "epsilon"),
    "factors": {
      "lr": {"low": 1e-5, "high": 10.0},
      "C": {"low": 1e-5, "high": 10.0},
      "epochs": {"low": 25, "high": 500, "step": 5},
      "q": "sample",
    },
    "published": "rr_2411_02051",
    "sets": ("image.simple", "image.advanced", "text.simple"),
    "split": "",
    "num_trees": 128,
    "num_refits": 20,
    "num_bootstrap": 1000,
  }
  return ml_collections.ConfigDict({"report": report})
