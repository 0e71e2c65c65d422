"""The algebra of methods: select, deselect, and their composition.

A federated method is a set of pure functions on messages, each with FedAvg as its default.
What the server holds is a `View` of its parameters; `select` turns it into what one client
receives, `deselect` turns what the client computed into what it uploads and then into the
server's shapes. The engine's only rule is

    aggregate = sum_i weight_i cover_i value_i / sum_i weight_i cover_i

over the clients i of the cohort, entry by entry; where nobody claims an entry, it stays as
it is. Codecs are methods whose select or deselect is the trip over the wire.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedlite.errors import UserError
from fedlite.wire import Part

FOREVER = 2**31 - 1


class View(NamedTuple):
    """What one client holds, as parts by parameter path.

    Attributes:
      trained: parts that the client trains and whose update it returns.
      read: parts that it only reads: frozen parameters by their path, and data of a method
        by "tag:path". A tagged part is cut to a sub-model as the parameter at its path is.
    """

    trained: dict[str, Part]
    read: dict[str, Part]


class Update(NamedTuple):
    """What one client returns: parts by path (or "tag:path"), and its weight in the mean."""

    parts: dict[str, Part]
    weight: Any


class Sums(NamedTuple):
    """The cohort's sums, by path and "tag:path".

    Attributes:
      total: sum of weight * cover * value.
      claim: sum of weight * cover, which broadcasts against `total`.
    """

    total: dict[str, Any]
    claim: dict[str, Any]


class Keys(NamedTuple):
    """Random keys of a round: one that the cohort shares, and the client's own."""

    round: Any
    client: Any


