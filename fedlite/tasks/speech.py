"""Speech recognition: utterances to transcripts by CTC, judged by the word error rate."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fedlite.data.federated import Split
from fedlite.models import units
from fedlite.tasks import ctc, wer
from fedlite.tasks.branches import switch
from fedlite.tasks.metrics import Evaluation, Metric, across_clients
from fedlite.tasks.task import Scores, Task

# What a step's key is folded with for the masks.
_TIME, _FREQUENCY = 0x71E, 0xF4E9


@dataclasses.dataclass(frozen=True)
class Speech(Task):
    """CTC over a vocabulary whose token 0 is the blank.

    A batch has "x" [batch, frames, mels], normalised so that 0 is the mean, "frames" int32 [batch],
    the real ones, and "y" int32 [batch, length], tokens padded with 0. The loss is the mean over
    utterances of CTC's, in nats. An utterance whose labels have no alignment (too few frames are
    left after the model's subsampling) is left out of the loss and of what its client weighs, and
    counted.

    Attributes:
      vocabulary: tokens by id; token 0 is not used.
      separator: joins the tokens of a transcript: "" for characters, " " for words.
      time_masks, time_mask: SpecAugment (Park et al. 2019, arXiv 1904.08779) in training: masks of
        each utterance, and their greatest length in frames.
      frequency_masks, frequency_mask: the same along mels.
      beam: prefixes of the beam search that the last evaluation adds; 0: none.
      buckets: rising numbers of frames; on a CPU a training batch is cut to the first that holds
        its longest utterance, for less work and the same results but for rounding (and for the
        draws of a model's dropout, which depend on the length). Each is a branch of the compiled
        step, and clients that vmap trains together run every branch. () cuts nothing; nor does an
        accelerator, where clients are so batched, or a model with convolution "xla", by which
        costs are compared.
    """

    metric: ClassVar[Metric] = Metric("wer", "wers", higher=False)
    evaluation_batch: ClassVar[int] = 32

    vocabulary: tuple[str, ...]
    separator: str = " "
    time_masks: int = 0
    time_mask: int = 0
    frequency_masks: int = 0
    frequency_mask: int = 0
    beam: int = 0
    buckets: tuple[int, ...] = ()

    def inputs(self, x, key, train, frames=None):
        """Features as float32, with masks of SpecAugment in training."""
        x = x.astype(jnp.float32)
        if not train:
            return x
        batch, length, mels = x.shape
        frames = jnp.full(batch, length) if frames is None else frames
        time_key, frequency_key = (jax.random.fold_in(key, part) for part in (_TIME, _FREQUENCY))
        hidden = _masks(time_key, self.time_masks, self.time_mask, frames, length)[:, :, None]
        hidden |= _masks(
            frequency_key, self.frequency_masks, self.frequency_mask, jnp.full(batch, mels), mels
        )[:, None]
        return jnp.where(hidden, 0, x)

    def apply(self, params, x, *, key=None, train=False, mask=None, frames=None):
        """Logits [batch, frames', classes]; see `Task.apply`. `frames` as of the batch."""
        rngs = {"dropout": key} if train else {}
        x = self.inputs(x, key, train, frames)
        return units.apply(
            self.sized_model(params), params, x, train=train, rngs=rngs, frames=frames
        )

    def loss(self, params, batch, mask, key):
        """Mean CTC loss of the utterances that have an alignment and where `mask` is 1."""
        x = batch["x"]
        # What is masked needs no frame, so a batch may be cut within it.
        frames = jnp.where(mask > 0, batch["frames"], 0)

        operands = (x, frames, batch["y"], mask, key)
        cut = jax.default_backend() == "cpu" and self.model.convolution != "xla"
        lengths = [*(n for n in self.buckets if cut and n < x.shape[1]), x.shape[1]]
        branches = tuple(functools.partial(self._mean_loss, length) for length in lengths)
        if len(branches) == 1:
            return branches[0](params, operands)
        first = jnp.sum(jnp.max(frames) > jnp.array(lengths[:-1], jnp.int32))
        return switch(branches, first, params, operands)

    def usable(self, batch, mask):
        """`mask` without the utterances that have no alignment."""
        frames = self.model.output_frames(batch["frames"])
        return mask * ctc.fits(frames, batch["y"])

    def _mean_loss(self, length: int, params, operands):
        """`loss` of batches that are cut to a length."""
        x, frames, labels, mask, key = operands
        logits = self.apply(params, x[:, :length], key=key, train=True, frames=frames)
        losses, possible = ctc.loss(logits, self.model.output_frames(frames), labels)
        return jnp.sum(losses * mask) / jnp.maximum(jnp.sum(possible * mask), 1)

    def evaluate(self, params, batch, mask=None) -> Scores:
        """Scores of each utterance.

        `correct` is the number of tokens less the edit distance to the greedy transcript, so that
        `correct / correct_weight` is the token accuracy 1 - (S + D + I) / N (negative where a
        transcript has more errors than tokens).
        """
        logits, frames = self._logits(params, batch)
        loss, possible = ctc.loss(logits, frames, batch["y"])
        errors = ctc.edit_distance(ctc.greedy(logits, frames), batch["y"])
        tokens = jnp.sum(batch["y"] != ctc.BLANK, 1)
        weights = possible.astype(loss.dtype), tokens.astype(loss.dtype)
        return Scores(loss, weights[0], (tokens - errors).astype(loss.dtype), weights[1])

    def predict(self, params, batch, mask=None) -> dict[str, Any]:
        """Loss, whether it is finite, and the greedy transcript of each utterance."""
        logits, frames = self._logits(params, batch)
        loss, possible = ctc.loss(logits, frames, batch["y"])
        outputs = {"loss": loss, "possible": possible, "tokens": ctc.greedy(logits, frames)}
        if self.beam:
            outputs["log_probs"] = jax.nn.log_softmax(logits)
        return outputs

    def _logits(self, params, batch):
        frames = batch["frames"]
        return self.apply(params, batch["x"], frames=frames), self.model.output_frames(frames)

    def report(self, outputs: Mapping[str, np.ndarray], split: Split, last: bool) -> Evaluation:
        """Error rates over all utterances and speaker by speaker.

        Returns:
          "loss" (mean CTC loss), "wer" and "cer" with "wer_interval" (95 %, bootstrap over
          speakers), "substitutions", "deletions" and "insertions" (words), "words",
          "impossible_examples" (those without an alignment), "examples"; where the split has
          several speakers "client_wer": the mean, worst decile and quantiles of their word error
          rates; with `beam` in the last evaluation "beam_wer" and "beam_cer". The clients have
          "errors" and "words".
        """
        references = self.transcripts(split.arrays["y"])
        greedy = self.transcripts(outputs["tokens"])
        by_speaker = [
            wer.word_errors(references[a:b], greedy[a:b])
            for a, b in zip(split.offsets, split.offsets[1:])
        ]
        words = wer.Errors(*np.sum(by_speaker, 0).tolist())
        clients = {
            speaker: {"errors": errors.total, "words": errors.length}
            for speaker, errors in zip(split.client_ids, by_speaker)
        }
        possible = outputs["possible"]
        metrics = {
            "loss": float(outputs["loss"].astype(float).sum() / max(possible.sum(), 1)),
            "wer": words.rate,
            "cer": wer.character_errors(references, greedy).rate,
            "substitutions": words.substitutions,
            "deletions": words.deletions,
            "insertions": words.insertions,
            "words": words.length,
            "impossible_examples": int((~possible).sum()),
            "examples": split.num_examples,
        }
        if words.length:
            metrics["wer_interval"] = list(wer.bootstrap(clients)[1:])
        if split.num_clients > 1:
            rates = np.array([errors.rate for errors in by_speaker if errors.length])
            metrics["client_wer"] = across_clients(rates, higher=False)
        if last and self.beam:
            frames = self.model.output_frames(np.asarray(split.arrays["frames"]))
            found = [
                self.transcript(ctc.beam_search(own[:n], self.beam))
                for own, n in zip(outputs["log_probs"], frames)
            ]
            metrics["beam_wer"] = wer.word_errors(references, found).rate
            metrics["beam_cer"] = wer.character_errors(references, found).rate
        return Evaluation(metrics, clients)

    def transcript(self, tokens) -> str:
        """The text of one sequence of tokens; 0 says nothing."""
        return self.separator.join(self.vocabulary[token] for token in tokens if token)

    def transcripts(self, tokens: np.ndarray) -> list[str]:
        """The texts of [utterances, length]."""
        return [self.transcript(own) for own in np.asarray(tokens).tolist()]

    def left_out(self, split: Split) -> int:
        """How many utterances of a split have no alignment."""
        frames, labels = (np.asarray(split.arrays[name]) for name in ("frames", "y"))
        return int((~ctc.fits(self.model.output_frames(frames), labels)).sum())


def _masks(key, count: int, longest: int, lengths, size: int) -> jax.Array:
    """bool [batch, size], True under masks at random places.

    Args:
      key: of the draws.
      count: masks.
      longest: a mask's length is uniform from 0 to this, or to `lengths` where that is less.
      lengths: [batch], the entries among which masks lie.
      size: of the axis.
    """
    shape = (2, len(lengths), count)
    wide, at = jax.random.uniform(key, shape)
    width = jnp.floor(wide * (jnp.minimum(longest, lengths)[:, None] + 1))
    start = jnp.floor(at * (lengths[:, None] - width + 1))
    position = jnp.arange(size)
    inside = (position >= start[..., None]) & (position < (start + width)[..., None])
    return jnp.any(inside, axis=1)
