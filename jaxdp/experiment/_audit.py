"""Audits that a config names: of a mechanism alone, or of one run on data."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

import jaxdp
from jaxdp import _types, audit, training, units
from jaxdp.experiment._config import ExperimentConfig
from jaxdp.experiment._run import fit_options
from jaxdp.experiment._task import load_train, make_public_batch, make_task
from jaxdp.mechanism import Mechanism

_SECTIONS = ("name", "rule", "sampler", "privacy", "unit", "audit")
_TRIALS = ("trials", "num_steps", "confidence", "seed")
_CANARIES = ("canaries", "confidence", "seed")


def _scaled(key: Any, example: Any) -> Any:
  """A view of a gradient: some multiple of it."""
  factor = jax.random.uniform(key, minval=0.5)
  return jax.tree.map(lambda x: factor * x, example)


# What the unit of an audited mechanism is, as arguments of ``audit.mechanism``.
_UNITS: Mapping[str, dict[str, Any]] = {
  "example": {},
  "views": {
    "loss_fn": units.mean_over_views(audit.linear_loss, _scaled, num_views=2),
    "has_key": True,
  },
  "window": {"inner_momentum": jaxdp.InnerMomentum(2)},
}


def run_audit(config: Any) -> audit.AuditResult:
  """Audits what a config describes.

  Of a run on data the result is *sensitive*: nothing is added to it.

  Args:
    config: one of configs/audit/. With a section ``data`` it is a config of a
      run and a section ``audit``: how many ``canaries`` get a wrong label, the
      ``confidence`` and the ``seed`` of canaries, coins and the run. Without,
      it is ``rule``, ``sampler`` (with ``num_examples``) and ``privacy`` of a
      mechanism, its ``name``, the ``unit`` ("example", "views" or "window" for
      inner momentum) and in ``audit`` the ``trials``, ``num_steps``,
      ``confidence`` and ``seed``.
  """
  values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
  if "data" in values:
    how = values.pop("audit", {})
    _types.check_names("config.audit", how, _CANARIES, _CANARIES)
    return _one_run(ExperimentConfig.from_config_dict(values), **how)
  _types.check_names("config", values, _SECTIONS, _SECTIONS)
  _types.check_names("config.audit", values["audit"], _TRIALS, _TRIALS)
  return _mechanism(values)


def _mechanism(values: Mapping[str, Any]) -> audit.AuditResult:
  sampler, how = dict(values["sampler"]), values["audit"]
  num_examples = sampler.pop("num_examples")
  unused: dict[str, Any] = {}
  config = ExperimentConfig(
    data=unused,
    model=unused,
    rule=values["rule"],
    sampler=sampler,
    privacy=values["privacy"],
    optimizer=unused,
    training={"num_steps": how["num_steps"]},
    performance=unused,
  )
  mechanism = config.make_mechanism(num_examples)
  if mechanism is None:
    raise ValueError(
      "config.rule.name is 'none', which claims nothing. Name a rule."
    )
  if values["unit"] not in _UNITS:
    raise ValueError(
      f"config.unit must be one of {list(_UNITS)}, got {values['unit']!r}."
    )
  return audit.mechanism(
    mechanism,
    name=values["name"],
    delta=values["privacy"]["delta"],
    **how,
    **_UNITS[values["unit"]],
  )


def _one_run(
  config: ExperimentConfig, *, canaries: int, confidence: float, seed: int
) -> audit.AuditResult:
  """Trains with mislabelled examples, each in by a fair coin, and guesses."""
  rows = load_train(config)
  num_examples = len(rows.private["label"])
  mechanism = config.make_mechanism(num_examples)
  _check(config, mechanism, canaries, num_examples)
  assert mechanism is not None
  rng = np.random.default_rng(seed)
  where = rng.choice(num_examples, canaries, replace=False)
  dataset = mislabelled(rows.private, where, config.model["num_classes"], rng)
  included = rng.random(canaries) < 0.5
  statement = mechanism.privacy(
    config.training["num_steps"], config.privacy["delta"]
  )
  task = make_task(config, dataset, rows.public)
  options = {**fit_options(config), "seed": seed}
  state, _ = training.fit(
    task.loss_fn,
    task.params,
    dataset,
    mechanism.replace(
      # Who is out contributes nothing; the mechanism is the same.
      sampler=audit.Blanked(mechanism.sampler, tuple(where[~included].tolist()))
    ),
    config.make_optimizer(),
    num_steps=config.training["num_steps"],
    delta=config.privacy["delta"],
    has_key=task.has_key,
    public_batch=make_public_batch(config, mechanism.sampler, rows.public),
    progress=False,
    performance=training.PerformanceFlags(**config.performance),
    **options,
  )
  losses = _losses(task, training.released_params(state), dataset, where, seed)
  bound = audit.one_run_lower_bound(
    -losses,
    included,
    delta=config.privacy["delta"],
    confidence=confidence,
  )
  return audit.AuditResult(
    mechanism=f"{config.rule['name']} on {config.data['name']}",
    kind="one run",
    epsilon_claimed=statement.epsilon,
    epsilon_lower=bound.value,
    delta=statement.delta,
    mu_claimed=None,
    mu_lower=None,
    confidence=confidence,
    trials=canaries,
    num_steps=statement.num_steps,
    accountant=statement.accountant,
    neighboring_relation=statement.neighboring_relation,
    seed=seed,
  )


def _check(
  config: ExperimentConfig,
  mechanism: Mechanism | None,
  canaries: int,
  num_examples: int,
) -> None:
  if mechanism is None or not mechanism.is_private:
    raise ValueError(
      "config claims no finite epsilon, so there is nothing to audit."
    )
  if mechanism.relation != jaxdp.NeighboringRelation.REPLACE_SPECIAL:
    raise ValueError(
      "A canary that is out is blank, which is the relation REPLACE_SPECIAL, "
      f"and this config claims {mechanism.relation.name}. Set config.privacy"
      ".neighboring_relation='REPLACE_SPECIAL'."
    )
  if config.sampler["name"] == "Buckets":
    raise ValueError(
      "Canaries are single examples, and config.sampler.name is 'Buckets'. "
      "Audit its mechanism: configs/audit/mechanisms.py:buckets."
    )
  if not 10 <= canaries <= num_examples:
    raise ValueError(
      f"config.audit.canaries must be from 10 to the {num_examples} examples "
      f"there are, got {canaries}."
    )


def mislabelled(
  examples: Mapping[str, np.ndarray],
  where: np.ndarray,
  num_classes: int,
  rng: np.random.Generator,
) -> dict[str, np.ndarray]:
  """The examples, some with a label that is wrong for sure."""
  label = np.array(examples["label"])
  shift = rng.integers(1, num_classes, len(where))
  label[where] = (label[where] + shift) % num_classes
  return {**examples, "label": label}


def _losses(
  task: Any, params: Any, dataset: Any, where: np.ndarray, seed: int
) -> np.ndarray:
  rows = {name: x[where] for name, x in dataset.items()}
  if not task.has_key:
    fn = jax.jit(jax.vmap(task.loss_fn, (None, 0)))
    return np.asarray(fn(params, rows), np.float64)
  keys = jax.random.split(jax.random.key(seed), len(where))
  fn = jax.jit(jax.vmap(task.loss_fn, (None, 0, 0)))
  return np.asarray(fn(params, rows, keys), np.float64)
