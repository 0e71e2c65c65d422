"""Who takes part in a round, and how the cohort is laid out over devices and chunks."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedlite.federated.round import Cohort

PARTICIPATIONS = ("uniform", "poisson", "cyclic")


def sample_cohort(
    seed: int, round_number: int, population: int, clients: int, participation: str = "uniform"
) -> np.ndarray:
    """The clients of a round, a function of its arguments alone.

    Args:
      seed: of the run.
      round_number: from 0.
      population: number of clients.
      clients: size of the cohort, its mean for "poisson"; from `population` on, all take part.
      participation: "uniform" draws that many without replacement; "poisson" draws each client
        on its own with probability clients / population; "cyclic" shuffles the population once,
        cuts it into population // clients groups of `clients` (a remainder never takes part),
        and takes them in turn, so that a client takes part every population // clients rounds.

    Returns:
      Client indices, int64, sorted; in O(clients) time but for "cyclic".
    """
    if clients >= population:
        return np.arange(population)
    if participation == "cyclic":
        begin = round_number % (population // clients) * clients
        return np.sort(_shuffled(seed, population)[begin : begin + clients])
    generator = np.random.default_rng(np.random.SeedSequence([seed, round_number, 0xC0]))
    if participation == "poisson":
        # The same distribution as a coin for each client, without a draw for each.
        clients = generator.binomial(population, clients / population)
    return np.sort(generator.choice(population, clients, replace=False, shuffle=False))


@functools.lru_cache(maxsize=4)
def _shuffled(seed: int, population: int) -> np.ndarray:
    return np.random.default_rng(np.random.SeedSequence([seed, 0xC1])).permutation(population)


def room_for(sizes: Sequence[int], clients: int, population: int, participation: str) -> int:
    """How many clients the compiled rounds hold: few different numbers, so few programs.

    Args:
      sizes: of the cohorts at hand.
      clients, population, participation: as of `sample_cohort`.
    """
    if participation != "poisson" or clients >= population:
        return max(sizes)
    room = math.ceil(clients + 4 * math.sqrt(clients))
    while room < max(sizes):
        room *= 2
    return room


class Layout(NamedTuple):
    """A cohort laid out over devices; every leaf has the leading axis [devices].

    Attributes:
      cohort: leaves [devices, chunks, ...].
      padded_steps, real_steps: steps an epoch that run in all, and that change something.
    """

    cohort: Cohort
    padded_steps: int
    real_steps: int


def lay_out(
    ids: np.ndarray,
    sizes: np.ndarray,
    starts: np.ndarray,
    *,
    devices: int,
    clients_per_chunk: int,
    batch_size: int,
    chunks: int = 0,
    steps: int = 0,
) -> Layout:
    """Puts clients of like size beside each other, so that few steps are padded.

    Args:
      ids, sizes, starts: of each client, [clients].
      devices: the cohort is divided over.
      clients_per_chunk: trained together by vmap.
      batch_size: of a local step.
      chunks: a device's chunks; 0 for as many as are needed.
      steps: what each chunk runs; 0 for what its largest client needs.
    """
    width = devices * clients_per_chunk
    chunks = chunks or max(1, -(-len(ids) // width))
    # Largest first; equal sizes by id, so that the layout is a function of the cohort.
    order = np.lexsort((ids, -sizes))
    filler = chunks * width - len(ids)
    if filler < 0:
        raise ValueError(f"{len(ids)} clients do not fit in {chunks} chunks of {width}")

    def shaped(values, fill):
        padded = np.concatenate([np.asarray(values)[order], np.full(filler, fill)])
        grid = padded.reshape(chunks, devices, clients_per_chunk)
        return np.ascontiguousarray(grid.transpose(1, 0, 2)).astype(np.int32)

    grid_sizes = shaped(sizes, 0)
    needed = -(-grid_sizes // batch_size)
    per_chunk = needed.max(axis=2)
    if steps:
        per_chunk = np.full_like(per_chunk, steps)
    cohort = Cohort(shaped(ids, -1), shaped(starts, 0), grid_sizes, per_chunk)
    return Layout(cohort, int(per_chunk.sum()) * clients_per_chunk, int(needed.sum()))
