"""Tasks: a model, the loss that clients minimise, and the metrics that are reported.

A task is a frozen dataclass, equal by value, since it is a static jit argument. Parameters
are flat mappings from paths to arrays; the model's widths are read off their shapes, so one
task serves the full model and every sub-model.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.core import FrozenDict

from fedlite.models import units

# What a step's key is folded with for augmentation; linen folds it for dropout.
_CROP, _FLIP = 0xC809, 0xF119


class Scores(NamedTuple):
    """Sums over an example's units (the image, or its tokens), each [batch].

    Attributes:
      loss: summed cross-entropy in nats.
      loss_weight: units that the loss counts.
      correct: units that were predicted.
      correct_weight: units that the accuracy counts.
    """

    loss: Any
    loss_weight: Any
    correct: Any
    correct_weight: Any


@dataclasses.dataclass(frozen=True)
class Task:
    """A model with its loss.

    Attributes:
      model: a linen module with a field `widths`.
      axes: its `UnitAxes`.
    """

    model: nn.Module
    axes: units.UnitAxes

    def inputs(self, x, key, train: bool):
        """What the model sees of a batch's "x"; `key` is for augmentation."""
        return x

    def score(self, logits, y) -> Scores:
        """The scores of each example, from logits and the batch's "y"."""
        raise NotImplementedError

    def apply(self, params: Mapping[str, Any], x, *, key=None, train: bool = False, mask=None):
        """Logits of the (sub-)model that `params` make up.

        Args:
          params: by path.
          x: a batch's.
          key: of dropout and augmentation, in training.
          train: whether it is training.
          mask: [batch], 0 for padding, where the examples of a batch see each other: for a model
            with `reads_mask`. None: no padding.
        """
        widths = self.axes.widths({path: value.shape for path, value in params.items()})
        model = self.model.clone(widths=FrozenDict(widths))
        options = {"mask": mask} if getattr(model, "reads_mask", False) else {}
        rngs = {"dropout": key} if train else {}
        x = self.inputs(x, key, train)
        return units.apply(model, params, x, train=train, rngs=rngs, **options)

    def loss(self, params, batch: Mapping[str, Any], mask, key):
        """Mean training loss over the units of the examples where `mask` [batch] is 1."""
        logits = self.apply(params, batch["x"], key=key, train=True, mask=mask)
        scores = self.score(logits, batch["y"])
        total = jnp.sum(scores.loss * mask)
        return total / jnp.maximum(jnp.sum(scores.loss_weight * mask), 1)

    def evaluate(self, params, batch: Mapping[str, Any], mask=None) -> Scores:
        """Scores of each example in evaluation mode; `mask` as of `apply`."""
        return self.score(self.apply(params, batch["x"], mask=mask), batch["y"])


@dataclasses.dataclass(frozen=True)
class Classification(Task):
    """One label an example, of images or of token sequences.

    Attributes:
      standardize: whether each image is brought to mean 0 and variance 1, as TFF's CIFAR
        baselines do; else uint8 images are scaled to [0, 1].
      crop: training images are cropped at random to this size, evaluated ones at the centre;
        0 leaves them whole.
      flip: whether training images are mirrored at random.
    """

    standardize: bool = False
    crop: int = 0
    flip: bool = False

    def inputs(self, x, key, train):
        """Scaled, cropped and mirrored float32 images; tokens as they are."""
        if x.ndim != 4:
            return x
        if x.dtype == jnp.uint8:
            x = x.astype(jnp.float32) / 255
        if self.crop:
            x = self._cropped(x, jax.random.fold_in(key, _CROP) if train else None)
        if self.flip and train:
            flip_key = jax.random.fold_in(key, _FLIP)
            mirrored = jax.random.bernoulli(flip_key, 0.5, (len(x), 1, 1, 1))
            x = jnp.where(mirrored, x[:, :, ::-1], x)
        if self.standardize:
            mean = jnp.mean(x, (1, 2, 3), keepdims=True)
            # The floor is that of tf.image.per_image_standardization.
            floor = x[0].size ** -0.5
            x = (x - mean) / jnp.maximum(jnp.std(x, (1, 2, 3), keepdims=True), floor)
        return x

    def _cropped(self, x, key):
        room = jnp.array(x.shape[1:3]) - self.crop
        if key is None:
            corner = jnp.broadcast_to(room // 2, (len(x), 2))
        else:
            corner = jax.random.randint(key, (len(x), 2), 0, room + 1)

        def cut(image, at):
            size = (self.crop, self.crop, image.shape[-1])
            return jax.lax.dynamic_slice(image, (at[0], at[1], 0), size)

        return jax.vmap(cut)(x, corner)

    def score(self, logits, y):
        """Cross-entropy and top-1 accuracy."""
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        ones = jnp.ones_like(loss)
        return Scores(loss, ones, (jnp.argmax(logits, -1) == y).astype(loss.dtype), ones)


@dataclasses.dataclass(frozen=True)
class LanguageModel(Task):
    """The next token at every position; token 0 is padding and counts nowhere.

    Attributes:
      ignored: tokens that the accuracy leaves out besides padding (out of vocabulary, end of
        sentence), as in the DP-FTRL code's Stack Overflow task.
    """

    ignored: tuple[int, ...] = ()

    def score(self, logits, y):
        """Cross-entropy over all but padding; accuracy without the ignored tokens."""
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        real = (y != 0).astype(loss.dtype)
        counted = real * (1 - jnp.isin(y, jnp.array(self.ignored, y.dtype)).astype(loss.dtype))
        right = (jnp.argmax(logits, -1) == y).astype(loss.dtype)
        return Scores(*(jnp.sum(a, -1) for a in (loss * real, real, right * counted, counted)))
