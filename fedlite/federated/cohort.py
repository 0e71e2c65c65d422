"""Who takes part in a round, and how the cohort is laid out over devices and chunks."""

from typing import NamedTuple

import numpy as np

from fedlite.federated.round import Cohort


def sample_cohort(seed: int, round_number: int, population: int, clients: int) -> np.ndarray:
    """Client indices drawn uniformly without replacement, int64 [clients], sorted.

    A function of (seed, round) alone, in O(clients) memory and time. All clients take part
    where `clients` is at least `population`.
    """
    if clients >= population:
        return np.arange(population)
    generator = np.random.default_rng(np.random.SeedSequence([seed, round_number, 0xC0]))
    return np.sort(generator.choice(population, clients, replace=False, shuffle=False))


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
