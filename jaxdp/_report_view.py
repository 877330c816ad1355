"""What a run report says: headline tiles, panels, the statement in words.

Plain values for the template, made from the parsed files of a run; nothing
here reads a file or writes HTML. Start with `tiles`, `privacy`, `main_panels`.
"""

import decimal
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxdp._report_chart import Panel

_LABELS = {
  "epsilon": "ε",
  "delta": "δ",
  "neighboring_relation": "Neighbouring relation",
  "privacy_unit": "Privacy unit",
  "accountant": "Accountant",
  "num_steps": "Steps charged",
  "noise_multiplier": "Noise multiplier",
  "sampler": "Sampler",
  "rule": "Clipping rule",
  "seed_policy": "Seeds",
  "dp_event": "Event",
}
# Relation -> what neighbours differ in, what an attacker wants to know.
_NEIGHBOURS = {
  "ADD_OR_REMOVE_ONE": (
    "adding or removing one {unit}",
    "whether one particular {unit} was in the training data",
  ),
  "REPLACE_ONE": (
    "replacing one {unit} by any other",
    "which of two candidates for one {unit} was in the training data",
  ),
  "REPLACE_SPECIAL": (
    "blanking out one {unit} (zero-out)",
    "whether one particular {unit} took part or was blanked out",
  ),
}
_WORDS = {
  "accountant": {
    "pld": "privacy loss distributions (pld)",
    "rdp": "Rényi differential privacy (rdp)",
    "gdp": "Gaussian differential privacy, in closed form (gdp)",
  },
  "seed_policy": {
    "os": "from the operating system; in checkpoints, not in a release",
    "named": "named by the user: a research run",
  },
}
_ALPHA = 0.01  # the false-positive rate of the example in words
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def subtitle(config: Mapping[str, Any], versions: Mapping[str, Any]) -> str:
  """Data, model and device, as far as the files name them.

  >>> subtitle({"data": {"name": "digits"}, "model": {"name": "mlp"}}, {})
  'digits · mlp'
  """
  sections = (config.get("data"), config.get("model"))
  names = [s.get("name") for s in sections if isinstance(s, Mapping)]
  return " · ".join(str(x) for x in (*names, versions.get("device")) if x)


def tiles(
  config: Mapping[str, Any],
  statement: Mapping[str, Any],
  metrics: Sequence[Mapping[str, Any]],
) -> list[dict[str, str]]:
  """The headline numbers, each with label, value, note and css_class."""
  shown = []

  def tile(label: str, value: str, note: str = "", css_class: str = "") -> None:
    shown.append(
      {"label": label, "value": value, "note": note, "css_class": css_class}
    )

  steps, accuracies = _series(metrics, "test_accuracy")
  if accuracies:
    note = f"at step {steps[-1]:,}"
    tile("Test accuracy", _percent(accuracies[-1]), note, "accuracy")
  epsilon, delta = _guarantee(statement)
  if epsilon is None:
    tile("Privacy loss ε", "∞", "no guarantee", "danger")
  else:
    tile("Privacy loss ε", _epsilon_text(epsilon), f"at δ = {delta}", "epsilon")
  words, size = _batch(statement.get("sampler"), config.get("sampler"))
  num_steps = statement.get("num_steps") or (metrics and metrics[-1]["step"])
  if num_steps:
    tile("Steps", f"{num_steps:,}", words.format(f"{size:,.6g}"))
  steps, rates = _series(metrics, "examples_per_second")
  if rates and min(rates) > 0:
    tile("Examples / s", f"{statistics.median(rates):,.0f}", "median")
    spans = zip(steps, [0, *steps], rates, strict=False)
    seconds = sum((end - begin) * size / rate for end, begin, rate in spans)
    if seconds:
      tile("Training time", _duration(seconds), "without evaluation")
  return shown


def privacy(statement: Mapping[str, Any]) -> dict[str, Any]:
  """The guarantee in words, the table of the statement, its two lists.

  ``power`` is what the guarantee says to an attacker: the largest
  true-positive rate of any test that is wrong about one non-member in 100.
  """
  epsilon, delta = _guarantee(statement)
  unit = str(statement.get("privacy_unit") or "example")
  relation = str(statement.get("neighboring_relation") or "")
  member = relation.rpartition(".")[2].upper().replace("-", "_")
  change, question = _NEIGHBOURS.get(
    member, (relation or "an unstated change of the data", "")
  )
  power = 1.0
  if epsilon is not None:
    power = _power(epsilon, _finite(statement.get("delta")))
  return {
    "private": epsilon is not None,
    "epsilon": "∞" if epsilon is None else _epsilon_text(epsilon),
    "delta": delta,
    "change": change.format(unit=unit),
    "question": question.format(unit=unit),
    "alpha": f"{_ALPHA:.0%}".replace("%", " %"),
    "power": f"{_round_up(100 * power, 1)} %",
    "rows": {
      _LABELS.get(key, _title(key)): _shown(key, value)
      for key, value in _in_order(statement)
      if key not in ("assumptions", "warnings") and value not in (None, "")
    },
    "assumptions": _as_list(statement.get("assumptions")),
    "warnings": _as_list(statement.get("warnings")),
  }


def main_panels(
  config: Mapping[str, Any],
  statement: Mapping[str, Any],
  metrics: Sequence[Mapping[str, Any]],
) -> list[Panel]:
  """Test accuracy and epsilon over steps; without values, no panel."""
  panels = []
  steps, accuracies = _series(metrics, "test_accuracy")
  if accuracies:
    panels.append(
      Panel(
        title="Test accuracy",
        steps=steps,
        values=accuracies,
        tick=lambda y: f"{100 * y:.6g} %",
        label=_percent,
        css_class="accuracy",
      )
    )
  steps, epsilons = _series(metrics, "epsilon")
  epsilon, delta = _guarantee(statement)
  if epsilons and epsilon is not None:
    budget = _finite(_find(config, "target_epsilon"))
    panels.append(
      Panel(
        title=f"Privacy loss ε at δ = {delta}",
        steps=steps,
        values=epsilons,
        label=lambda y: f"ε = {_epsilon_text(y)}",
        from_zero=True,
        reference=(budget, f"budget {budget:g}") if budget else None,
        css_class="epsilon",
      )
    )
  return panels


