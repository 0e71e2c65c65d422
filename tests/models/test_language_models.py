"""The LSTMs and the Transformer: against Flax's cell, by hand, causality and padding."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from fedlite import models
from fedlite.models import recurrent, transformer, units

apply = jax.jit(units.apply, static_argnums=0)

TRANSFORMER = {"layers": 1, "embed": 4, "d_model": 8, "heads": 2, "ffn": 5}
TOKENS = jnp.array([[3, 1, 4, 1, 5, 2], [2, 6, 5, 3, 5, 1]])


@pytest.fixture(scope="module", params=["char_lstm", "word_lstm", "char_transformer"])
def language_model(request, random_params):
    options = {
        "char_lstm": {"embed": 3, "lstm1": 4, "lstm2": 4},
        "word_lstm": {"embed": 3, "lstm1": 4},
        "char_transformer": TRANSFORMER,
    }[request.param]
    model = models.build(request.param, num_classes=7, **options)
    return model, random_params(model, TOKENS)


def test_a_position_sees_the_past_alone(language_model):
    model, params = language_model
    before = apply(model, params, TOKENS)
    after = apply(model, params, TOKENS.at[:, 3].set(6))
    np.testing.assert_allclose(after[:, :3], before[:, :3], atol=1e-6)
    assert (np.abs(after[:, 3:] - before[:, 3:]).max((0, 2)) > 1e-4).all()


def test_trailing_padding_changes_no_earlier_position(language_model):
    model, params = language_model
    before = apply(model, params, TOKENS)
    after = apply(model, params, TOKENS.at[:, 4:].set(0))
    np.testing.assert_allclose(after[:, :4], before[:, :4], atol=1e-6)


def test_lstm_is_flaxs(random_params):
    length, batch, features, hidden = 5, 2, 3, 4
    x = np.random.default_rng(0).normal(size=(batch, length, features)).astype(np.float32)
    layer = recurrent.Lstm(hidden)
    params = random_params(layer, x)
    peer = nn.RNN(nn.OptimizedLSTMCell(hidden))

    def loss(params):
        return jnp.sum(jnp.sin(units.apply(layer, params, x)))

    def peer_loss(params):
        cell = {}
        for i, gate in enumerate("ifgo"):
            cell[f"i{gate}"] = {"kernel": params["input/kernel"][:, i]}
            cell[f"h{gate}"] = {
                "kernel": params["recurrent/kernel"][:, i],
                "bias": params["input/bias"][i],
            }
        return jnp.sum(jnp.sin(peer.apply({"params": {"cell": cell}}, x)))

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    peer_value, peer_gradient = jax.jit(jax.value_and_grad(peer_loss))(params)
    np.testing.assert_allclose(value, peer_value, rtol=1e-5)
    for path in params:
        np.testing.assert_allclose(gradient[path], peer_gradient[path], atol=1e-5, err_msg=path)


def test_lstm_gradient_per_client():
    """Under vmap over kernels, as in a round, each client has its own gradient."""
    rng = np.random.default_rng(0)
    gates = rng.normal(size=(3, 4, 2, 12)).astype(np.float32)
    kernels = rng.normal(size=(3, 3, 12)).astype(np.float32)
    gradient = jax.grad(lambda k, g: jnp.sum(recurrent.lstm(g, k) ** 2))
    together = jax.jit(jax.vmap(gradient))(kernels, gates)
    alone = jax.jit(gradient)
    for i in range(3):
        np.testing.assert_allclose(together[i], alone(kernels[i], gates[i]), atol=1e-5)


def test_lstm_initialisation_is_kerass():
    layer = recurrent.Lstm(6)
    params = units.init_params(layer, jax.random.key(1), jnp.ones((1, 2, 3)))
    np.testing.assert_array_equal(
        params["input/bias"], np.repeat([[0.0], [1.0], [0.0], [0.0]], 6, axis=1)
    )
    rows = np.asarray(params["recurrent/kernel"]).reshape(6, 24)
    np.testing.assert_allclose(rows @ rows.T, np.eye(6), atol=1e-5)


def test_sinusoidal_positions_by_hand():
    np.testing.assert_allclose(
        transformer.sinusoidal_positions(2, 4),
        [[0, 1, 0, 1], [np.sin(1), np.cos(1), np.sin(0.01), np.cos(0.01)]],
        atol=1e-7,
    )


def test_attention_mask_by_hand():
    mask = transformer.attention_mask(jnp.array([[5, 0, 7], [0, 0, 0]]))
    assert mask.shape == (2, 1, 3, 3)
    np.testing.assert_array_equal(mask[0, 0], [[1, 0, 0], [1, 1, 0], [1, 0, 1]])
    np.testing.assert_array_equal(mask[1, 0], np.eye(3))


def test_attention_by_hand():
    """Two heads of one feature that copy: softmax over equal keys is the mean of what is seen."""
    attention = transformer.SelfAttention(heads=2, head_size=1)
    x = jnp.array([[[1.0, 10.0], [3.0, 30.0], [8.0, 80.0]]])
    eye = jnp.eye(2).reshape(2, 2, 1)
    params = {
        "query/kernel": 0 * eye,
        "key/kernel": eye,
        "value/kernel": eye,
        "out/kernel": jnp.eye(2).reshape(2, 1, 2),
        "out/bias": jnp.array([0.5, 0.0]),
        **{f"{name}/bias": jnp.zeros((2, 1)) for name in ("query", "key", "value")},
    }
    mask = transformer.attention_mask(jnp.array([[1, 0, 1]]))
    y = attention.apply({"params": unflatten_dict(params, sep="/")}, x, mask)
    np.testing.assert_allclose(y[0], [[1.5, 10], [2.5, 20], [5, 45]], rtol=1e-5)


def test_padding_between_tokens_is_not_attended(random_params):
    model = models.build("char_transformer", num_classes=7, **TRANSFORMER)
    tokens = TOKENS.at[:, 2].set(0)
    params = random_params(model, tokens)
    table = params["embed/embedding"] + (np.arange(7) == 0)[:, None]
    moved = {**params, "embed/embedding": table.astype(np.float32)}
    before, after = (apply(model, p, tokens)[..., 1:] for p in (params, moved))
    others = np.array([0, 1, 3, 4, 5])
    np.testing.assert_allclose(after[:, others], before[:, others], atol=1e-5)
    assert np.abs(after[:, 2] - before[:, 2]).max() > 1e-3


def test_output_layer_is_the_embedding(random_params):
    model = models.build("char_transformer", num_classes=7, **TRANSFORMER)
    params = random_params(model, TOKENS)
    assert "logits/kernel" not in params
    logits = apply(model, params, TOKENS)
    # A row of the embedding that is not read as input scales that token's logits alone.
    table = params["embed/embedding"] * np.where(np.arange(7) == 0, 2, 1)[:, None]
    table = table.astype(np.float32)
    doubled = apply(model, {**params, "embed/embedding": table}, TOKENS)
    np.testing.assert_allclose(doubled[..., 0], 2 * logits[..., 0], rtol=1e-5)
    np.testing.assert_allclose(doubled[..., 1:], logits[..., 1:], rtol=1e-5)
