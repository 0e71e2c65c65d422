"""Quantisation of what travels: a codec up, a codec down, or both.

Up it is FedPAQ (Reisizadeh et al. 2020, arXiv 1909.13014) with the codec "uniform8". Down, the
client starts from the decoded broadcast, its update counts from there, and the server adds it
to its own, unquantised parameters.
"""

import dataclasses

import jax
import jax.numpy as jnp

from fedlite.methods.algebra import Method
from fedlite.methods.registry import register
from fedlite.wire import Part, parse_codec
from fedlite.wire.message import on_wire


@register("quantize")
@dataclasses.dataclass(frozen=True)
class Quantize(Method):
    """Names of codecs, see `fedlite.wire.parse_codec`; "" leaves float32."""

    up: str = "uniform8"
    down: str = ""

    def __post_init__(self):
        parse_codec(self.up), parse_codec(self.down)

    @property
    def alters_broadcast(self):
        """See `Method`."""
        return parse_codec(self.down) is not None

    def select(self, state, mine, keys, view):
        """The trip down; the round's key, since one broadcast serves the cohort."""
        view = view._replace(trained=_trip(parse_codec(self.down), view.trained, keys.round))
        return view, (mine, keys.client)

    def deselect(self, context, update, report):
        """The trip up."""
        mine, key = context
        return update._replace(parts=_trip(parse_codec(self.up), update.parts, key)), mine


def _trip(codec, parts: dict[str, Part], key) -> dict[str, Part]:
    """Every part as it is after encoding and decoding."""
    if codec is None:
        return parts
    decoded = {}
    for index, (path, part) in enumerate(sorted(parts.items())):
        if on_wire(part):
            encoded = codec.encode(part.value, jax.random.fold_in(key, index))
            value = codec.decode(encoded)
            if not (isinstance(part.sent, int) and part.sent):
                # What is not sent makes no trip: a codec may not decode its zeros to zeros.
                value = jnp.where(jnp.asarray(part.sent) > 0, value, part.value)
            part = part._replace(value=value, **encoded._asdict())
        decoded[path] = part
    return decoded
