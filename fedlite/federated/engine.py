"""The engine: compiles rounds and runs them on one or several devices, of one or several processes.

How clients are mapped onto a device is set by `clients_per_chunk` and `unroll`; results do
not depend on it but for float rounding.
"""

import dataclasses
import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedlite.data.federated import Split
from fedlite.errors import UserError
from fedlite.federated import devices as devices_lib
from fedlite.federated.availability import ALWAYS, Answers, Availability
from fedlite.federated.cohort import PARTICIPATIONS, Layout, lay_out, room_for, sample_cohort
from fedlite.federated.feed import make_feed
from fedlite.federated.local import ClientOptimizer, LocalPlan
from fedlite.federated.round import (
    AXIS,
    RoundPlan,
    Server,
    init_server,
    look_at_received,
    run_rounds,
)
from fedlite.federated.store import ClientStore
from fedlite.methods import Method, Recipe, server_view
from fedlite.tasks import Task
from fedlite.wire import once_bytes


@dataclasses.dataclass(frozen=True)
class EngineOptions:
    """How rounds run; results depend on it only by float rounding.

    Attributes:
      batch_size: of a local step (this one does change results).
      clients_per_chunk: clients that vmap trains together; 0 chooses by the backend.
      unroll: whether clients and steps are unrolled in the program instead of looped.
      rounds_per_dispatch: at most so many rounds a program call; 0 chooses.
      devices: number of devices to use; 0 for all that shorten a round, of several processes all.
      resident_bytes: a data set up to this size lies on each device; on a CPU, whose devices share
        a memory, all copies together.
      uniform: whether clients weigh the same, not by their examples (changes results, too).
      participation: how cohorts are drawn, see `sample_cohort` (changes results, too).
      validation: see `LocalPlan` (changes results, too).
      availability: which clients answer (changes results, too).
    """

    batch_size: int
    clients_per_chunk: int = 0
    unroll: bool = False
    rounds_per_dispatch: int = 0
    devices: int = 0
    resident_bytes: int = 2 << 30
    uniform: bool = False
    participation: str = "uniform"
    validation: float = 0.0
    availability: Availability = ALWAYS

    def __post_init__(self):
        if self.participation not in PARTICIPATIONS:
            raise UserError(
                f"participation must be one of {', '.join(PARTICIPATIONS)}, not "
                f"{self.participation!r}"
            )


class RoundResult(NamedTuple):
    """What one round did, on the host.

    Attributes:
      loss: mean training loss over the cohort's examples.
      examples: of the cohort.
      nonfinite: clients that were left out because their update was not finite.
      ids: int64 [clients], all that were selected.
      down, up: int64 [clients], bytes on the wire of each.
      side: int64 [clients], how many bytes of both are side information.
      once: bytes that a client of this round receives if it never took part before.
      padded_steps, real_steps: steps that ran, and that changed something.
      failed, stragglers: clients whose answer does not count, see `Availability`.
    """

    loss: float
    examples: int
    nonfinite: int
    ids: np.ndarray
    down: np.ndarray
    up: np.ndarray
    side: np.ndarray
    once: int
    padded_steps: int
    real_steps: int
    failed: int = 0
    stragglers: int = 0


class _Phase(NamedTuple):
    begin: int
    method: Method
    recipe: Recipe


