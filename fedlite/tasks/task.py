"""Tasks: a model, the loss that clients minimise, and the metrics that are reported.

A task is a frozen dataclass, equal by value, since it is a static jit argument. Parameters
are flat mappings from paths to arrays; the model's widths are read off their shapes, so one
task serves the full model and every sub-model.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import FrozenDict

from fedlite.data.federated import Split
from fedlite.models import compact, units
from fedlite.tasks.metrics import Evaluation, Metric, across_clients

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
      metric: by which models are compared; one of those that `report` returns.
      evaluation_batch: examples that are evaluated at a time.
    """

    metric: ClassVar[Metric] = Metric("accuracy", "accuracies", higher=True)
    evaluation_batch: ClassVar[int] = 250

    model: nn.Module
    axes: units.UnitAxes

    def inputs(self, x, key, train: bool):
        """What the model sees of a batch's "x"; `key` is for augmentation."""
        return x

    def score(self, logits, y) -> Scores:
        """The scores of each example, from logits and the batch's "y"."""
        raise NotImplementedError

    def sized_model(self, params: Mapping[str, Any]) -> nn.Module:
        """The model with the widths that `params` have; all of them where kernels are compact."""
        if any(map(compact.is_index, params)):
            return self.model
        widths = self.axes.widths({path: value.shape for path, value in params.items()})
        return self.model.clone(widths=FrozenDict(widths))

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
        model = self.sized_model(params)
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

    def left_out(self, split: Split) -> int:
        """How many examples of a split are not `usable`."""
        return 0

    def usable(self, batch: Mapping[str, Any], mask):
        """`mask` [batch] without the examples that the loss leaves out whatever the parameters."""
        return mask

    def evaluate(self, params, batch: Mapping[str, Any], mask=None) -> Scores:
        """Scores of each example in evaluation mode; `mask` as of `apply`."""
        return self.score(self.apply(params, batch["x"], mask=mask), batch["y"])

    def predict(self, params, batch: Mapping[str, Any], mask=None) -> Any:
        """What `report` needs of each example: a tree of arrays [batch, ...]."""
        return self.evaluate(params, batch, mask)

    def report(self, outputs: Any, split: Split, last: bool) -> Evaluation:
        """What the outputs for a whole split amount to; on the host.

        Args:
          outputs: of `predict` for all examples, numpy arrays.
          split: that was scored.
          last: whether it is the run's last evaluation, which may do what takes long.

        Returns:
          Metrics, here "loss" and "accuracy" over all examples (over tokens for a language model),
          "examples", and where the split has several clients "client_accuracy": the mean, worst
          decile and quantiles of the accuracies of its clients.
        """
        loss, loss_weight, correct, correct_weight = (a.astype(float) for a in outputs)
        metrics = {
            "loss": float(loss.sum() / max(loss_weight.sum(), 1)),
            "accuracy": float(correct.sum() / max(correct_weight.sum(), 1)),
            "examples": split.num_examples,
        }
        if split.num_clients > 1:
            sums = [np.concatenate([[0.0], np.cumsum(a)]) for a in (correct, correct_weight)]
            offsets = split.offsets
            right, counted = (total[offsets[1:]] - total[offsets[:-1]] for total in sums)
            accuracies = right[counted > 0] / counted[counted > 0]
            metrics["client_accuracy"] = across_clients(accuracies)
        return Evaluation(metrics)


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
