"""After the first round nothing is compiled, and nothing crosses to the device unasked."""

import contextlib

import jax
import numpy as np
import pytest

from fedlite import methods
from fedlite.data.federated import FederatedDataset
from fedlite.federated import training
from fedlite.federated.availability import Availability
from fedlite.federated.cohort import sample_cohort
from fedlite.federated.engine import EngineOptions
from fedlite.federated.local import ClientOptimizer
from fedlite.federated.server_optimizer import server_optimizer
from fedlite.federated.workdir import Workdir
from tests import toy

POPULATION, CLIENTS, ROUNDS = 60, 6, 12
AVAILABILITY = Availability(over_selection=1.5, failure_rate=0.3, deadline=8.0)
# Name: method, and options of the engine.
CASES = {
    "resident": ("federated_dropout", {}),
    "availability": ("fedavg", {"resident_bytes": 0, "availability": AVAILABILITY}),
    "poisson": ("fedavg", {"participation": "poisson", "clients_per_chunk": 4}),
    "state": ("scaffold", {"resident_bytes": 0}),
}


@contextlib.contextmanager
def compilations():
    """A list to which the names of programs are added when they are compiled."""
    names = []

    def listen(event, _, fun_name="", **__):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def make_split(seed=0):
    """Clients of 0 examples and more, most of them small."""
    return toy.make_split(tuple(np.random.default_rng(7).geometric(0.25, POPULATION) - 1), seed)


def warm(case):
    """An engine after its first round, the server, and what was compiled until then."""
    spec, options = CASES[case]
    task = toy.make_task()
    method = toy.make_method(task, spec, toy.make_context(task, POPULATION, CLIENTS))
    engine = toy.make_engine(task, method, split=make_split(), clients=CLIENTS, **options)
    server = engine.init(toy.make_params(task))
    with compilations() as names:
        server, _ = engine.run(server, 0, 1)
    return engine, server, names


def run_on(engine, server):
    """The other rounds, one or two at a time; their cohorts' examples."""
    done, examples = 1, []
    while done < ROUNDS:
        count = min(engine.max_rounds, 2, ROUNDS - done)
        server, results = engine.run(server, done, count)
        examples += [result.examples for result in results]
        done += count
    return examples


@pytest.mark.parametrize("case", CASES)
def test_no_round_after_the_first_compiles(case):
    engine, server, first = warm(case)
    assert "jit(run_rounds)" in first
    with compilations() as names, jax.transfer_guard("disallow"):
        examples = run_on(engine, server)
    assert names == []
    # They were rounds of unlike cohorts.
    assert len(set(examples)) > 3


def test_the_guard_and_the_listener_see_what_they_should():
    @jax.jit
    def double(x):
        return 2 * x

    with compilations() as names:
        double(jax.device_put(np.zeros(3)))
        double(jax.device_put(np.zeros(4)))
    assert names == ["jit(double)"] * 2
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        with jax.transfer_guard("disallow"):
            double(np.zeros(3))


def test_a_whole_run_compiles_in_its_first_round_and_evaluation(tmp_path, monkeypatch):
    """With evaluation, checkpoints, clients' state and availability; the cost comes at the end."""
    task = toy.make_task()
    context = toy.make_context(task, POPULATION, CLIENTS)
    dataset = FederatedDataset(
        "toy", {"train": make_split(), "test": toy.make_split(seed=1)}, toy.CLASSES
    )
    experiment = training.Experiment(
        names={"method": "scaffold", "dataset": "toy", "model": "mlp"},
        config={},
        dataset=dataset,
        task=task,
        init_params=lambda: toy.make_params(task),
        method=toy.make_method(task, "scaffold", context),
        recipe=methods.Recipe(CLIENTS, 1, 0.1),
        client_optimizer=ClientOptimizer(),
        server_optimizer=server_optimizer("adam", learning_rate=0.01),
        options=EngineOptions(batch_size=4, devices=1, resident_bytes=0, availability=AVAILABILITY),
        seed=3,
        rounds=9,
        eval_every=2,
        checkpoint_every=3,
    )
    append, at = Workdir.append, {}
    with compilations() as names:

        def marked(self, number, kind, values):
            append(self, number, kind, values)
            at[number, kind] = len(names)

        monkeypatch.setattr(Workdir, "append", marked)
        training.train(experiment, Workdir(tmp_path / "run"))
    assert "jit(run_rounds)" in names[: at[1, "train"]]
    assert at[2, "train"] == at[1, "train"]
    assert at[2, "eval"] > at[2, "train"]
    # Checkpoints at 3, 6 and 9, evaluations at 4, 6, 8 and 9.
    assert names[at[2, "eval"] : at[9, "eval"]] == []
    assert "jit(step)" in names[at[9, "eval"] :]


def test_the_cohorts_of_these_tests_differ():
    """Else nothing would be shown: clients, and how many steps the largest of them needs."""
    sizes = make_split().sizes
    cohorts = [sample_cohort(3, number, POPULATION, CLIENTS) for number in range(ROUNDS)]
    assert len({tuple(ids) for ids in cohorts}) == ROUNDS
    assert len({-(-int(sizes[ids].max()) // 4) for ids in cohorts}) > 1
