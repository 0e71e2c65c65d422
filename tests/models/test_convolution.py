"""Every convolution against XLA's, in value and gradients; pooling against reduce_window."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from fedlite.errors import UserError
from fedlite.models import layers, winograd
from fedlite.models.convolution import (
    IMPLEMENTATIONS,
    conv2d,
    conv2d_max_pool,
    max_pool,
    max_pool_general,
)

OTHERS = [name for name in IMPLEMENTATIONS if name != "xla"]


def _normal(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _value_and_gradients(function, *args):
    value, pull = jax.vjp(function, *args)
    return value, *pull(_normal(value.shape, seed=9).astype(value.dtype))


def _assert_close(actual, expected, tolerance=5e-5):
    """Compares relative to the largest expected entry: sums of other orders differ there."""
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == e.shape and a.dtype == e.dtype
        np.testing.assert_allclose(a, e, atol=tolerance * max(1e-3, np.abs(e).max()), rtol=0)


@functools.partial(jax.jit, static_argnames=("strides", "padding", "implementation"))
def _conv_and_gradients(x, kernel, strides, padding, implementation):
    conv = functools.partial(
        conv2d, strides=strides, padding=padding, implementation=implementation
    )
    return _value_and_gradients(conv, x, kernel)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_cross_correlation_by_hand(implementation):
    x = jnp.arange(12.0).reshape(1, 3, 4, 1)
    kernel = jnp.array([[1.0, 0.0], [0.0, 10.0]]).reshape(2, 2, 1, 1)
    y = conv2d(x, kernel, implementation=implementation)
    # Entry (i, j) is x[i, j] + 10 x[i + 1, j + 1]; a flipped kernel would give 5 + 0 first.
    np.testing.assert_array_equal(y[0, :, :, 0], [[50, 61, 72], [94, 105, 116]])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_window_of_ones_counts_neighbours(implementation):
    y = conv2d(
        jnp.ones((1, 6, 5, 8)),
        jnp.ones((3, 3, 8, 8)),
        padding="SAME",
        implementation=implementation,
    )
    rows, columns = np.array([2, 3, 3, 3, 3, 2]), np.array([2, 3, 3, 3, 2])
    expected = 8 * np.outer(rows, columns)
    np.testing.assert_allclose(y, np.broadcast_to(expected[None, :, :, None], y.shape), rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(
    implementation=st.sampled_from(["patches", "winograd"]),
    size=st.tuples(st.integers(5, 11), st.integers(5, 11)),
    window=st.sampled_from([(1, 1), (3, 3), (3, 3), (3, 3), (2, 3), (5, 5)]),
    channels=st.sampled_from([(1, 6), (3, 5), (5, 5), (6, 3), (8, 7)]),
    strides=st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 3)]),
    padding=st.sampled_from(["SAME", "VALID"]),
)
def test_agrees_with_xla(implementation, size, window, channels, strides, padding):
    x, kernel = _normal((2, *size, channels[0])), _normal((*window, *channels), seed=1)
    actual = _conv_and_gradients(x, kernel, strides, padding, implementation)
    expected = _conv_and_gradients(x, kernel, strides, padding, "xla")
    _assert_close(actual, expected)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_winograd_is_exact_to_rounding_at_the_size_it_is_for(padding):
    x, kernel = _normal((4, 26, 26, 32)), _normal((3, 3, 32, 64), seed=1)
    actual = _conv_and_gradients(x, kernel, (1, 1), padding, "winograd")
    with jax.enable_x64(True):
        expected = _value_and_gradients(
            functools.partial(conv2d, padding=padding, implementation="xla"),
            x.astype(jnp.float64),
            kernel.astype(jnp.float64),
        )
    for a, e in zip(actual, expected, strict=True):
        exact = np.asarray(e)
        assert np.abs(np.asarray(a) - exact).max() < 1e-4 * exact.std()


@pytest.mark.parametrize("channels", [1, 8])
def test_double_precision_is_kept(channels):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, kernel = rng.normal(size=(2, 9, 8, channels)), rng.normal(size=(3, 3, channels, 8))
        for conv in (conv2d, conv2d_max_pool):
            actual, expected = (
                _value_and_gradients(functools.partial(conv, implementation=name), x, kernel)
                for name in ("winograd", "xla")
            )
            assert all(array.dtype == jnp.float64 for array in actual)
            _assert_close(actual, expected, tolerance=1e-13)


def test_winograd_runs_where_it_applies_and_only_there(monkeypatch):
    calls = []
    for name in ("conv", "conv_max_pool"):
        original = getattr(winograd, name)
        monkeypatch.setattr(winograd, name, lambda *a, f=original: calls.append(f) or f(*a))

    def is_winograd(x_shape, kernel_shape, dtype=jnp.float32, conv=conv2d, **kwargs):
        calls.clear()
        x, kernel = jnp.zeros(x_shape, dtype), jnp.zeros(kernel_shape, dtype)
        conv(x, kernel, implementation="winograd", **kwargs)
        return [call.__name__ for call in calls]

    assert is_winograd((1, 8, 8, 8), (3, 3, 8, 8))
    assert not is_winograd((1, 8, 8, 8), (5, 5, 8, 8))
    assert not is_winograd((1, 8, 8, 1), (3, 3, 1, 8))
    assert not is_winograd((1, 4, 4, 8), (3, 3, 8, 8), padding="SAME")
    assert not is_winograd((1, 8, 8, 8), (3, 3, 8, 8), strides=(2, 2))
    assert not is_winograd((1, 8, 8, 8), (3, 3, 8, 8), dtype=jnp.bfloat16)
    pooled = functools.partial(is_winograd, (1, 8, 8, 8), (3, 3, 8, 8), conv=conv2d_max_pool)
    assert pooled() == ["conv_max_pool"] and pooled(window=3) == ["conv"]
    assert not pooled(dtype=jnp.bfloat16)


@pytest.mark.parametrize("backend, name", [("cpu", "winograd"), ("gpu", "patches"), ("tpu", "xla")])
def test_auto_resolves_by_backend(monkeypatch, backend, name):
    x, kernel = jnp.zeros((1, 8, 8, 8)), jnp.zeros((3, 3, 8, 8))

    def program(implementation):
        conv = functools.partial(conv2d, implementation=implementation)
        return jax.jit(conv).lower(x, kernel).as_text()

    expected = program(name)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert program("auto") == expected


@pytest.mark.parametrize("conv", [conv2d, conv2d_max_pool])
@pytest.mark.parametrize("channels", [1, 6])
@pytest.mark.parametrize("implementation", OTHERS)
def test_per_client_kernels_under_vmap_inside_scan(implementation, channels, conv):
    clients = 3
    x = _normal((clients, 2, 7, 6, channels))
    kernels = 0.2 * _normal((clients, 3, 3, channels, 5), seed=1)

    def train(x, kernel, name):
        def loss(kernel):
            return jnp.mean(jnp.tanh(conv(x, kernel, implementation=name)) ** 2)

        def step(kernel, _):
            value, gradient = jax.value_and_grad(loss)(kernel)
            return kernel - 0.5 * gradient, value

        return lax.scan(step, kernel, length=3)

    actual = jax.jit(jax.vmap(functools.partial(train, name=implementation)))(x, kernels)
    for i in range(clients):
        expected = train(x[i], kernels[i], "xla")
        _assert_close(jax.tree.map(lambda a, i=i: a[i], actual), expected)
    assert not np.allclose(actual[0], kernels, atol=1e-3)


@pytest.mark.parametrize("conv", [conv2d, conv2d_max_pool])
@pytest.mark.parametrize("channels", [1, 8])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_batch_of_nothing_is_no_error(implementation, channels, conv):
    x, kernel = jnp.zeros((0, 8, 8, channels)), jnp.ones((3, 3, channels, 8))
    value, dx, dkernel = _value_and_gradients(
        functools.partial(conv, implementation=implementation), x, kernel
    )
    assert value.shape[0] == 0 and dx.shape == x.shape
    np.testing.assert_array_equal(dkernel, jnp.zeros(kernel.shape))


@pytest.mark.parametrize("size", [4, 6])
def test_untiles_is_the_transpose_of_tiles(size):
    shape = (2, 8, 12, 3)
    tiles, pull = jax.vjp(lambda x: winograd.tiles(x, size), _normal(shape))
    dy = _normal(tiles.shape, seed=1)
    np.testing.assert_allclose(winograd.untiles(dy, size), pull(dy)[0], atol=1e-6)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_bfloat16_stays_bfloat16(name):
    x, kernel = _normal((1, 6, 6, 8)), _normal((3, 3, 8, 8), seed=1)
    y = conv2d(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), implementation=name)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), conv2d(x, kernel), atol=0.3)


def test_bad_input_is_named():
    x, kernel = jnp.zeros((1, 4, 2, 1)), jnp.zeros((3, 3, 1, 1))
    large, kernels = jnp.zeros((1, 8, 8, 8)), jnp.zeros((3, 3, 8, 8))
    for conv in (conv2d, conv2d_max_pool):
        for arrays in ((x, kernel), (large, kernels)):
            with pytest.raises(UserError, match=r"'same'.*'SAME'"):
                conv(*arrays, padding="same", implementation="winograd")
            with pytest.raises(UserError, match=r"'fft'.*winograd"):
                conv(*arrays, implementation="fft")
    for name in IMPLEMENTATIONS:
        for conv in (conv2d, conv2d_max_pool):
            with pytest.raises(UserError, match="3 x 3 does not fit in an image of 4 x 2"):
                conv(x, kernel, implementation=name)
    with pytest.raises(UserError, match="'full'"):
        max_pool_general(x, padding="full")
    with pytest.raises(UserError, match="3 x 3 does not fit"):
        max_pool(x, 3)


def _reduce_window(x, window, strides, padding):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), padding)


def test_max_pool_by_hand():
    x = jnp.array([[1.0, 2.0, 9.0], [4.0, 3.0, 9.0], [9.0, 9.0, 9.0]]).reshape(1, 3, 3, 1)
    value, pull = jax.vjp(max_pool, x)
    np.testing.assert_array_equal(value, [[[[4.0]]]])
    gradient = pull(jnp.full((1, 1, 1, 1), 7.0))[0]
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[0, 0, 0], [7, 0, 0], [0, 0, 0]])


def test_first_of_tied_values_gets_the_gradient():
    gradient = jax.grad(lambda x: max_pool(x).sum())(jnp.ones((1, 2, 4, 1)))
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[1, 0, 1, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    "window, strides, padding",
    [
        ((2, 2), (2, 2), "VALID"),
        ((3, 3), (2, 2), "SAME"),
        ((3, 3), (2, 2), "VALID"),
        ((3, 2), (1, 3), "SAME"),
    ],
)
def test_pooling_agrees_with_reduce_window(window, strides, padding, ties):
    x = _normal((2, 9, 8, 3))
    x = jnp.round(x) if ties else x
    actual = _value_and_gradients(lambda x: max_pool_general(x, window, strides, padding), x)
    expected = _value_and_gradients(lambda x: _reduce_window(x, window, strides, padding), x)
    np.testing.assert_array_equal(actual[0], expected[0])
    np.testing.assert_allclose(actual[1], expected[1], atol=1e-6)


@functools.partial(jax.jit, static_argnames=("window", "padding", "implementation"))
def _pooled_and_gradients(x, kernel, window, padding, implementation):
    conv = functools.partial(
        conv2d_max_pool, window=window, padding=padding, implementation=implementation
    )
    return _value_and_gradients(conv, x, kernel)


@settings(max_examples=20, deadline=None)
@given(
    implementation=st.sampled_from(["patches", "winograd", "winograd", "winograd"]),
    size=st.tuples(st.integers(5, 12), st.integers(5, 12)),
    kernel_size=st.sampled_from([3, 3, 3, 2]),
    channels=st.sampled_from([(1, 6), (5, 5), (8, 7)]),
    window=st.sampled_from([2, 2, 2, 3]),
    padding=st.sampled_from(["SAME", "VALID"]),
    ties=st.booleans(),
)
def test_convolution_with_pooling_agrees_with_both_in_turn(
    implementation, size, kernel_size, channels, window, padding, ties
):
    # Of an empty image all outputs are exactly 0: the first of a square has the gradient.
    x = jnp.zeros((2, *size, channels[0])) if ties else _normal((2, *size, channels[0]))
    kernel = _normal((kernel_size, kernel_size, *channels), seed=1)
    actual = _pooled_and_gradients(x, kernel, window, padding, implementation)

    def in_turn(x, kernel):
        return max_pool(conv2d(x, kernel, padding=padding, implementation="xla"), window)

    _assert_close(actual, _value_and_gradients(in_turn, x, kernel))


def test_a_layer_that_pools_is_the_layer_and_pooling():
    x = _normal((2, 9, 8, 5))
    pooled, plain = layers.Conv(6, (3, 3), pool=2), layers.Conv(6, (3, 3))
    params = plain.init(jax.random.key(0), x)
    params["params"]["bias"] = _normal((6,), seed=2)
    expected = max_pool(plain.apply(params, x))
    np.testing.assert_allclose(pooled.apply(params, x), expected, atol=1e-5)
    with pytest.raises(ValueError, match="strides of 1"):
        layers.Conv(6, (3, 3), strides=(2, 2), pool=2).apply(params, x, pooled=False)


def test_pooling_before_bias_and_relu_is_the_same_function():
    x, bias = _normal((2, 6, 6, 3)), _normal((3,), seed=1)
    late = _value_and_gradients(lambda x, b: max_pool(jax.nn.relu(x + b)), x, bias)
    early = _value_and_gradients(lambda x, b: jax.nn.relu(max_pool(x) + b), x, bias)
    _assert_close(early, late, tolerance=1e-6)


def test_pooling_backward_has_no_select_and_scatter():
    gradient = jax.grad(lambda x: max_pool_general(max_pool(x)).sum())
    program = jax.jit(gradient).lower(jnp.ones((1, 8, 8, 1))).as_text()
    assert "select_and_scatter" not in program