class Engine:
    """Runs rounds of one method on one split."""

    def __init__(
        self,
        *,
        task: Task,
        method: Method,
        recipe: Recipe,
        split: Split,
        client_optimizer: ClientOptimizer,
        server_optimizer: optax.GradientTransformation,
        options: EngineOptions,
        seed: int,
    ):
        available = jax.devices()
        if jax.process_count() > 1 and options.devices not in (0, len(available)):
            raise UserError(
                f"devices = {options.devices}, but {jax.process_count()} processes show "
                f"{len(available)}: several processes use all of them, set devices = 0"
            )
        if options.devices > len(available):
            raise UserError(
                f"devices = {options.devices}, but this machine shows {len(available)}; use 0 for "
                "all, or start with XLA_FLAGS=--xla_force_host_platform_device_count=N"
            )
        if options.availability.depends_on_data and method.privacy(1) is not None:
            raise UserError(
                "availability: over_selection and deadline let one client's data decide whether "
                "another one counts, which the privacy guarantee does not cover: set "
                "over_selection = 1 and deadline = 0; failure_rate may stay"
            )
        wanted = options.devices or len(available)
        if not options.devices and jax.process_count() == 1:
            wanted = devices_lib.enough(
                len(available), options.availability.selected(recipe.clients)
            )
        self.devices = devices_lib.by_process(available[:wanted])
        self._own = devices_lib.own_positions(self.devices)
        self.task, self.method, self.recipe = task, method, recipe
        self.options, self.seed = options, seed
        self.compile_seconds = 0.0
        self.split = split
        self._sizes, self._starts = split.sizes, split.offsets[:-1]
        self._max_size = int(self._sizes.max())
        self._client_optimizer, self._server_optimizer = client_optimizer, server_optimizer
        self._feed = make_feed(split, self.devices, options.resident_bytes)
        self._key = jax.random.key(seed)
        self._compiled: dict[Any, Any] = {}
        self._once: dict[Method, int] = {}
        self._phase: _Phase | None = None
        self._store: ClientStore | None = None

    def init(self, params: dict[str, jax.Array]) -> Server:
        """The server before round 0, on the devices, from freshly initialised parameters."""
        params = dict(self.method.start(params))
        key = jax.random.fold_in(self._key, 2**31 - 1)
        self._store = ClientStore(self.method, server_view(params), self.split.num_clients, key)
        return self.place(init_server(self.method, params, self._server_optimizer, key))

    def place(self, server: Server) -> Server:
        """A server from the host onto the devices."""
        if len(self.devices) == 1:
            # A copy, since the rounds donate their input.
            return jax.device_put(jax.tree.map(jnp.array, server), self.devices[0])
        return devices_lib.replicate(server, self.devices)

    def host(self, server: Server) -> Server:
        """One device's copy of the server."""
        return server if len(self.devices) == 1 else devices_lib.unreplicate(server)

    @property
    def store(self) -> ClientStore:
        """The clients' own state; there after `init`."""
        return self._store

    @property
    def streams(self) -> bool:
        """Whether the examples are read round by round, since they don't fit on the devices."""
        return self._feed.streams

    @property
    def max_rounds(self) -> int:
        """At most so many rounds run in one call of `run`, in the phase that was planned last."""
        if self.options.unroll or self._store.stateful:
            return 1
        recipe = self.recipe if self._phase is None else self._phase.recipe
        selected = self.options.availability.selected(recipe.clients)
        return min(self.options.rounds_per_dispatch or 16, self._feed.most_rounds(selected))

    def plan(self, server: Server, round_number: int) -> tuple[Method, Recipe]:
        """The static answer for a round: the method, and the recipe with its `until`."""
        phase = self._phase
        if phase is None or not phase.begin <= round_number < phase.recipe.until:
            state = self.host(server).state
            self._phase = phase = _Phase(
                round_number, *self.method.at(round_number, state, self.recipe)
            )
        return phase.method, phase.recipe

    def run(self, server: Server, first: int, count: int) -> tuple[Server, list[RoundResult]]:
        """Rounds `first` to `first + count - 1`, all of one phase; `server` is used up."""
        method, recipe = self.plan(server, first)
        if count > self.max_rounds or first + count > recipe.until:
            raise ValueError(f"{count} rounds from {first} are not one dispatch")
        room = self.max_rounds
        layouts, answers = self._layouts(recipe, first, count)
        fed = self._feed.fetch(layouts, room)
        if self._feed.streams and first + count < recipe.until:
            # As many again, if a caller's rounds are as even as an experiment's.
            coming = min(count, recipe.until - first - count)
            self._feed.prefetch(self._layouts(recipe, first + count, coming)[0], room)
        padded = fed.layouts + [fed.layouts[-1]] * (room - count)
        # Of this process's devices: [devices, rounds, chunks, ...]
        cohorts = jax.tree.map(
            lambda *leaves: np.stack(leaves, axis=1)[self._own],
            *(layout.cohort for layout in padded),
        )
        mine = self._store.gather(cohorts.ids)
        lrs = np.full(room, recipe.lr, np.float32)
        scalars = (np.int32(first), np.int32(count), self._key)
        if len(self.devices) == 1:
            cohorts, mine = jax.tree.map(lambda leaf: leaf[0], (cohorts, mine))
            # Explicit, so that `jax.transfer_guard` tells of all others.
            cohorts, mine, lrs, scalars = jax.device_put(
                (cohorts, mine, lrs, scalars), self.devices[0]
            )
        else:
            cohorts, mine = devices_lib.spread((cohorts, mine), self.devices)
        arguments = (server, mine, fed.arrays, cohorts, lrs, *scalars)
        server, mine, metrics = self._program(method, recipe, arguments)(*arguments)
        if len(self.devices) == 1:
            metrics, mine = jax.device_get((metrics, mine))
            metrics, mine = jax.tree.map(lambda leaf: leaf[None], (metrics, mine))
        else:
            # The whole cohort's states go to every process, so that all have the same store.
            metrics, mine = devices_lib.fetch((metrics, mine))
        if self._store.stateful:
            self._store.scatter(np.stack([fed.layouts[0].cohort.ids], axis=1), mine)
        once = self._once_bytes(method, server)
        return server, [
            _result(layout, answer, jax.tree.map(lambda leaf, i=i: leaf[:, i], metrics), once)
            for i, (layout, answer) in enumerate(zip(layouts, answers))
        ]

    def _layouts(
        self, recipe: Recipe, first: int, count: int
    ) -> tuple[list[Layout], list[Answers]]:
        population, participation = self.split.num_clients, self.options.participation
        rounds = range(first, first + count)
        selected = self.options.availability.selected(recipe.clients)
        cohorts = [
            sample_cohort(self.seed, number, population, selected, participation)
            for number in rounds
        ]
        answers = [self._answers(recipe, *pair) for pair in zip(rounds, cohorts)]
        room = room_for([len(ids) for ids in cohorts], selected, population, participation)
        share = -(-room // len(self.devices))
        per_chunk = self.options.clients_per_chunk or default_clients_per_chunk(
            self.devices[0].platform, share
        )
        per_chunk = min(per_chunk, share)
        layouts = [
            lay_out(
                ids,
                # Without examples a client receives, trains nothing and weighs nothing.
                np.where(answer.counted, self._sizes[ids], 0),
                self._starts[ids],
                devices=len(self.devices),
                clients_per_chunk=per_chunk,
                batch_size=self.options.batch_size,
                chunks=-(-share // per_chunk),
                steps=self.local_plan(recipe).max_steps if self.options.unroll else 0,
            )
            for ids, answer in zip(cohorts, answers)
        ]
        return [devices_lib.balanced(layout) for layout in layouts], answers

    def _answers(self, recipe: Recipe, round_number: int, ids: np.ndarray) -> Answers:
        steps = recipe.epochs * -(-self._sizes[ids] // self.options.batch_size)
        return self.options.availability.answers(
            self.seed, round_number, self.split.num_clients, ids, steps, recipe.clients
        )

    def local_plan(self, recipe: Recipe) -> LocalPlan:
        """The static side of local training under a recipe."""
        return LocalPlan(
            optimizer=self._client_optimizer,
            epochs=recipe.epochs,
            batch_size=self.options.batch_size,
            max_size=self._max_size,
            unroll=self.options.unroll,
            validation=self.options.validation,
        )

    def _program(self, method: Method, recipe: Recipe, arguments):
        plan = RoundPlan(
            task=self.task,
            method=method,
            local=self.local_plan(recipe),
            server_optimizer=self._server_optimizer,
            uniform=self.options.uniform,
            axis=AXIS if len(self.devices) > 1 else None,
        )
        shapes = tuple(np.shape(leaf) for leaf in jax.tree.leaves(arguments))
        if (plan, shapes) not in self._compiled:
            begin = time.perf_counter()
            function = functools.partial(run_rounds, plan)
            if plan.axis:
                mapped = jax.pmap(
                    _gathered(function),
                    AXIS,
                    in_axes=(0, 0, 0, 0, None, None, None, None),
                    devices=self.devices,
                    donate_argnums=0,
                )
                mapped.lower(*arguments).compile()
                # Not what `compile` returns, which would want arrays of all processes: a call
                # finds the program that was compiled.
                self._compiled[plan, shapes] = mapped
            else:
                mapped = jax.jit(function, donate_argnums=0)
                self._compiled[plan, shapes] = mapped.lower(*arguments).compile()
            self.compile_seconds += time.perf_counter() - begin
        return self._compiled[plan, shapes]

    def _once_bytes(self, method: Method, server: Server) -> int:
        if method not in self._once:
            self._once[method] = client_once_bytes(method, self.host(server))
        return self._once[method]


def _gathered(function):
    """`run_rounds` within `jax.pmap`, after which every process knows the whole cohort's part."""

    def run(*arguments):
        server, mine, metrics = function(*arguments)
        return server, *devices_lib.gather((mine, metrics))

    return run


def default_clients_per_chunk(platform: str, clients: int) -> int:
    """How many clients vmap trains together, as `benchmarks/` found.

    On a CPU one at a time is fastest: batched per-client kernels gain nothing there and cost
    memory. An accelerator wants large batched products.
    """
    return 1 if platform == "cpu" else even_chunk(clients)


def even_chunk(clients: int, most: int = 64) -> int:
    """The size of as few chunks as `most` allows, all alike: 50 for 100, so that no place idles."""
    chunks = max(1, -(-clients // most))
    return max(1, -(-clients // chunks))


def client_once_bytes(method: Method, server: Server) -> int:
    """Bytes that one client receives once in its life."""
    return look_at_received(method, server, lambda view: once_bytes({**view.trained, **view.read}))


def _result(layout: Layout, answers: Answers, metrics, once: int) -> RoundResult:
    real = layout.cohort.ids >= 0
    loss, examples, nonfinite = (np.asarray(leaf)[0] for leaf in metrics[:3])
    order = np.argsort(layout.cohort.ids[real])
    down, up, down_side, up_side = (
        np.asarray(leaf)[real][order].astype(np.int64) for leaf in metrics[3:]
    )
    return RoundResult(
        loss=float(loss),
        examples=int(examples),
        nonfinite=int(nonfinite),
        ids=np.sort(layout.cohort.ids[real]).astype(np.int64),
        down=down,
        up=np.where(answers.counted, up, 0),
        side=down_side + np.where(answers.counted, up_side, 0),
        once=once,
        padded_steps=layout.padded_steps,
        real_steps=layout.real_steps,
        failed=answers.failed,
        stragglers=answers.stragglers,
    )
