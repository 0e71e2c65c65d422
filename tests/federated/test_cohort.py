"""Who takes part."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlite.errors import UserError
from fedlite.federated.cohort import PARTICIPATIONS, lay_out, room_for, sample_cohort
from fedlite.federated.engine import EngineOptions, default_clients_per_chunk, even_chunk
from tests import toy


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 2**31 - 1),
    st.integers(0, 1000),
    st.integers(1, 200),
    st.integers(1, 250),
    st.sampled_from(PARTICIPATIONS),
)
def test_a_cohort_is_sorted_distinct_and_repeatable(seed, number, population, clients, how):
    ids = sample_cohort(seed, number, population, clients, how)
    assert np.array_equal(ids, np.unique(ids))
    assert len(ids) == 0 or 0 <= ids[0] <= ids[-1] < population
    if how != "poisson" or clients >= population:
        assert len(ids) == min(clients, population)
    assert np.array_equal(ids, sample_cohort(seed, number, population, clients, how))


@pytest.mark.parametrize("participation", ["uniform", "poisson"])
def test_a_cohort_costs_no_more_in_a_huge_population(participation):
    """Anything with an entry for each of 10^15 clients would not fit into a memory."""
    population = 10**15
    cohorts = [sample_cohort(1, number, population, 1000, participation) for number in (0, 1)]
    for ids in cohorts:
        assert 800 < len(ids) < 1200 and len(np.unique(ids)) == len(ids)
        assert 0 <= ids[0] and ids[-1] < population
        # Spread over all of it: the standard deviation of the mean is population / sqrt(12,000).
        assert abs(ids.mean() / population - 0.5) < 5 / np.sqrt(12_000)
    assert not np.array_equal(*cohorts)


def test_all_uniform_cohorts_are_equally_likely():
    """All 15 pairs of 6 clients, over 6,000 rounds; also in a sparse draw from 20,000."""
    pairs = [tuple(sample_cohort(0, number, 6, 2).tolist()) for number in range(6000)]
    counts = {pair: pairs.count(pair) for pair in set(pairs)}
    assert len(counts) == 15
    assert max(abs(count - 400) for count in counts.values()) < 5 * np.sqrt(400 * 14 / 15)
    hits = np.zeros(20_000)
    for number in range(2000):
        hits[sample_cohort(0, number, len(hits), 10)] += 1
    # Halves are hit alike, whichever clients are drawn first.
    assert abs(hits[:10_000].sum() - 10_000) < 5 * np.sqrt(20_000) / 2


def test_cyclic_participation_is_separated_by_all_other_groups():
    rounds = [sample_cohort(5, number, 23, 4, "cyclic") for number in range(15)]
    for number, ids in enumerate(rounds):
        last = [sum(client in other for other in rounds[number + 1 : number + 5]) for client in ids]
        assert not any(last)
        if number + 5 < len(rounds):
            assert np.array_equal(ids, rounds[number + 5])
    assert len(np.unique(np.concatenate(rounds))) == 20


def test_poisson_cohorts_are_independent_coins():
    """Mean and variance of the size, and every client's share, over 4,000 rounds."""
    hits = np.zeros(20)
    sizes = []
    for number in range(4000):
        ids = sample_cohort(0, number, 20, 5, "poisson")
        sizes.append(len(ids))
        hits[ids] += 1
    assert np.mean(sizes) == pytest.approx(5, abs=0.15)
    assert np.var(sizes) == pytest.approx(20 * 0.25 * 0.75, abs=0.4)
    # 5 standard deviations of a share.
    assert np.abs(hits / 4000 - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 4000)


def test_few_programs_for_poisson_cohorts():
    assert room_for([7, 3], 10, 100, "poisson") == 23
    assert room_for([24], 10, 100, "poisson") == 46
    assert room_for([10], 10, 100, "uniform") == 10
    assert room_for([100], 100, 100, "poisson") == 100


def test_rounds_of_poisson_cohorts_run_also_where_nobody_takes_part():
    task = toy.make_task()
    params = toy.make_params(task)
    method = toy.make_method(task, "fedavg")
    engine = toy.make_engine(task, method, clients=1, participation="poisson")
    server, results = toy.run(engine, params, rounds=12)
    sizes = [len(r.ids) for r in results]
    assert min(sizes) == 0 and max(sizes) > 1
    assert all(np.isfinite(p).all() for p in server.params.values())
    # Chunks hold as many clients as there may be, whatever their number.
    chunked = toy.make_engine(task, method, clients=1, participation="poisson", clients_per_chunk=3)
    toy.assert_close(toy.run(chunked, params, rounds=12)[0].params, server.params)


@pytest.mark.parametrize(("platform", "clients"), [("cpu", 10), ("cpu", 100), ("gpu", 1000)])
def test_few_steps_are_padded_at_sizes_like_those_of_emnist(platform, clients):
    """3,400 writers of about 198 examples with a deviation of 77, batches of 20."""
    rng = np.random.default_rng(0)
    sizes = np.clip(rng.normal(198, 77, 3400), 16, 460).astype(int)
    padded = real = 0
    for number in range(20):
        ids = sample_cohort(0, number, len(sizes), clients)
        per_chunk = default_clients_per_chunk(platform, clients)
        layout = lay_out(
            ids, sizes[ids], ids, devices=1, clients_per_chunk=per_chunk, batch_size=20
        )
        padded, real = padded + layout.padded_steps, real + layout.real_steps
    assert 1 - real / padded < 0.1


def test_chunks_are_alike():
    assert [even_chunk(n) for n in (1, 10, 64, 65, 100, 1000)] == [1, 10, 64, 33, 50, 63]


def test_an_unknown_participation_is_refused():
    with pytest.raises(UserError, match="uniform, poisson, cyclic"):
        EngineOptions(batch_size=1, participation="random")