def sensitive_panels(metrics: Sequence[Mapping[str, Any]]) -> list[Panel]:
  """One panel per sensitive diagnostic; empty if none was asked for."""
  rows = [
    {**row["sensitive"], "step": row["step"]}
    for row in metrics
    if isinstance(row.get("sensitive"), Mapping)
  ]
  panels = []
  for key in dict.fromkeys(key for row in rows for key in row if key != "step"):
    steps = [row["step"] for row in rows if key in row]
    table = np.array([_numbers(row[key]) for row in rows if key in row], float)
    if not np.isfinite(table).any(axis=0).all():
      continue
    # Of several numbers (quantiles, groups) the middle one is the bold curve.
    curves = list(table.T)
    values = curves.pop(len(curves) // 2)
    panels.append(
      Panel(
        title=_title(key)
        + (f" (bold: the middle of {len(curves) + 1})" if curves else ""),
        steps=steps,
        values=values,
        others=curves,
        label=lambda y: f"{y:.3g}",
        css_class="sensitive",
      )
    )
  return panels


def _numbers(value: Any) -> list[float | None]:
  return [_finite(x) for x in (value if isinstance(value, list) else [value])]


def _series(
  rows: Sequence[Mapping[str, Any]], key: str
) -> tuple[list[int], list[float]]:
  """Steps and values of one metric, where it is a finite number."""
  pairs = [(row["step"], _finite(row.get(key))) for row in rows]
  kept = [(step, value) for step, value in pairs if value is not None]
  return [step for step, _ in kept], [value for _, value in kept]


def _guarantee(statement: Mapping[str, Any]) -> tuple[float | None, str]:
  """Epsilon (None: no guarantee) and delta as text."""
  delta = _finite(statement.get("delta"))
  text = _power_of_ten(delta) if delta else "0"
  return _finite(statement.get("epsilon")), text


def _power(epsilon: float, delta: float | None) -> float:
  """Largest true-positive rate of any test at false-positive rate _ALPHA.

  Kairouz et al. 2015, arXiv:1311.0776, Theorem 2.1: the two error rates a, b
  of a test obey a + e^eps b >= 1 - delta and b + e^eps a >= 1 - delta.
  """
  delta = delta or 0.0
  rare = math.exp(min(epsilon, 100)) * _ALPHA + delta
  common = 1 - math.exp(-epsilon) * (1 - delta - _ALPHA)
  return min(1.0, rare, common)


def _in_order(statement: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
  """Known fields, the most important first, then all others."""
  yield from ((key, statement[key]) for key in _LABELS if key in statement)
  yield from ((k, v) for k, v in statement.items() if k not in _LABELS)


def _shown(key: str, value: Any) -> Any:
  """A field of the statement, in words and digits that a person reads."""
  if key == "epsilon":
    return _round_up(value, 6) if _finite(value) is not None else "∞"
  if isinstance(value, float):
    return f"{value:.6g}"
  return _WORDS.get(key, {}).get(value, value) if key in _WORDS else value


def _title(key: str) -> str:
  return key.replace("_", " ").capitalize()


def _batch(*samplers: Any) -> tuple[str, float]:
  """A note on the batch, to be filled in, and its size; 0 if unknown."""
  for sampler in samplers:
    for key, words in (
      ("expected_batch_size", "≈ {} examples each"),
      ("batch_size", "{} examples each"),
      ("num_examples", "all {} examples each"),
    ):
      size = _finite(_find(sampler, key))
      if size:
        return words, size
  return "", 0.0


def _find(tree: Any, key: str) -> Any:
  """The first value of ``key`` at any depth of nested dicts, else None."""
  if not isinstance(tree, Mapping):
    return None
  if tree.get(key) is not None:
    return tree[key]
  found = (_find(value, key) for value in tree.values())
  return next((value for value in found if value is not None), None)


def _finite(value: Any) -> float | None:
  """A finite number, or None: null, NaN, "inf" and text are not one."""
  try:
    number = float(value)
  except (TypeError, ValueError):
    return None
  return number if math.isfinite(number) else None


def _as_list(value: Any) -> list[str]:
  if not value:
    return []
  return [value] if isinstance(value, str) else [str(item) for item in value]


def _round_up(value: float, digits: int) -> str:
  """Up at the last digit shown: a privacy loss is never understated."""
  exact = decimal.Decimal(str(float(value)))
  return f"{exact.quantize(decimal.Decimal(10) ** -digits, 'ROUND_CEILING'):,}"


def _epsilon_text(epsilon: float) -> str:
  return _round_up(epsilon, 2 if epsilon >= 0.1 else 4)


def _percent(fraction: float) -> str:
  return f"{100 * fraction:.1f} %"


def _power_of_ten(value: float) -> str:
  """1e-05 as 10⁻⁵, 2.5e-06 as 2.5 × 10⁻⁶."""
  mantissa, _, exponent = f"{value:.3e}".partition("e")
  mantissa = mantissa.rstrip("0").rstrip(".")
  power = f"10{str(int(exponent)).translate(_SUPERSCRIPT)}"
  return power if mantissa == "1" else f"{mantissa} × {power}"


def _duration(seconds: float) -> str:
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours:,} h {minutes:02} min"
  return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"
