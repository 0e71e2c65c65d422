"""The text classifier: padding, its head, and what it refuses; counts are in test_models.py."""

import jax
import numpy as np
import pytest

from fedlite import models
from fedlite.errors import UserError
from fedlite.models import units

TOKENS = np.array([[3, 1, 4, 1, 5, 0, 0], [2, 6, 5, 3, 5, 2, 1]], np.int32)
SMALL = {"vocabulary_size": 9, "embed": 6, "heads": 3, "ffn": 5, "num_classes": 2}

apply = jax.jit(units.apply, static_argnums=0)


def build(**options):
    return models.build("transformer_classifier", **{**SMALL, **options})


@pytest.fixture(scope="module")
def params(random_params):
    return random_params(build(), TOKENS)


def test_one_logit_is_the_log_odds_of_the_second_class(params):
    logits = apply(build(), params, TOKENS)
    assert logits.shape == (2, 2) and not logits[:, 0].any() and logits[:, 1].all()
    kernel, bias = params["logits/kernel"], params["logits/bias"]
    assert kernel.shape == (6, 1) and bias.shape == (1,)
    both = {
        **params,
        "logits/kernel": np.concatenate([-kernel, 2 * kernel], 1),
        "logits/bias": np.concatenate([-bias, 2 * bias]),
    }
    two = apply(build(single_logit=False), both, TOKENS)
    np.testing.assert_allclose(two[:, 1] - two[:, 0], 3 * logits[:, 1], rtol=1e-4)


def test_padding_counts_only_without_its_mask(params):
    short = TOKENS[:1, :5]
    masked = [apply(build(), params, x)[0, 1] for x in (TOKENS, short)]
    np.testing.assert_allclose(masked[0], masked[1], rtol=1e-5)
    plain = [apply(build(padding_mask=False), params, x)[0, 1] for x in (TOKENS, short)]
    assert abs(plain[0] - plain[1]) > 1e-3
    np.testing.assert_allclose(plain[1], masked[1], rtol=1e-5)


def test_text_of_padding_alone_stays_finite(params):
    def loss(params):
        return units.apply(build(), params, np.zeros((1, 4), np.int32)).sum()

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradient.values())


def test_order_of_words_matters(params):
    swapped = TOKENS[:, [1, 0, 2, 3, 4, 5, 6]]
    difference = apply(build(), params, swapped) - apply(build(), params, TOKENS)
    assert np.abs(difference).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"heads": 4}, r"'embed' \(6\) is no multiple of 'heads' \(4\)"),
        ({"dropout": 1.0}, r"not in \[0, 1\)"),
        ({"num_classes": 3}, "'single_logit' is for two classes, not 3"),
    ],
)
def test_wrong_options_are_refused(options, says):
    with pytest.raises(UserError, match=says):
        build(**options)


def test_images_are_refused():
    with pytest.raises(UserError, match="reads integer tokens"):
        units.param_shapes(build(), np.zeros((1, 8, 8, 1), np.float32))
