"""The factored engine: no parameter's gradient is made for every unit.

One forward and one backward pass give, for every site of a parameter, its
inputs and the cotangent of its result (``_tape.py``); the norm and the weighted
sum need no more than these (``_site.py``, ``_norms.py``, ``_tied.py``). A
parameter with a use that is no site gets its gradients stacked.

References:
  Goodfellow 2015, arXiv:1510.01799; Li et al. 2021, arXiv:2110.05679 (ghost
  clipping); Bu et al. 2022, arXiv:2205.10683.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from jaxdp.per_example import _batch, _grads, _stacked, _sums, _tape, _tied
from jaxdp.per_example._site import Factored, Term


def compute(
  loss_fn: _stacked.UnitLoss,
  params: tuple[PyTree, PyTree],
  batch: PyTree,
  is_padding_example: Bool[Array, " units"] | None,
  keys: Array | None,
  *,
  is_slower: Callable[[Factored], bool] = lambda _: False,
) -> tuple[Float[Array, " units"], Any, _grads.PerExampleGrads]:
  """Losses, auxiliary outputs and gradients of every unit of a batch.

  Args:
    loss_fn: of one unit; so are the others, as in ``_stacked.compute``.
    params: trained and frozen.
    batch: leaves ``[units, ...]``.
    is_padding_example: which are no units.
    keys: one for each unit.
    is_slower: asked about the shapes of every parameter whose norm has a
      ``choice``; True stacks its gradients all the same.
  """
  trained, frozen = params
  leaves, treedef = jax.tree.flatten(trained)
  nonfinite = _batch.has_nonfinite_input(batch)
  padding = is_padding_example
  removed = nonfinite if padding is None else nonfinite | padding
  clean = jax.tree.map(lambda x: _batch.zero_rows(removed, x), batch)

  def flat(leaves: list[Array], example: PyTree, key: Any) -> Any:
    return loss_fn(jax.tree.unflatten(treedef, leaves), frozen, example, key)

  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (batch, keys)
  )
  tape, out_shape = _tape.record(flat, leaves, *abstract)
  out_tree = jax.tree.structure(out_shape)

  one = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype),
    ([t.operands for t in tape.taps], [t.result for t in tape.taps]),
  )
  shapes = jax.eval_shape(functools.partial(_factors, tape), *one)
  slower = {
    i for i, x in shapes.items() if _tied.choice(x) is None or is_slower(x)
  }
  made = {i for i in slower if _sums.makes(shapes[i])}
  tape = tape.without(slower - made)
  if not tape.taps or _bare_groups(tape):
    return _stacked.compute(loss_fn, params, batch, padding, keys)
  losses, aux, found = _gradients(tape, out_tree, leaves, clean, keys)
  for i in made:
    found[i] = _sums.stacked(found[i])
  squares: list[Any] = [
    _tied.squares(leaf) if isinstance(leaf, Factored) else None
    for leaf in found
  ]
  bad = jnp.zeros_like(nonfinite)
  if jax.tree.leaves(squares):
    bad = ~jnp.isfinite(_grads.total(squares))
  alone = [i for i, leaf in enumerate(found) if not isinstance(leaf, Factored)]
  if alone:
    stacked, of_stacked = _stacked.finite_rows([found[i] for i in alone], bad)
    bad = bad | ~jnp.isfinite(_grads.total(of_stacked))
    for i, leaf, square in zip(alone, stacked, of_stacked, strict=True):
      found[i], squares[i] = leaf, square
  squares = [
    jnp.where(nonfinite, jnp.full_like(s, jnp.nan), s) for s in squares
  ]
  grads = _grads.PerExampleGrads(
    jax.tree.unflatten(treedef, found),
    jax.tree.unflatten(treedef, squares),
    padding,
  )
  return losses, aux, grads


def _gradients(
  tape: _tape.Tape, out_tree: Any, leaves: list[Array], batch: Any, keys: Any
) -> tuple[Array, Any, list[Any]]:
  """Losses, auxiliary outputs, and each leaf ``Factored`` or stacked."""
  alone = sorted(tape.elsewhere)

  def tapped(
    taps: list[Array], some: list[Array], example: PyTree, key: Any
  ) -> Any:
    all_leaves = list(leaves)
    for i, leaf in zip(alone, some, strict=True):
      all_leaves[i] = leaf
    args = jax.tree.leaves((all_leaves, example, key))
    out, records = tape.run(args, taps)
    loss, aux = jax.tree.unflatten(out_tree, out)
    return loss, (aux, records)

  taps = [jnp.zeros(t.result.shape, t.result.dtype) for t in tape.taps]
  some = [leaves[i] for i in alone]
  gradient = jax.value_and_grad(tapped, argnums=(0, 1), has_aux=True)
  (losses, (aux, records)), (cotangents, stacked) = jax.vmap(
    lambda example, key: gradient(taps, some, example, key)
  )(batch, keys)
  found: dict[int, Any] = dict(zip(alone, stacked, strict=True))
  found |= _factors(tape, records, cotangents)
  for i, leaf in enumerate(leaves):
    if i not in found:  # the loss does not use it
      found[i] = jnp.zeros((len(losses), *leaf.shape), leaf.dtype)
  return losses, aux, [found[i] for i in range(len(leaves))]


def _factors(
  tape: _tape.Tape, records: Sequence[Any], cotangents: Sequence[Array]
) -> dict[int, Factored]:
  """The gradients of every parameter with sites, as the sum of their terms."""
  terms: dict[int, list[Term]] = {}
  for tap, *arrays in zip(tape.taps, records, cotangents, strict=True):
    inputs, cotangent = (_in_order(x, tap.loops) for x in arrays)
    term = Term(inputs, cotangent, tap.site)
    terms.setdefault(tap.param, []).append(term)
  return {i: _join(some) for i, some in terms.items()}


def _bare_groups(tape: _tape.Tape) -> bool:
  """Whether a grouped convolution has a kernel that is no site.

  XLA's CPU gradient in such a kernel would mix units (``_stacked.py``).
  """
  found = sum(_stacked.has_groups(dict(tap.site.params)) for tap in tape.taps)
  return found < _stacked.grouped_convolutions(tape.jaxpr)


def _in_order(arrays: PyTree, loops: tuple[bool, ...]) -> PyTree:
  """From ``[units, *loops, ...]`` to ``[units, repeats, *layers, ...]``."""
  slicing = [1 + i for i, slices in enumerate(loops) if slices]
  repeats = [1 + i for i, slices in enumerate(loops) if not slices]

  def one(x: Array) -> Array:
    rest = range(1 + len(loops), x.ndim)
    x = jnp.transpose(x, (0, *repeats, *slicing, *rest))
    count = math.prod(x.shape[1 : 1 + len(repeats)])
    return x.reshape(x.shape[0], count, *x.shape[1 + len(repeats) :])

  return jax.tree.map(one, arrays)


def _join(terms: list[Term]) -> Factored:
  """The sum of the terms; those that are alike become repeats of one."""
  alike: dict[Any, list[Term]] = {}
  for term in terms:
    arrays = (*term.inputs, term.cotangent)
    kind = term.site, tuple((x.shape[2:], x.dtype) for x in arrays)
    alike.setdefault(kind, []).append(term)

  def one(some: list[Term]) -> Term:
    inputs, cotangent = jax.tree.map(
      lambda *x: jnp.concatenate(x, axis=1) if len(x) > 1 else x[0],
      *((term.inputs, term.cotangent) for term in some),
    )
    return Term(inputs, cotangent, some[0].site)

  return Factored(tuple(map(one, alike.values())))
