"""Finding the noise, the steps or the batch size that meet a target epsilon.

Each search runs up a ladder of ways to get epsilon, cheap ones first: a
closed-form guess, the privacy loss distribution on a coarse grid and without
the cut of the batch, and at last the accountant's own value of the true event.
Each rung starts where the one before ended, so that the last, which takes
seconds where a batch is cut, is asked once or twice. Only its value decides.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Protocol, Self, TypeVar

import dp_accounting
from dp_accounting import NeighboringRelation

from jaxdp.accounting import _epsilon, _events, _gdp, _validate
from jaxdp.sampling import Poisson, Sampler

# Epsilon of the result over the target: never above 1, and this near to it.
_WINDOW = (1 - 5e-4, 1.0)
_AIM = 1 - 2e-4
# PLD grows without bound as the noise goes to 0, where epsilon means nothing.
_LEAST_NOISE = {"pld": 0.2, "rdp": 0.01, "gdp": 1e-6}
_MOST_NOISE = 1e7
_MOST_STEPS = 10**8


class CalibratedMechanism(Protocol):
  """What calibration needs of a mechanism; see ``jaxdp.Mechanism``."""

  @property
  def sampler(self) -> Sampler: ...

  @property
  def noise_multiplier(self) -> Any: ...

  @property
  def neighboring_relation(self) -> NeighboringRelation | None: ...

  @property
  def accountant(self) -> str: ...

  def dp_event(self, num_steps: int) -> dp_accounting.DpEvent: ...

  def replace(self, **changes: Any) -> Self: ...


_Mechanism = TypeVar("_Mechanism", bound=CalibratedMechanism)


def calibrate_noise(
  mechanism: _Mechanism,
  *,
  target_epsilon: float,
  target_delta: float,
  num_steps: int,
) -> _Mechanism:
  """A copy with the least noise that meets the target.

  Args:
    mechanism: its ``noise_multiplier`` may be None and is not read.
    target_epsilon: > 0 and finite.
    target_delta: inside (0, 1).
    num_steps: steps that will be run.

  Guarantees:
    Epsilon of the copy is at most the target, and at least 0.999 of it.

  Example:
    >>> import jaxdp
    >>> mechanism = jaxdp.calibrate_noise(
    ...   jaxdp.Mechanism(
    ...     jaxdp.clipping.flat(1.0), jaxdp.sampling.FullBatch(1000)
    ...   ),
    ...   target_epsilon=2.0,
    ...   target_delta=1e-5,
    ...   num_steps=100,
    ... )
    >>> round(mechanism.noise_multiplier, 2)
    19.94
  """
  target = _Target.of(mechanism, target_epsilon, target_delta)
  num_steps = _validate.integer("num_steps", num_steps, minimum=1)

  def event(noise_multiplier: float) -> dp_accounting.DpEvent:
    return mechanism.replace(noise_multiplier=noise_multiplier).dp_event(
      num_steps
    )

  least = _LEAST_NOISE[mechanism.accountant]
  result, slope = 1.0, -1.5
  for rung in target.ladder(event(1.0)):
    result, slope = _solve_falling(
      lambda x, rung=rung: rung(event(x)),  # type: ignore[misc]
      target.epsilon,
      guess=min(max(result, least), _MOST_NOISE),
      slope=slope,
      ends=(least, _MOST_NOISE),
    )
  # The last rung is the accountant itself.
  if result > _MOST_NOISE:
    raise ValueError(
      f"target_epsilon={target_epsilon} at target_delta={target_delta} is "
      f'below what the accountant "{mechanism.accountant}" can show for '
      f"num_steps={num_steps} with any noise. Raise target_epsilon or "
      "target_delta."
    )
  if result < least:
    raise ValueError(
      f"target_epsilon={target_epsilon} at target_delta={target_delta} is met "
      f"by any noise_multiplier down to {least} for num_steps={num_steps}, "
      "below which an epsilon says little. Lower target_epsilon, or set "
      "noise_multiplier yourself."
    )
  return mechanism.replace(noise_multiplier=result)


def calibrate_steps(
  mechanism: CalibratedMechanism, *, target_epsilon: float, target_delta: float
) -> int:
  """The largest number of steps that meets the target.

  Example:
    >>> import jaxdp
    >>> mechanism = jaxdp.Mechanism(
    ...   jaxdp.clipping.flat(1.0),
    ...   jaxdp.sampling.FullBatch(1000),
    ...   noise_multiplier=20.0,
    ... )
    >>> jaxdp.calibrate_steps(mechanism, target_epsilon=2.0, target_delta=1e-5)
    100
  """
  target = _Target.of(mechanism, target_epsilon, target_delta)
  steps = target.largest(mechanism.dp_event, limit=_MOST_STEPS, power=0.5)
  if steps == 0:
    raise ValueError(
      f"one step already costs epsilon={target.cost(mechanism.dp_event(1)):.4g}"
      f" at target_delta={target_delta}, more than target_epsilon="
      f"{target_epsilon}. Raise noise_multiplier={mechanism.noise_multiplier} "
      "or the target, or lower the batch size."
    )
  if steps == _MOST_STEPS:
    raise ValueError(
      f"target_epsilon={target_epsilon} at target_delta={target_delta} allows "
      f"more than {_MOST_STEPS} steps: no limit for any run. Lower "
      f"noise_multiplier={mechanism.noise_multiplier} or the target."
    )
  return steps


def calibrate_batch_size(
  mechanism: _Mechanism,
  *,
  target_epsilon: float,
  target_delta: float,
  num_steps: int,
) -> _Mechanism:
  """A copy with the largest (expected) batch size that meets the target.

  Arguments as for ``calibrate_noise``; the ``noise_multiplier`` stays as it is.
  An integer ``max_batch_size`` of the sampler stays too and bounds the result.
  """
  target = _Target.of(mechanism, target_epsilon, target_delta)
  num_steps = _validate.integer("num_steps", num_steps, minimum=1)
  sampler = mechanism.sampler
  limit = sampler.num_examples
  if isinstance(sampler, Poisson) and isinstance(sampler.max_batch_size, int):
    limit = min(limit, sampler.max_batch_size)

  def with_size(batch_size: int) -> _Mechanism:
    return mechanism.replace(sampler=sampler.with_batch_size(batch_size))

  size = target.largest(
    lambda size: with_size(size).dp_event(num_steps), limit=limit, power=1.0
  )
  if size == 0:
    cost = target.cost(with_size(1).dp_event(num_steps))
    raise ValueError(
      f"a batch of one example already costs epsilon={cost:.4g} at "
      f"target_delta={target_delta} for num_steps={num_steps}, more than "
      f"target_epsilon={target_epsilon}. Raise noise_multiplier="
      f"{mechanism.noise_multiplier} or the target, or lower num_steps."
    )
  return with_size(size)


_Rung = Callable[[dp_accounting.DpEvent], float]


@dataclasses.dataclass(frozen=True)
class _Target:
  """What to meet, and the ways to find what an event costs."""

  epsilon: float
  delta: float
  accountant: str
  relation: NeighboringRelation

  @classmethod
  def of(
    cls, mechanism: CalibratedMechanism, epsilon: float, delta: float
  ) -> "_Target":
    epsilon = _validate.target_epsilon(epsilon)
    delta = _validate.probability("target_delta", delta)
    assert mechanism.neighboring_relation is not None
    return cls(
      epsilon, delta, mechanism.accountant, mechanism.neighboring_relation
    )

  def cost(
    self,
    event: dp_accounting.DpEvent,
    discretization: float = _epsilon.DISCRETIZATION,
  ) -> float:
    return _epsilon.epsilon(
      event,
      self.accountant,
      self.relation,
      self.delta,
      discretization=discretization,
    )

  def ladder(self, event: dp_accounting.DpEvent) -> list[_Rung]:
    """Ways to the epsilon of events like this one, cheap ones first.

    If there are four, the third is never above the last.
    """
    if not _events.is_private(event):
      raise ValueError(
        "this mechanism is not private (zero noise, or a clipping rule that "
        "bounds nothing), so no target can be met. Use a rule with a bound, "
        "such as clipping.flat(l2_clip_norm=...), and noise_multiplier > 0."
      )
    rungs: list[_Rung] = []
    if self.accountant == "pld":
      rungs.append(self._guess)
      rungs.append(lambda event: self.cost(_uncut(event), 1e-3))
      if _uncut(event) != _events.merge(event):
        rungs.append(lambda event: self.cost(_uncut(event)))
    rungs.append(self.cost)
    return rungs

  def largest(
    self,
    event: Callable[[int], dp_accounting.DpEvent],
    *,
    limit: int,
    power: float,
  ) -> int:
    """The largest number whose event meets the target; 0 if 1 does not."""
    result = min(limit, 64)
    for number, rung in enumerate(self.ladder(event(1))):
      if number == 3:
        limit = result
      result = _largest(
        lambda x, rung=rung: rung(event(x)),  # type: ignore[misc]
        self.epsilon,
        guess=max(result, 1),
        limit=limit,
        power=power,
      )
    return result

  def _guess(self, event: dp_accounting.DpEvent) -> float:
    mu = _events.clt_mu(_events.leaves(event), self.relation)
    return _gdp.epsilon(mu, self.delta)


def _uncut(event: dp_accounting.DpEvent) -> dp_accounting.DpEvent:
  """The event with whole Poisson samples: epsilon can only be lower."""

  def whole(release: dp_accounting.DpEvent) -> dp_accounting.DpEvent:
    if isinstance(release, dp_accounting.TruncatedSubsampledGaussianDpEvent):
      return dp_accounting.PoissonSampledDpEvent(
        release.sampling_probability,
        dp_accounting.GaussianDpEvent(release.noise_multiplier),
      )
    return release

  parts = [
    dp_accounting.SelfComposedDpEvent(whole(release), count)
    for release, count in _events.leaves(event).items()
  ]
  return _events.merge(dp_accounting.ComposedDpEvent(parts))


def _solve_falling(
  fun: Callable[[float], float],
  target: float,
  *,
  guess: float,
  slope: float,
  ends: tuple[float, float],
) -> tuple[float, float]:
  """The x where fun, a falling function, is just below the target.

  Secant steps in log x and log fun, kept inside the bracket found so far.

  Returns:
    x and the slope of log fun over log x there. An x outside ``ends`` says that
    the target lies beyond that end.
  """
  least, most = math.log(ends[0]), math.log(ends[1])
  low, high = least, most  # fun > target at low, < target at high, once tested
  tested_low = tested_high = False
  u = math.log(guess)
  last: tuple[float, float] | None = None
  while True:
    ratio = fun(math.exp(u)) / target
    if _WINDOW[0] <= ratio <= _WINDOW[1]:
      return math.exp(u), slope
    # Beyond e^-30 and e^30 only the direction counts; 0 and inf end there.
    v = math.log(min(max(ratio / _AIM, 1e-13), 1e13))
    if ratio > 1:
      if u >= most:
        return math.inf, slope
      low, tested_low = u, True
    else:
      if u <= least:
        return 0.0, slope
      high, tested_high = u, True
    if tested_low and tested_high and high - low < 1e-9:
      return math.exp(high), slope  # A jump: the safe side of it.
    if last is not None and abs(u - last[0]) > 1e-9:
      slope = min(-0.05, max(-50.0, (v - last[1]) / (u - last[0])))
    last = u, v
    step = min(math.log(4), max(-math.log(4), -v / slope))
    proposed = u + step
    if tested_low and tested_high and not low < proposed < high:
      proposed = (low + high) / 2
    u = min(max(proposed, low), high)


def _largest(
  fun: Callable[[int], float],
  target: float,
  *,
  guess: int,
  limit: int,
  power: float,
) -> int:
  """The largest x in 1..limit with fun(x) <= target; 0 if there is none.

  ``fun`` rises, about like x ** power. Secant steps as above, on integers;
  every third step halves the bracket, so that the search ends.
  """
  fun = functools.cache(fun)
  low, high = 0, limit + 1  # fun(low) <= target < fun(high)
  x, turn = min(max(guess, 1), limit), 0
  last: tuple[float, float] | None = None
  while high - low > 1:
    ratio = fun(x) / target
    u, v = math.log(x), math.log(min(max(ratio, 1e-13), 1e13))
    if ratio <= 1:
      low = x
    else:
      high = x
    if last is not None and u != last[0]:
      power = min(20.0, max(0.1, (v - last[1]) / (u - last[0])))
    last, turn = (u, v), turn + 1
    if turn % 3 == 0 and low > 0 and high <= limit:
      proposed = (low + high) // 2
    else:
      step = min(math.log(16), max(-math.log(16), -v / power))
      proposed = math.floor(math.exp(u + step))
    x = min(max(proposed, low + 1), high - 1)
  return low
