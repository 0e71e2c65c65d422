"""Running statistics in a federation: averaged by the server, or kept by each client."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedlite.data.federated import Split
from fedlite.errors import UserError
from fedlite.federated import statistics, training
from fedlite.federated.local import ClientOptimizer
from fedlite.federated.round import look_at_received
from fedlite.federated.server_optimizer import NAMES, server_optimizer
from fedlite.methods import Keys, Report, Update, server_view
from fedlite.models import build, units
from fedlite.models.normalization import RATE, is_statistic
from fedlite.privacy.clipping import clip_parts
from fedlite.tasks import Classification
from fedlite.wire import Part
from tests import toy

REPORT = Report(*[jnp.float32(1)] * 4)
KEYS = Keys(jax.random.key(0), jax.random.key(1))
SIZES = (8, 4)
PIXELS = (60, 240)
LOCAL = {"local": ((".*/running_(mean|var)", True),)}
FREEZE = {"freeze": ((".*/running_(mean|var)", True),)}


@pytest.fixture(scope="module")
def task():
    options = {"growth": 2, "block_layers": (1,), "norm": "running", "convolution": "xla"}
    model = build("densenet", num_classes=toy.CLASSES, **options)
    return Classification(model, units.unit_axes(model, toy.EXAMPLE))


@pytest.fixture(scope="module")
def params(task):
    return toy.make_params(task)


@pytest.fixture(scope="module")
def split():
    """A client's images are all alike, so that the order of its batches does not matter."""
    x = np.concatenate([np.full((n, 8, 8, 1), p, np.uint8) for n, p in zip(SIZES, PIXELS)])
    return Split({"x": x, "y": np.arange(12, dtype=np.int32) % 4}, np.array([0, 8, 12]), ("a", "b"))


def _engine(task, spec, split, server="sgd", **sections):
    method = toy.make_method(task, spec, toy.make_context(task, 2, 2), **sections)
    # Too small a rate to move the parameters before the first norm.
    optimizer = server_optimizer(server, learning_rate=0.5)
    return toy.make_engine(task, method, split=split, clients=2, lr=1e-20, server=optimizer)


def _of_a_batch(task, params, pixel):
    """The gradient's word for the statistics of a batch, -> the statistics themselves."""
    x = jnp.full((4, 8, 8, 1), pixel, jnp.uint8)
    batch = {"x": x, "y": jnp.zeros(4, jnp.int32)}
    gradient = jax.grad(task.loss)(params, batch, jnp.ones(4), jax.random.key(0))
    return {k: params[k] - g / RATE for k, g in gradient.items() if is_statistic(k)}


@pytest.mark.parametrize(
    ("spec", "sections", "server"),
    [
        *(("fedavg", {}, name) for name in NAMES),
        ("fedprox", {"fedprox": {"mu": 1.0}}, "sgd"),
        ("scaffold", {}, "sgd"),
        ("fednova", {}, "sgd"),
    ],
)
def test_the_server_s_are_the_mean_of_the_clients(task, params, split, spec, sections, server):
    engine = _engine(task, spec, split, server, **sections)
    served, _ = toy.run(engine, params, 1)
    # Two epochs: 4 steps and 2, by which a client's own have come so far.
    shares = [1 - (1 - RATE) ** 4, 1 - (1 - RATE) ** 2]
    batches = [_of_a_batch(task, params, pixel) for pixel in PIXELS]
    assert len(batches[0]) == 6
    for path in batches[0]:
        moved = [s * (batch[path] - params[path]) for s, batch in zip(shares, batches)]
        expected = params[path] + (8 * moved[0] + 4 * moved[1]) / 12
        np.testing.assert_allclose(served.params[path], expected, rtol=1e-4, atol=1e-5)
        assert np.any(np.abs(expected - params[path]) > 1e-3)


def test_in_a_chain(task, params, split):
    """As with SCAFFOLD alone, but for the code on the way and for what is frozen."""
    chained = "quantize+partial_training+scaffold"
    sections = {
        "partial_training": {"freeze": (("logits/.*", True),)},
        "quantize": {"up": "float16"},
    }
    engine = _engine(task, chained, split, **sections)
    served, results = toy.run(engine, params, 2)
    alone, _ = toy.run(_engine(task, "scaffold", split), params, 2)
    moved = [path for path in params if is_statistic(path)]
    for path in moved:
        np.testing.assert_allclose(served.params[path], alone.params[path], rtol=2e-3, atol=2e-3)
    frozen = {path for path in params if path.startswith("logits/")}
    # Of a variate for each parameter but the statistics, and of every update.
    twice = sum(value.size for path, value in params.items() if path not in {*frozen, *moved})
    assert (results[-1].up == 2 * (2 * twice + sum(params[path].size for path in moved))).all()


