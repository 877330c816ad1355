"""Looking into a ``DpEvent``: its releases, is it private, its record."""

import math
from collections.abc import Mapping
from typing import Any

import attr
import dp_accounting
from dp_accounting import NeighboringRelation

from jaxdp.accounting import _gdp


def leaves(event: dp_accounting.DpEvent) -> dict[dp_accounting.DpEvent, int]:
  """How often each release happens in ``event``, compositions taken apart."""
  counts: dict[dp_accounting.DpEvent, int] = {}

  def walk(event: dp_accounting.DpEvent, count: int) -> None:
    if count == 0 or isinstance(event, dp_accounting.NoOpDpEvent):
      return
    if isinstance(event, dp_accounting.SelfComposedDpEvent):
      walk(event.event, count * event.count)
    elif isinstance(event, dp_accounting.ComposedDpEvent):
      for part in event.events:
        walk(part, count)
    else:
      counts[event] = counts.get(event, 0) + count

  walk(event, 1)
  return counts


def merge(event: dp_accounting.DpEvent) -> dp_accounting.DpEvent:
  """The same releases, equal ones counted together."""
  parts = [
    dp_accounting.SelfComposedDpEvent(release, count)
    for release, count in leaves(event).items()
  ]
  if not parts:
    return dp_accounting.NoOpDpEvent()
  return parts[0] if len(parts) == 1 else dp_accounting.ComposedDpEvent(parts)


def is_private(event: dp_accounting.DpEvent) -> bool:
  """Whether nothing in ``event`` is released without noise."""
  if isinstance(event, dp_accounting.NonPrivateDpEvent):
    return False
  if isinstance(event, dp_accounting.SelfComposedDpEvent) and event.count == 0:
    return True
  if getattr(event, "noise_multiplier", 1.0) == 0:
    return False
  inner = [*getattr(event, "events", ())]
  if hasattr(event, "event"):
    inner.append(event.event)
  return all(is_private(part) for part in inner)


def clt_mu(
  releases: dict[dp_accounting.DpEvent, int], relation: NeighboringRelation
) -> float:
  """The mu that the releases are near to: a guess, never a guarantee."""
  mus = []
  for release, count in releases.items():
    sigma = getattr(release, "event", release).noise_multiplier
    if isinstance(release, dp_accounting.GaussianDpEvent):
      mus.append(math.sqrt(count) / sigma)
      continue
    mu = _gdp.poisson_clt_mu(release.sampling_probability, sigma, count)
    if relation == NeighboringRelation.REPLACE_ONE:  # sigma is std/R there.
      mu *= 2
    mus.append(min(mu, math.sqrt(count) / sigma))
  return _gdp.compose(mus)


def to_dict(event: dp_accounting.DpEvent) -> dict[str, Any]:
  """An event as JSON-able data.

  >>> to_dict(dp_accounting.GaussianDpEvent(2.0))
  {'type': 'GaussianDpEvent', 'noise_multiplier': 2.0}
  """
  fields = attr.asdict(event, recurse=False)
  return {
    "type": type(event).__name__,
    **{name: _value_to_json(value) for name, value in fields.items()},
  }


def from_dict(fields: Mapping[str, Any]) -> dp_accounting.DpEvent:
  """The event that ``to_dict`` described."""
  values = dict(fields)
  name = values.pop("type", None)
  cls = getattr(dp_accounting.dp_event, str(name), None)
  if not (isinstance(cls, type) and issubclass(cls, dp_accounting.DpEvent)):
    raise ValueError(
      f"unknown DpEvent {name!r}: the record was edited or comes from another "
      "version of dp-accounting."
    )
  return cls(**{k: _value_from_json(v) for k, v in values.items()})


def _value_to_json(value: Any) -> Any:
  if isinstance(value, dp_accounting.DpEvent):
    return to_dict(value)
  if isinstance(value, list | tuple):
    return [_value_to_json(item) for item in value]
  return value


def _value_from_json(value: Any) -> Any:
  if isinstance(value, Mapping):
    return from_dict(value)
  if isinstance(value, list):
    return [_value_from_json(item) for item in value]
  return value
