"""An LSTM text classifier on token ids.

References:
  Hochreiter and Schmidhuber 1997; Morsbach et al. 2024, arXiv:2411.02051 (the
  sizes: 244,514 parameters without the embedding).
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

_PADDING = 0
# Frozen embeddings are the same for everyone, whatever the model's seed: they
# are drawn, not taken from any text.
_PUBLIC_SEED = 0


class LSTM(nnx.Module):
  """Embedding, one LSTM layer, a tanh layer of half its width, and the head.

  Padding (id 0) leaves the state as it is, so the result does not depend on
  how far a text is padded.
  """

  def __init__(
    self,
    *,
    input_shape: Sequence[int],
    num_classes: int,
    rngs: nnx.Rngs,
    dtype: DTypeLike,
    vocab_size: int = 10_000,
    embedding_dim: int = 100,
    hidden: int = 192,
    embedding: str = "frozen",
  ) -> None:
    """``embedding`` is "frozen" (no parameter; public seed) or "trained".

    The gates have two biases, as in the published network.
    """
    if len(input_shape) != 1:
      raise ValueError(
        "model 'lstm' takes token ids: input_shape must be (length,), got "
        f"{tuple(input_shape)}."
      )
    if embedding not in ("frozen", "trained"):
      raise ValueError(
        f"embedding must be 'frozen' or 'trained', got {embedding!r}."
      )
    self.dtype = dtype
    self.hidden = hidden
    self.vocab_size = vocab_size
    self.embedding_dim = embedding_dim
    self.trained = embedding == "trained"
    if self.trained:
      self.embedding = nnx.Param(
        jax.random.normal(rngs.params(), (vocab_size, embedding_dim))
      )

    def dense(inputs: int, outputs: int) -> nnx.Linear:
      return nnx.Linear(inputs, outputs, dtype=dtype, rngs=rngs)

    self.inputs = dense(embedding_dim, 4 * hidden)
    self.recurrent = dense(hidden, 4 * hidden)
    self.dense = dense(hidden, hidden // 2)
    self.head = dense(hidden // 2, num_classes)

  def __call__(self, tokens: jax.Array) -> jax.Array:
    if self.trained:
      embedded = self.embedding[...][tokens]
    else:
      table = _public_table(self.vocab_size, self.embedding_dim)
      embedded = jnp.asarray(table)[tokens]
    # One product for all steps; only the recurrent one stays in the loop.
    projected = self.inputs(embedded)
    zeros = jnp.zeros((tokens.shape[0], self.hidden), self.dtype)

    def step(
      carry: tuple[jax.Array, jax.Array], inputs: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
      cell, output = carry
      projected, is_word = inputs
      i, f, g, o = jnp.split(projected + self.recurrent(output), 4, axis=-1)
      new_cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
      new_output = jax.nn.sigmoid(o) * jnp.tanh(new_cell)
      return (
        jnp.where(is_word, new_cell, cell),
        jnp.where(is_word, new_output, output),
      ), None

    is_word = (tokens != _PADDING)[..., None]
    time_major = projected.swapaxes(0, 1), is_word.swapaxes(0, 1)
    (_, output), _ = jax.lax.scan(step, (zeros, zeros), time_major)
    return self.head(jnp.tanh(self.dense(output)))


@functools.cache
def _public_table(vocab_size: int, embedding_dim: int) -> np.ndarray:
  rng = np.random.default_rng(_PUBLIC_SEED)
  return rng.standard_normal((vocab_size, embedding_dim), np.float32)
