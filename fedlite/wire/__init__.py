"""What travels between server and client: messages, their codecs, and the meter of their bytes."""

from fedlite.wire.codecs import (
    Codec,
    Encoded,
    Float32,
    HalfPrecision,
    StochasticUniform,
    parse_codec,
)
from fedlite.wire.message import (
    Part,
    Slot,
    message_bytes,
    once_bytes,
    part_bytes,
    read,
    side_bytes,
    write,
)

__all__ = [
    "Codec",
    "Encoded",
    "Float32",
    "HalfPrecision",
    "Part",
    "Slot",
    "StochasticUniform",
    "message_bytes",
    "once_bytes",
    "parse_codec",
    "part_bytes",
    "read",
    "side_bytes",
    "write",
]