class Report(NamedTuple):
    """What local training reports; a mean over the cohort where `revise` reads it.

    Attributes:
      loss: mean training loss over the client's examples, all epochs.
      examples: the client's number of examples.
      steps: steps really taken; padding counts nothing.
      lr_sum: sum of the learning rates of these steps.
    """

    loss: Any
    examples: Any
    steps: Any
    lr_sum: Any


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A round's plan.

    Attributes:
      clients: size of the cohort.
      epochs: of local training.
      lr: the clients' learning rate; another value needs no other program.
      until: the first round at which the plan may change.
      ended: whether the run is over: this round does not take place.
    """

    clients: int
    epochs: int
    lr: float
    until: int = FOREVER
    ended: bool = False


class Context(NamedTuple):
    """What a method may need to know of the experiment when it is built.

    Attributes:
      axes: the model's `UnitAxes`.
      shapes: shapes of the server's parameters by path.
      population: number of clients.
      clients_per_round: size of the cohort.
      rounds: of the run.
      participation: how cohorts are drawn, one of `fedlite.federated.cohort.PARTICIPATIONS`.
      weighting: what a client weighs in the mean, "examples" or "uniform".
      client_momentum: of the clients' optimiser.
      local_validation: share of its examples by which a client chooses its best epoch.
    """

    axes: Any
    shapes: Mapping[str, tuple[int, ...]]
    population: int
    clients_per_round: int
    rounds: int
    participation: str = "uniform"
    weighting: str = "examples"
    client_momentum: float = 0.0
    local_validation: float = 0.0


class Method:
    """FedAvg: everything is sent, trained and returned.

    A method is a frozen dataclass, equal by value, since it is a static jit argument. Fields
    without a default (`axes`, `shapes`, ...) are filled from the `Context`; the others are the
    options of a config.

    Attributes:
      bounds_updates: whether what it returns from `deselect` is bounded for privacy, so that no
        method further out may change it, and none is told anything that was not made private.
      changes_cohort: whether `at` may change how many clients take part.
      shrinks_later: whether it may send smaller parameters than in round 0, so that no method that
        remembers arrays may stand behind it, and none that bounds updates beside it.
      hides_units: whether it may send kernels whose axes are no longer those of the model's units,
        so that no method that cuts sub-models may stand behind it.
      alters_broadcast: whether values change on their way down, so that no method that freezes
        them may stand behind it.
      freezes: whether clients hold on to values that they never receive again.
    """

    bounds_updates = False
    changes_cohort = False
    shrinks_later = False
    hides_units = False
    alters_broadcast = False
    freezes = False

    def start(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """The server's parameters before round 0, from freshly initialised ones."""
        return params

    def init(self, key, view: View) -> Any:
        """The server's state, in the server's coordinates; its shapes never change."""
        return ()

    def init_client(self, key, view: View) -> Any:
        """A client's state before its first round; a store keeps it between rounds."""
        return ()

    def select(self, state, mine, keys: Keys, view: View) -> tuple[View, Any]:
        """What one client receives; the context is handed to `deselect` unchanged."""
        return view, mine

    def client_optimizer(
        self, view: View, optimizer: optax.GradientTransformation
    ) -> optax.GradientTransformation:
        """How the client's local steps differ."""
        return optimizer

    def deselect(self, context, update: Update, report: Report) -> tuple[Update, Any]:
        """The client's upload in the shapes that `select` was given, and its new state."""
        return update, context

    def combine(self, state, key, sums: Sums, report: Report) -> Sums:
        """The server's turn on the cohort's sums, before they are divided: noise, rescaling."""
        return sums

    def made_from_seed(self, path: str) -> bool:
        """Whether clients make the server's parameter at a path themselves, from the seed."""
        return False

    def revise(self, state, key, params, aggregate, report: Report) -> Any:
        """The server's turn after the aggregation: new masks, new scores."""
        return state

    def deployed(self, state, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """The model that evaluation scores: the server's, or the sub-model that it stands for."""
        return params

    def at(self, round_number: int, state, recipe: Recipe) -> tuple["Method", Recipe]:
        """The static answer for the rounds from this one to `recipe.until`; on the host.

        Asked at any round before `until` it is the same, whatever the state is by then: a
        resumed run asks in the middle.
        """
        return self, recipe

    def privacy(self, rounds: int) -> Mapping[str, Any] | None:
        """The guarantee after so many rounds: "epsilon", "delta" and the assumptions; or None."""
        return None


@dataclasses.dataclass(frozen=True)
class Chain(Method):
    """Methods one inside the other: select runs left to right, deselect right to left."""

    methods: tuple[Method, ...]

    def __post_init__(self):
        for index, method in enumerate(self.methods):
            cutters = [type(m).__name__ for m in self.methods[index + 1 :] if hasattr(m, "axes")]
            if method.hides_units and cutters:
                raise UserError(
                    f"{type(method).__name__} sends compact kernels, out of which {cutters[0]} "
                    "cannot cut units: set federated_pruning.pattern to 'unit' or 'unstructured'"
                )
            lossy = [type(m).__name__ for m in self.methods[:index] if m.alters_broadcast]
            if method.freezes and lossy:
                raise UserError(
                    f"{lossy[0]} changes the values on their way down, so that "
                    f"{type(method).__name__} to its right would freeze others than the server's: "
                    "put it to the right"
                )
            if not method.bounds_updates:
                continue
            name = type(method).__name__
            for other in self.methods:
                if other.changes_cohort:
                    raise UserError(
                        f"{name} accounts for cohorts of one size, and {type(other).__name__} "
                        "changes it on the way: leave that out (of fedobd: stage2_rounds = 0)"
                    )
                # Said at once, as a mask in the middle of the run would be refused.
                if other.shrinks_later:
                    raise UserError(
                        f"{name} needs every client to answer for every parameter in every round, "
                        f"and {type(other).__name__} leaves some out later: leave that out"
                    )
            for outer in self.methods[:index]:
                if type(outer).deselect is not Method.deselect:
                    raise UserError(
                        f"{name} bounds what a client can change, and {type(outer).__name__} to "
                        "its left would change it again: put it to the right"
                    )
            for inner in self.methods[index + 1 :]:
                if type(inner).combine is not Method.combine:
                    raise UserError(
                        f"{name} adds its noise after {type(inner).__name__} had its turn on the "
                        "sums, which may undo the bound: leave it out"
                    )

    def start(self, params):
        """Outer to inner."""
        for method in self.methods:
            params = method.start(params)
        return params

    def init(self, key, view):
        """The states of the methods, each given the view that those before it leave."""
        states = []
        outer, shrinks = view, False
        for method, own_key in zip(self.methods, self._split(key)):
            state, mine = method.init(own_key, view), method.init_client(own_key, view)
            if _remembers((state, mine)) and (shrinks or _shrunk(outer, view)):
                raise UserError(
                    f"{type(method).__name__} remembers arrays, so in the chain of methods it "
                    "must stand before the methods that shrink them: put it further left"
                )
            states.append(state)
            shrinks |= method.shrinks_later
            view = self._received(method, state, mine, own_key, view)
        return tuple(states)

    def init_client(self, key, view):
        """As `init`."""
        states = []
        for method, own_key in zip(self.methods, self._split(key)):
            mine = method.init_client(own_key, view)
            states.append(mine)
            view = self._received(method, method.init(own_key, view), mine, own_key, view)
        return tuple(states)

    def select(self, state, mine, keys, view):
        """Outer to inner."""
        contexts = []
        inner_keys = zip(self._split(keys.round), self._split(keys.client))
        for method, own, my, key in zip(self.methods, state, mine, inner_keys, strict=True):
            view, context = method.select(own, my, Keys(*key), view)
            contexts.append(context)
        return view, tuple(contexts)

    def client_optimizer(self, view, optimizer):
        """Inner to outer, so that the outermost method sees the raw gradient first."""
        for method in reversed(self.methods):
            optimizer = method.client_optimizer(view, optimizer)
        return optimizer

    def deselect(self, context, update, report):
        """Inner to outer."""
        mine = []
        for method, own in reversed(list(zip(self.methods, context, strict=True))):
            update, my = method.deselect(own, update, report)
            mine.append(my)
        return update, tuple(reversed(mine))

    def combine(self, state, key, sums, report):
        """Inner to outer, as `deselect`."""
        report = self._told(report)
        turns = list(zip(self.methods, state, self._split(key), strict=True))
        for method, own, own_key in reversed(turns):
            sums = method.combine(own, own_key, sums, report)
        return sums

    def revise(self, state, key, params, aggregate, report):
        """Each method revises its own state."""
        report = self._told(report)
        return tuple(
            method.revise(own, own_key, params, aggregate, report)
            for method, own, own_key in zip(self.methods, state, self._split(key), strict=True)
        )

    def deployed(self, state, params):
        """Outer to inner."""
        for method, own in zip(self.methods, state, strict=True):
            params = method.deployed(own, params)
        return params

    def at(self, round_number, state, recipe):
        """The recipe passes through, outer to inner."""
        answers = []
        for method, own in zip(self.methods, state, strict=True):
            method, recipe = method.at(round_number, own, recipe)
            answers.append(method)
        return Chain(tuple(answers)), recipe

    def privacy(self, rounds):
        """The guarantee of the member that gives one."""
        given = [method.privacy(rounds) for method in self.methods]
        return next((guarantee for guarantee in given if guarantee is not None), None)

    def made_from_seed(self, path):
        """Whether any member says so."""
        return any(method.made_from_seed(path) for method in self.methods)

    def _told(self, report: Report) -> Report:
        """The report, or nothing where privacy does not cover what the clients report."""
        if not any(method.bounds_updates for method in self.methods):
            return report
        return Report(jnp.float32(jnp.nan), *[jnp.float32(0)] * 3)

    def _split(self, key):
        return [jax.random.fold_in(key, index) for index in range(len(self.methods))]

    @staticmethod
    def _received(method, state, mine, key, view):
        # `at` first: before it, a method may not know its static counts.
        try:
            method, _ = method.at(0, state, Recipe(clients=1, epochs=1, lr=0.0))
        except jax.errors.JAXTypeError as error:
            # Shapes are asked for under a trace, where a state has no values.
            raise UserError(
                f"{type(method).__name__} decides about round 0 by what it remembers, which it "
                "can alone but not in a chain: let it begin a round later"
            ) from error
        return method.select(state, mine, Keys(key, key), view)[0]


def chain(*methods: Method) -> Method:
    """Composes methods, outermost first; nested chains are flattened, none is FedAvg."""
    flat = []
    for method in methods:
        flat += method.methods if isinstance(method, Chain) else [method]
    return flat[0] if len(flat) == 1 else Chain(tuple(flat))


def server_view(params: Mapping[str, Any]) -> View:
    """The server's own view: everything trained."""
    return View({path: Part(value) for path, value in params.items()}, {})


def _remembers(state: Any) -> bool:
    """Whether a state has more than scalars, whose shapes do not depend on the view."""
    return any(getattr(leaf, "ndim", 0) for leaf in jax.tree.leaves(state))


def _shrunk(outer: View, inner: View) -> bool:
    shapes = {path: part.value.shape for path, part in outer.trained.items()}
    return any(part.value.shape != shapes.get(path) for path, part in inner.trained.items())
