"""A progress bar that counts runs an hour."""

from typing import Any

from tqdm import tqdm

_FORMAT = (
  "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} runs, "
  "{runs_per_hour} runs/h [{elapsed}<{remaining}]"
)


class Runs(tqdm):
  """Runs done, runs an hour since the start, and the time left.

  Args:
    total: runs of the study.
    made: of which are there.
    **options: of ``tqdm``.
  """

  def __init__(self, total: int, made: int, **options: Any):
    # Runs side by side end in bursts: the average is the better forecast.
    options = {"bar_format": _FORMAT, "smoothing": 0, **options}
    super().__init__(total=total, initial=made, **options)

  @property
  def format_dict(self) -> Any:
    values = super().format_dict
    hours = values["elapsed"] / 3600
    made = values["n"] - values["initial"]
    rate = f"{made / hours:.4g}" if made and hours else "?"
    return {**values, "runs_per_hour": rate}
