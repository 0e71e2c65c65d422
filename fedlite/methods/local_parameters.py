"""Local parameters: some stay with the client, the rest is federated.

FedBN (Li et al. 2021, arXiv 2102.07623) keeps the normalisation layers, personalisation layers
(Arivazhagan et al. 2019, arXiv 1912.00818) the head. A client trains them with all else, and
neither sends nor receives them.
"""

import dataclasses
from collections.abc import Mapping

from fedlite.errors import UserError
from fedlite.methods.algebra import Method, Update
from fedlite.methods.patterns import check_rules, first_match
from fedlite.methods.registry import register
from fedlite.wire import Part


@register("local_parameters")
@dataclasses.dataclass(frozen=True)
class LocalParameters(Method):
    """Keeps parameters by rules on their paths; a client's own begin as the server's.

    The server's copies never change, so its model alone is that of a client which has not trained
    yet. Stands to the right of codecs and clipping, which would else count what is not sent, and
    to the left of methods that shrink shapes.

    Attributes:
      shapes: shapes of the server's parameters by path.
      local: pairs (pattern, stays): the first pattern that matches a path as a whole says
        whether it stays with the client; a path that none matches is federated.
    """

    shapes: Mapping[str, tuple[int, ...]]
    local: tuple[tuple[str, bool], ...] = ()

    def __post_init__(self):
        check_rules(self.local, self.shapes, "local_parameters.local", bool)
        if all(self.stays(path) for path in self.shapes):
            raise UserError("local_parameters.local leaves nothing to federate: keep less")

    def stays(self, path: str) -> bool:
        """Whether the parameter at `path` stays with the client."""
        return bool(first_match(self.local, path, False))

    def init_client(self, key, view):
        """The client's own parameters by path."""
        return {path: part.value for path, part in view.trained.items() if self.stays(path)}

    def select(self, state, mine, keys, view):
        """Puts the client's own parameters in place of the server's."""
        own = {path: Part(value, sent=0, bits=0) for path, value in mine.items()}
        return view._replace(trained={**view.trained, **own}), mine

    def deselect(self, context, update, report):
        """Takes the client's own parameters out of the update, and adds what they moved."""
        new = {path: value + update.parts[path].value for path, value in context.items()}
        rest = {path: part for path, part in update.parts.items() if path not in context}
        return Update(rest, update.weight), new
