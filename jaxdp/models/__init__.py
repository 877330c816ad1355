"""The models of the studies, in Flax NNX, as functions of one example.

``create`` gives a nested dict of parameters and ``apply_fn(params, x)`` for one
example ``x``; ``classification_loss`` makes it the loss that
``jaxdp.per_example_grads`` and ``jaxdp.fit`` take, and ``accuracy`` its
evaluation. The rest of jaxdp takes any such functions and knows nothing of
these models.

Read ``_create`` first, then ``_tanh_cnn`` as an example of a model.

Example:
  >>> from jaxdp import models
  >>> params, apply_fn = models.create(
  ...   "tanh_cnn", seed=0, num_classes=10, input_shape=(28, 28, 1)
  ... )
  >>> models.count_params(params)
  26010
  >>> loss_fn = models.classification_loss(apply_fn)
"""

try:
  import flax as _flax  # noqa: F401
except ImportError as _error:
  raise ImportError(
    "jaxdp.models needs flax, which is not installed. "
    "Run: pip install 'jaxdp[data]'"
  ) from _error

from jaxdp.models._classification import (
  accuracy,
  bucket_accuracy,
  bucket_loss,
  classification_loss,
)
from jaxdp.models._create import count_params, create, names

__all__ = [
  "accuracy",
  "bucket_accuracy",
  "bucket_loss",
  "classification_loss",
  "count_params",
  "create",
  "names",
]
