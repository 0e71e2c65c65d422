"""The clients' state on disk: what goes in comes out, memory stays flat, checkpoints resume."""

import contextlib
import dataclasses
import os
import pathlib
import subprocess
import sys
import textwrap

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedlite.errors import UserError
from fedlite.federated import store as store_lib
from fedlite.federated.checkpoint import Checkpoints
from fedlite.federated.store import ArrayFile, ClientStore, chunks
from fedlite.methods import Method, View
from tests import toy

ROOT = pathlib.Path(__file__).parents[2]
POPULATION = 7


@dataclasses.dataclass(frozen=True)
class Remembering(Method):
    """Keeps arrays of several types and shapes, drawn from the client's key."""

    size: int = 3

    def init_client(self, key, view):
        return {
            "half": jax.random.normal(key, (2, self.size)).astype(jnp.bfloat16),
            "count": jnp.int32(0),
            "flag": jnp.array([True, False]),
        }


def make(population=POPULATION, **options):
    return ClientStore(Remembering(**options), View({}, {}), population, jax.random.key(4))


@pytest.fixture(scope="module")
def shared():
    """One store, so that it is compiled once; tests put it back to the beginning."""
    return make()


@pytest.fixture
def store(shared):
    shared._seen[:] = False
    return shared


def first_state(client):
    return Remembering().init_client(jax.random.fold_in(jax.random.key(4), client), None)


def test_first_states_come_from_the_clients_keys(store):
    ids = np.array([[5, 2], [-1, 6]])
    state = store.gather(ids)
    assert state["half"].shape == (2, 2, 2, 3) and state["count"].shape == (2, 2)
    assert state["half"].dtype == jnp.bfloat16
    for at in ((0, 0), (0, 1), (1, 1)):
        found = jax.tree.map(lambda leaf, at=at: leaf[at], state)
        toy.assert_same_bits(found, first_state(int(ids[at])))


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(st.lists(st.lists(st.integers(-1, POPULATION - 1), min_size=4, max_size=4)))
def test_is_a_dictionary_by_client(shared, rounds):
    shared._seen[:] = False
    expected = {}
    for number, cohort in enumerate(rounds):
        ids = np.array(list(dict.fromkeys(cohort)) + [-1] * (4 - len(set(cohort))))
        state = shared.gather(ids)
        for position, client in enumerate(ids):
            if client >= 0:
                assert state["count"][position] == expected.get(client, 0)
                expected[client] = 10 * number + position + 1
        state["count"] = np.where(ids >= 0, 10 * number + np.arange(4) + 1, -99)
        shared.scatter(ids, state)
    everyone = shared.gather(np.arange(4))["count"], shared.gather(np.arange(3, 7))["count"]
    for client in range(POPULATION):
        assert everyone[client >= 4][client - 3 * (client >= 4)] == expected.get(client, 0)
    # To look at a state does not keep it.
    assert (shared.save()["seen"] == sorted(expected)).all()


def test_no_state_costs_nothing():
    store = ClientStore(Method(), View({}, {}), 5, jax.random.key(0))
    assert not store.stateful and store.gather(np.array([0, 3])) == () and store.save() == {}
    store.scatter(np.array([0, 3]), ())
    store.load({})


def _filled(store):
    for ids in (np.array([5, 2, -1, 0]), np.array([3, 5, 6, -1])):
        state = store.gather(ids)
        state["count"] = ids.astype(np.int32) * 7
        store.scatter(ids, state)
    return store


