"""Speech recognition as a task: its loss under padding and cuts, its report, its options."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs import common
from experiments.build_task import build_task
from fedlite import methods, models, tasks
from fedlite.data.federated import FederatedDataset, Split
from fedlite.errors import UserError
from fedlite.federated.evaluation import Evaluator
from fedlite.federated.local import ClientData, ClientOptimizer, LocalPlan, train_locally
from fedlite.models import units
from fedlite.tasks import ctc, wer

VOCABULARY = ("", " ", "a", "b")
LENGTH, MELS = 24, 5
EXAMPLE = jax.ShapeDtypeStruct((1, LENGTH, MELS), jnp.float32)
KEY = jax.random.key(1)


def make_split(seed=0) -> Split:
    """Three speakers with 3, 1 and 2 utterances; the last is too short for its labels."""
    rng = np.random.default_rng(seed)
    frames = np.array([12, 9, 24, 10, 11, 3], np.int32)
    x = rng.normal(size=(6, LENGTH, MELS)).astype(np.float16)
    x[np.arange(LENGTH) >= frames[:, None]] = 0
    y = np.array([[2, 1, 3], [3, 0, 0], [2, 2, 0], [3, 2, 0], [2, 0, 0], [2, 3, 0]], np.int32)
    return Split({"x": x, "frames": frames, "y": y}, np.array([0, 3, 4, 6]), ("s", "t", "u"))


def make_dataset(train=None, kind="speech") -> FederatedDataset:
    splits = {"train": train or make_split(), "test": make_split(1)}
    return FederatedDataset("speech", splits, 4, kind, vocabulary=VOCABULARY, separator="")


@pytest.fixture(scope="module")
def task():
    model = models.build(
        "conformer",
        num_classes=4,
        **{"blocks": 1, "d_model": 4, "heads": 2, "ffn": 4, "kernel": 3, "group_size": 2},
        **{"subsampling": 2, "convolution": "patches"},
    )
    return tasks.Speech(model, units.unit_axes(model, EXAMPLE), VOCABULARY, "")


@pytest.fixture(scope="module")
def params(task):
    return units.init_params(task.model, jax.random.key(0), EXAMPLE)


def batch_of(rows):
    return {name: array[rows] for name, array in make_split().arrays.items()}


@functools.partial(jax.jit, static_argnums=0)
def _loss_and_gradient(task, params, batch, mask):
    return jax.value_and_grad(task.loss)(params, batch, mask, KEY)


def loss_and_gradient(task, params, batch, mask):
    return _loss_and_gradient(task, params, batch, jnp.array(mask))


@pytest.fixture(scope="module")
def reference(task, params):
    return loss_and_gradient(task, params, batch_of([0, 1, 3, 5]), [1.0, 1, 1, 0])


def assert_alike(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected
    )


def test_an_utterance_without_an_alignment_is_left_out(task, params, reference):
    found = loss_and_gradient(task, params, batch_of([0, 1, 3, 5]), [1.0, 1, 1, 1])
    assert_alike(found, reference)
    assert reference[0] > 0
    nothing = loss_and_gradient(task, params, batch_of([5, 5, 5, 5]), [1.0, 1, 1, 0])
    assert nothing[0] == 0 and not any(np.any(g) for g in nothing[1].values())


def test_the_loss_is_a_mean_over_utterances(task, params, reference):
    losses = [
        loss_and_gradient(task, params, batch_of([0, 1, 3, 5]), np.float32(row == np.arange(4)))[0]
        for row in range(3)
    ]
    assert float(reference[0]) == pytest.approx(np.mean(losses), rel=1e-5)
    assert len(set(map(float, losses))) == 3


def test_buckets_change_nothing(task, params, reference):
    # A masked utterance of 24 frames stands for one of 3, which does not ask for a longer cut.
    batch = batch_of([0, 1, 3, 2])
    cut = dataclasses.replace(task, buckets=(16,))
    assert_alike(loss_and_gradient(cut, params, batch, [1.0, 1, 1, 0]), reference)
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Watched(tasks.Speech):
        def inputs(self, x, key, train, frames=None):
            seen.append(x.shape[1])
            return super().inputs(x, key, train, frames)

    watched = Watched(task.model, task.axes, VOCABULARY, "", buckets=(8, 12, 30))
    jax.eval_shape(watched.loss, params, batch, jnp.ones(4), KEY)
    assert sorted(set(seen)) == [8, 12, LENGTH]
    plain = dataclasses.replace(watched, model=task.model.clone(convolution="xla"))
    seen.clear()
    jax.eval_shape(plain.loss, params, batch, jnp.ones(4), KEY)
    assert set(seen) == {LENGTH}


def test_a_sub_model_is_read_off_its_shapes(task, params):
    small = task.model.clone(widths=task.model.widths.copy({"block1/ffn1": 1, "block1/conv": 1}))
    shapes = units.param_shapes(small, EXAMPLE)
    assert task.sized_model({path: np.zeros(s) for path, s in shapes.items()}) == small


def test_masks_hide_what_they_may(task):
    x = jnp.ones((50, LENGTH, MELS))
    frames = jnp.full(50, 10)
    masked = dataclasses.replace(task, time_masks=2, time_mask=4)
    hidden = np.array(masked.inputs(x, KEY, True, frames) == 0)
    assert (hidden == hidden[:, :, :1]).all()
    lengths = hidden[:, :, 0].sum(1)
    assert lengths.max() <= 8 and len(set(lengths.tolist())) > 4 and not hidden[:, 10:].any()
    assert hidden[:, 9].any() and hidden[:, 0].any()
    masked = dataclasses.replace(task, frequency_masks=1, frequency_mask=3)
    hidden = np.array(masked.inputs(x, KEY, True, frames) == 0)
    assert (hidden == hidden[:, :1]).all()
    assert set(hidden[:, 0].sum(1).tolist()) == {0, 1, 2, 3}
    assert not (masked.inputs(x, KEY, False) == 0).any()
    assert not (task.inputs(x, KEY, True, frames) == 0).any()


def test_report(task, params):
    split = make_split()
    perfect = {
        "loss": np.arange(6, dtype=np.float32),
        "possible": np.array([True] * 5 + [False]),
        "tokens": np.pad(split.arrays["y"], ((0, 0), (0, 3))),
    }
    metrics, clients = task.report(perfect, split, last=False)
    # References "a b", "b", "aa", "ba", "a", "ab".
    assert metrics["wer"] == metrics["cer"] == 0 and metrics["loss"] == 3
    assert (metrics["words"], metrics["impossible_examples"]) == (7, 1)
    tokens = perfect["tokens"].copy()
    tokens[0, :3] = [2, 0, 0]
    tokens[4, :3] = [3, 1, 2]
    metrics, clients = task.report({**perfect, "tokens": tokens}, split, last=True)
    assert clients["s"] == {"errors": 1, "words": 4} and clients["t"]["errors"] == 0
    assert clients["u"] == {"errors": 1, "words": 2}
    assert (metrics["deletions"], metrics["insertions"], metrics["substitutions"]) == (1, 1, 0)
    assert metrics["wer"] == pytest.approx(2 / 7)
    assert metrics["wer_interval"] == list(wer.bootstrap(clients)[1:])
    # Characters: two are gone from "a b", two before the "a".
    assert metrics["cer"] == pytest.approx(4 / 11)
    spread = metrics["client_wer"]
    assert spread["mean"] == 0.25 and spread["worst_decile"] == 0.5 == spread["q100"]


def test_an_evaluation(task, params):
    split = make_split()
    whole = Evaluator(task, split).evaluate(params)
    pieces = Evaluator(dataclasses.replace(task, beam=3), split, batch_size=4)
    found = pieces.evaluate(params, last=True)
    assert found.clients == whole.clients
    assert found.metrics["loss"] == pytest.approx(whole.metrics["loss"], rel=1e-5)
    assert "beam_wer" not in whole.metrics and "beam_wer" not in pieces(params)
    assert found.metrics["beam_cer"] >= 0 and whole.metrics["impossible_examples"] == 1
    scores = jax.jit(task.evaluate)(params, split.arrays)
    logits = task.apply(params, split.arrays["x"], frames=split.arrays["frames"])
    real = task.model.output_frames(split.arrays["frames"])
    errors = ctc.edit_distance(ctc.greedy(logits, real), split.arrays["y"])
    np.testing.assert_array_equal(scores.correct_weight - scores.correct, errors)
    assert scores.loss_weight.tolist() == [1, 1, 1, 1, 1, 0]


def options(**changes):
    section = common.base("digits", "mlp", "fedavg").task
    section.update(ml_collections.ConfigDict(changes))
    return section.to_dict()


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"crop": 4}, "task.crop is for images, but 'speech' is speech; unset it"),
        ({"time_masks": 2}, "task.time_masks = 2 with task.time_mask = 0"),
        ({"frequency_mask": 2}, "task.frequency_masks = 0 with task.frequency_mask = 2"),
        ({"buckets": (20, 10)}, "task.buckets = (20, 10)"),
        ({"buckets": (0.5,)}, "task.buckets = (0.5,)"),
    ],
)
def test_bad_options_are_named(task, changes, says):
    with pytest.raises(UserError) as error:
        build_task(make_dataset(), options(**changes), task.model)
    assert says in str(error.value)


def test_options_of_speech_are_for_speech(task):
    dataset = make_dataset(kind="language")
    with pytest.raises(UserError, match=r"task\.beam is for speech, but 'speech' is text"):
        build_task(dataset, options(beam=2), task.model)


def test_what_speech_cannot_do_without(task, caplog):
    built = build_task(make_dataset(), options(beam=2, buckets=[8]), task.model)
    assert dataclasses.replace(built, axes=task.axes) == dataclasses.replace(
        task, beam=2, buckets=(8,)
    )
    assert "1 of 6 training utterances" in caplog.text
    with pytest.raises(UserError, match=r"set model\.name = 'conformer'"):
        build_task(make_dataset(), options(), models.build("mlp", num_classes=4))
    split = make_split()
    short = Split({**split.arrays, "frames": 0 * split.arrays["frames"]}, split.offsets, "stu")
    with pytest.raises(UserError, match="longer utterances"):
        build_task(make_dataset(short), options(), task.model)


def test_a_client_weighs_what_its_loss_is_made_of(task, params):
    """One whose second utterance has no alignment is one that has the first alone."""
    arrays = {name: jnp.asarray(array) for name, array in make_split().arrays.items()}
    # As a batch is read: rows of the flat arrays.
    plan = LocalPlan(ClientOptimizer(), epochs=2, batch_size=2, max_size=2)

    @jax.jit
    def train(start, size):
        data = ClientData(arrays, start, size, 0)
        view = methods.server_view(params)
        return train_locally(task, methods.Method(), plan, view, data, KEY, 0.1, 1)

    (both, report), (first, alone), (none, nothing) = train(4, 2), train(4, 1), train(5, 1)
    assert_alike(both, first)
    assert (int(report.examples), int(alone.examples), int(nothing.examples)) == (1, 1, 0)
    assert float(report.loss) == pytest.approx(float(alone.loss), rel=1e-4)
    assert any(np.any(u) for u in first.values()) and not any(np.any(u) for u in none.values())
