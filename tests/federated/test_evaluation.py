import jax
import numpy as np

from fedlite.data.federated import Split
from fedlite.federated.evaluation import Evaluator
from fedlite.tasks import LanguageModel
from fedlite.tasks.task import Scores
from tests import toy


def test_batches_do_not_change_the_metrics():
    task = toy.make_task()
    params, split = toy.make_params(task), toy.make_split()
    whole = Evaluator(task, split)(params)
    pieces = Evaluator(task, split, batch_size=7)(params)
    assert whole["examples"] == split.num_examples == 45
    logits = task.apply(params, split.arrays["x"])
    right = np.asarray(logits.argmax(-1)) == split.arrays["y"]
    assert whole["accuracy"] == pieces["accuracy"] == right.mean()
    np.testing.assert_allclose(whole["loss"], pieces["loss"], rtol=1e-5)
    by_client = [right[a:b].mean() for a, b in zip(split.offsets, split.offsets[1:]) if b > a]
    assert np.isclose(whole["client_accuracy"]["mean"], np.mean(by_client))
    assert np.isclose(whole["client_accuracy"]["q50"], np.median(by_client))
    assert np.isclose(whole["client_accuracy"]["q00"], min(by_client))


def test_language_scores_leave_out_padding_and_ignored_tokens():
    task = LanguageModel(None, None, ignored=(3,))
    y = np.array([[1, 2, 3, 0], [2, 0, 0, 0]], np.int32)
    logits = np.zeros((2, 4, 4), np.float32)
    logits[0, :, 1] = 5  # Predicts 1 everywhere in the first example.
    logits[1, :, 2] = 5
    scores = Scores(*map(np.asarray, task.score(logits, y)))
    assert scores.loss_weight.tolist() == [3, 1]
    assert scores.correct_weight.tolist() == [2, 1]
    assert scores.correct.tolist() == [1, 1]
    log_z = np.log(3 + np.exp(5))
    np.testing.assert_allclose(scores.loss, [3 * log_z - 5, log_z - 5], rtol=1e-5)


def test_one_client_has_no_client_accuracy():
    task, split = toy.make_task(), toy.make_split((10,))
    assert "client_accuracy" not in Evaluator(task, split)(toy.make_params(task))
    assert isinstance(split, Split)


def test_training_loss_ignores_masked_examples():
    task = toy.make_task()
    params, split = toy.make_params(task), toy.make_split()
    batch = {k: a[:4] for k, a in split.arrays.items()}
    other = {k: np.concatenate([a[:2], a[10:12]]) for k, a in split.arrays.items()}
    mask = np.array([1, 1, 0, 0], np.float32)
    key = jax.random.key(0)
    loss, gradient = jax.value_and_grad(task.loss)(params, batch, mask, key)
    loss2, gradient2 = jax.value_and_grad(task.loss)(params, other, mask, key)
    assert loss == loss2
    toy.assert_same_bits(gradient, gradient2)
    assert task.loss(params, batch, 0 * mask, key) == 0