@pytest.mark.parametrize("chunk_bytes", [1, 40, 1 << 24])
def test_checkpoints_resume_it(store, tmp_path, monkeypatch, chunk_bytes):
    monkeypatch.setattr(store_lib, "CHUNK_BYTES", chunk_bytes)
    saved = _filled(store).save()
    assert [len(block) for block in saved["rows"].chunks()] == (
        [5] if chunk_bytes > 99 else [2, 2, 1] if chunk_bytes > 1 else [1] * 5
    )
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints")) as checkpoints:
        checkpoints.save(3, {"a": np.zeros(2)}, saved, {})
        restored = checkpoints.restore({"a": np.zeros(2)})
    other = make()
    other.load(restored.clients)
    seen = np.array([0, 2, 3, 5])
    toy.assert_same_bits(other.gather(seen), store.gather(seen))
    # Client 1 has not come yet, and begins as it would have.
    assert not other._seen[1]
    toy.assert_same_bits(
        jax.tree.map(lambda leaf: leaf[1], other.gather(np.array([0, 1, 2, 3]))), first_state(1)
    )
    assert other.gather(np.array([6, 5, 4, 3]))["count"].tolist() == [42, 35, 0, 21]


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: os.truncate(file, 5),
        lambda file: file.write_bytes(b"?" + file.read_bytes()[1:]),
        lambda file: file.unlink(),
    ],
    ids=["cut", "changed", "gone"],
)
def test_a_damaged_file_is_passed_over(store, tmp_path, damage):
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints")) as checkpoints:
        for number in (1, 2):
            checkpoints.save(number, {"a": np.zeros(2)}, _filled(store).save(), {})
        damage(tmp_path / "checkpoints" / "2" / "clients" / "rows.bin")
        assert checkpoints.restore({"a": np.zeros(2)}).round == 1


def test_rows_of_another_method_are_refused(store):
    with pytest.raises(UserError, match=r"has 18 bytes each, .* need 22") as error:
        make(size=4).load({k: np.concatenate(list(chunks(v))) for k, v in _resized(store)})
    assert "\n" not in str(error.value)


def _resized(store):
    # A row is 12 + 4 + 2 bytes.
    saved = _filled(store).save()
    return [("seen", saved["seen"]), ("rows", next(saved["rows"].chunks()))]


def test_array_files(tmp_path):
    array = np.arange(30, dtype=np.float32).reshape(5, 6)
    (tmp_path / "a.bin").write_bytes(array.tobytes())
    file = ArrayFile(tmp_path / "a.bin", (5, 6), array.dtype)
    np.testing.assert_array_equal(np.asarray(file), array)
    with pytest.raises(OSError, match="cut short"):
        np.asarray(ArrayFile(tmp_path / "a.bin", (6, 6), array.dtype))
    assert np.asarray(ArrayFile(tmp_path / "a.bin", (0, 6), array.dtype)).shape == (0, 6)


def test_the_file_goes_with_the_process(tmp_path):
    store = ClientStore(
        Remembering(), View({}, {}), POPULATION, jax.random.key(4), directory=str(tmp_path)
    )
    store.gather(np.array([1]))
    # It has no name, so that nothing is left behind by a kill either.
    assert list(tmp_path.iterdir()) == []


def test_100_000_clients_in_flat_memory(tmp_path):
    """205 MB of state: all of it is written, saved, killed, restored. RSS grows by a third."""
    script = textwrap.dedent("""
        import contextlib, os, pathlib, signal, sys
        import jax, jax.numpy as jnp, numpy as np
        from fedlite.federated.checkpoint import Checkpoints
        from fedlite.federated.store import ClientStore
        from fedlite.federated.training import peak_host_memory as peak
        from fedlite.methods import Method, View

        class Variates(Method):
            def init_client(self, key, view):
                return {"w": jnp.zeros((16, 31)), "b": jnp.zeros(16)}

        path, phase = sys.argv[1:]
        store = ClientStore(Variates(), View({}, {}), 100_000, jax.random.key(0), path)
        ids = np.arange(1000)
        store.scatter(ids, store.gather(ids))
        tree = {"a": np.zeros(2)}
        with contextlib.closing(Checkpoints(pathlib.Path(path) / "c")) as checkpoints:
            checkpoints.save(1, tree, store.save(), {}) if phase == "write" else None
            before = peak()
            if phase == "write":
                for begin in range(0, 100_000, 1000):
                    state = store.gather(ids + begin)
                    state["b"] = state["b"] + (ids + begin)[:, None].astype(np.float32)
                    store.scatter(ids + begin, state)
                checkpoints.save(2, tree, store.save(), {})
                print(peak() - before, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            restored = checkpoints.restore(tree)
            store.load(restored.clients)
            some = np.arange(0, 100_000, 1000)
            assert restored.round == 2
            assert (store.gather(some)["b"] == some[:, None]).all()
            print(peak() - before)
    """)
    for phase in ("write", "read"):
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path), phase],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == (-9 if phase == "write" else 0), done.stderr
        assert int(done.stdout) < 70e6, phase
    assert (tmp_path / "c" / "2" / "clients" / "rows.bin").stat().st_size == 100_000 * 512 * 4
