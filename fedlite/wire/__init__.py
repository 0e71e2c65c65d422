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
from fedlite.wire.quantisers import NNADQ, QSGD, Levels255, Sign, parse_quantiser

__all__ = [
    "NNADQ",
    "QSGD",
    "Codec",
    "Encoded",
    "Float32",
    "HalfPrecision",
    "Levels255",
    "Part",
    "Sign",
    "Slot",
    "StochasticUniform",
    "message_bytes",
    "once_bytes",
    "parse_codec",
    "parse_quantiser",
    "part_bytes",
    "read",
    "side_bytes",
    "write",
]