def test_clients_may_keep_theirs(task, params, split):
    engine = _engine(task, "local_parameters", split, local_parameters=LOCAL)
    served, (result,) = toy.run(engine, params, 1)
    own = engine.store.gather(np.arange(2))
    assert own.keys() == {path for path in params if is_statistic(path)}
    for path, value in own.items():
        toy.assert_same_bits(served.params[path], params[path])
        assert np.any(value[0] != value[1])
    sent = sum(value.size for path, value in params.items() if path not in own)
    assert (result.up == 4 * sent).all() and (result.down == 4 * sent).all()


@pytest.mark.parametrize(
    ("spec", "sections", "says"),
    [
        ("fedavg", {}, "sent"),
        ("local_parameters", {"local_parameters": LOCAL}, "kept by each client"),
        ("partial_training", {"partial_training": FREEZE}, "frozen"),
    ],
)
def test_the_summary_says_where_they_are(task, params, split, spec, sections, says):
    engine = _engine(task, spec, split, **sections)
    server = engine.host(engine.init(params))
    assert look_at_received(engine.method, server, statistics.travel) == says
    told = training._normalization(task.model, engine.method, server)
    assert told == f"batch, with running statistics, {says}"


def test_the_summary_names_all_that_becomes_of_them(task, params, split):
    some = {"local": (("final_norm/running_.*", True),)}
    engine = _engine(task, "local_parameters", split, local_parameters=some)
    server = engine.host(engine.init(params))
    says = look_at_received(engine.method, server, statistics.travel)
    assert says == "sent or kept by each client"


@pytest.mark.parametrize("spec", ["clip", "federated_dropout", "heterofl"])
def test_what_would_make_them_wrong_is_refused(task, params, split, spec):
    engine = _engine(task, spec, split)
    with pytest.raises(UserError, match=f"{spec} would make running statistics of norms wrong"):
        toy.run(engine, params, 1)
    frozen = _engine(task, f"partial_training+{spec}", split, partial_training=FREEZE)
    server = frozen.host(frozen.init(params))
    assert look_at_received(frozen.method, server, statistics.travel) == "frozen"


def test_privacy_does_not_bound_them():
    parts = {"norm/running_var": Part(jnp.ones(2))}
    with pytest.raises(UserError, match="dp_ftrl would make running statistics of norms wrong"):
        clip_parts(parts, 1.0, "dp_ftrl")


def test_they_tell_nothing_of_a_block_s_significance(task, params):
    method = toy.make_method(task, "fedobd", fedobd={"dropout_rate": 0.5})
    rng = np.random.default_rng(0)
    update = {path: rng.normal(size=value.shape) for path, value in params.items()}

    def chosen(factor):
        parts = {
            path: Part(jnp.float32(value * (factor if is_statistic(path) else 1)))
            for path, value in update.items()
        }
        view = server_view(params)
        _, context = method.select((), method.init_client(None, view), KEYS, view)
        sent, _ = method.deselect(context, Update(parts, jnp.float32(1)), REPORT)
        return {path: int(part.sent) for path, part in sent.parts.items()}

    assert chosen(1) == chosen(1000) and set(chosen(1).values()) == {0, 1}


def test_a_model_without_statistics_has_nothing_to_say():
    task = toy.make_task()
    engine = toy.make_engine(task, toy.make_method(task, "fedavg"))
    server = engine.host(engine.init(toy.make_params(task)))
    assert look_at_received(engine.method, server, statistics.travel) == ""


def test_no_optimiser_has_a_say():
    params = {"a/scale": jnp.ones(2), "a/running_mean": jnp.ones(2)}
    gradients = {"a/scale": jnp.full(2, 3.0), "a/running_mean": jnp.full(2, 0.25)}
    clipped = ClientOptimizer(momentum=0.9, weight_decay=0.1, clip=1.0).make(0.5)
    state = clipped.init(params)
    for _ in range(2):
        updates, state = clipped.update(gradients, state, params)
        np.testing.assert_array_equal(updates["a/running_mean"], -0.25)
    # The norm that is clipped is that of the rest: as if there were no statistics.
    alone = ClientOptimizer(momentum=0.9, weight_decay=0.1, clip=1.0).make(0.5)
    rest = {"a/scale": params["a/scale"]}
    first = clipped.update(gradients, clipped.init(params), params)[0]
    expected, _ = alone.update({"a/scale": gradients["a/scale"]}, alone.init(rest), rest)
    np.testing.assert_array_equal(first["a/scale"], expected["a/scale"])
    assert statistics.apart(optax.sgd(0.1, 0.9)).init(params)[0].trace.keys() == {"a/scale"}
