"""Messages, and the meter of their bytes.

A message is a mapping from names to `Part`s. Server and client know its layout beforehand
(the names, shapes, codecs, and which entries are sent: from the method's configuration, a
shared seed, or a mask that was sent and charged), so the wire holds no headers: parts in the
order of their names, each its side information and then its codes, padded to a whole byte.

`message_bytes` computes in a jitted program the number that `len(write(...))` has; a test
holds the two together.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fedlite.errors import UserError
from fedlite.wire import bits as bits_lib
from fedlite.wire.codecs import Codec, Encoded, Float32


class Part(NamedTuple):
    """One named array of a message.

    Attributes:
      value: down, the weights as the client sees them; up, the update as the server sees it.
      cover: weight of its claim in the aggregate, a scalar or an array that broadcasts against
        `value`. The aggregate of an entry is sum(weight * cover * value) / sum(weight * cover)
        over the cohort.
      sent: the entries that are on the wire (nonzero), shaped as `cover` may be. It differs
        from `cover` where an entry that was not sent still claims to be zero.
      bits: bits a sent value; 0: not on the wire. A Python int or an int32 scalar.
      side: scalars of 4 bytes that travel with the values.
      once: bytes sent to a client once in its life, a Python int.
      codes: uint32 like `value`, what a codec wrote; None: the values as float32.
      uncharged: how many of `bits` the papers' convention leaves out (sign bits); they count as
        side information.
      header: uint8 [bytes], what a method sends with the part whichever values are sent, as the
        ids of those that are; side information.
      told: which bytes of the header are on the wire, a bool or bools like `header`.
    """

    value: Any
    cover: Any = 1.0
    sent: Any = 1
    bits: Any = 32
    side: tuple = ()
    once: int = 0
    codes: Any = None
    uncharged: Any = 0
    header: Any = ()
    told: Any = True

    def with_flags(self, flags, told=True) -> "Part":
        """Adds bools to the header, eight to a byte; on the wire where `told`, a scalar."""
        old, packed = jnp.asarray(self.header, jnp.uint8), jnp.packbits(flags)
        both = [jnp.broadcast_to(self.told, old.shape), jnp.broadcast_to(told, packed.shape)]
        return self._replace(
            header=jnp.concatenate([old, packed]), told=jnp.concatenate(both).astype(bool)
        )

    def map_arrays(self, fn) -> "Part":
        """Applies `fn` to every field that is an array, as an array like `value`."""
        shape = self.value.shape

        def over(field):
            if field is None or jnp.ndim(field) == 0:
                return field
            return fn(jnp.broadcast_to(field, shape))

        return self._replace(
            value=fn(self.value),
            cover=over(self.cover),
            sent=over(self.sent),
            codes=over(self.codes),
        )


def on_wire(part: Part) -> bool:
    """Whether anything of the part can be on the wire: statically known."""
    return not (isinstance(part.bits, int) and part.bits == 0)


def first_on_wire(parts: Mapping[str, Part]) -> str:
    """The name of the part that a message begins with: what stands first is in its header.

    Raises:
      ValueError: nothing is on the wire.
    """
    return min(name for name, part in parts.items() if on_wire(part))


def sent_values(part: Part):
    """Number of entries on the wire, an int32 scalar."""
    sent = jnp.asarray(part.sent)
    # Entries of `value` for each entry of `sent`, where that broadcasts.
    repeats = math.prod(part.value.shape) // math.prod(sent.shape) if sent.size else 0
    return jnp.sum(sent > 0, dtype=jnp.int32) * repeats


def part_bytes(part: Part):
    """Bytes of one part on the wire, an int32 scalar; a part stays below 2 GiB."""
    if not on_wire(part):
        return jnp.int32(0)
    count = sent_values(part)
    side = jnp.where(count > 0, 4 * len(part.side), 0)
    header = jnp.sum(jnp.broadcast_to(part.told, len(part.header)), dtype=jnp.int32)
    return _value_bytes(count, part.bits) + side + header


def _value_bytes(count, bits):
    bits = jnp.asarray(bits, jnp.int32)
    # count * bits overflows at 67 million float32 values: bytes of whole groups of 8 first.
    return count // 8 * bits + (count % 8 * bits + 7) // 8


def message_bytes(parts: Mapping[str, Part]):
    """Bytes of a message on the wire, an int32 scalar."""
    return sum((part_bytes(part) for part in parts.values()), jnp.int32(0))


def side_bytes(parts: Mapping[str, Part]):
    """The share of `message_bytes` that the papers' convention leaves out, an int32 scalar.

    Side information, and the bits of a value that it does not charge.
    """
    charged = sum(
        (
            _value_bytes(sent_values(part), part.bits - part.uncharged)
            for part in parts.values()
            if on_wire(part)
        ),
        jnp.int32(0),
    )
    return message_bytes(parts) - charged


def once_bytes(parts: Mapping[str, Part]) -> int:
    """Bytes of a message that a client receives once in its life."""
    return sum(part.once for part in parts.values())


def write(parts: Mapping[str, Part]) -> bytes:
    """The message as bytes.

    Raises:
      UserError: a value that is sent is NaN or infinite; a round leaves such a client out.
    """
    chunks = []
    for name, part in sorted(parts.items()):
        if not on_wire(part):
            continue
        value = np.asarray(part.value)
        sent = np.broadcast_to(np.asarray(part.sent) > 0, value.shape)
        if not np.isfinite(value[sent]).all():
            raise UserError(
                f"{name!r} holds NaN or infinity, which is never sent: leave this client out of "
                "the round"
            )
        header = np.asarray(part.header, np.uint8)
        chunks.append(header[np.broadcast_to(part.told, header.shape)].tobytes())
        codes = part.codes if part.codes is not None else Float32().encode(value).codes
        codes = np.asarray(codes)[sent]
        if not codes.size:
            continue
        chunks += [np.asarray(scalar).astype("<" + _kind(scalar)).tobytes() for scalar in part.side]
        if int(part.bits):
            chunks.append(bits_lib.pack(codes, int(part.bits)))
    return b"".join(chunks)


class Slot(NamedTuple):
    """What a reader knows of a part: its shape, sent entries, codec, and bytes of its header.

    A header that tells which parts are sent stands in the first one: at the start of the message.
    """

    shape: tuple[int, ...]
    sent: Any = 1
    codec: Codec = Float32()
    header: int = 0


def read(data: bytes, layout: Mapping[str, Slot]) -> dict[str, np.ndarray]:
    """The values that the other end sees; entries that were not sent are 0.

    Args:
      data: what `write` returned.
      layout: a slot for every part that is on the wire.

    Returns:
      float32 arrays by name.
    """
    values, position = {}, 0
    for name, slot in sorted(layout.items()):
        sent = np.broadcast_to(np.asarray(slot.sent) > 0, slot.shape)
        count = int(sent.sum())
        position += slot.header
        if not count:
            values[name] = np.zeros(slot.shape, np.float32)
            continue
        side = []
        for dtype in slot.codec.side_dtypes:
            side.append(np.frombuffer(data, np.dtype(dtype).newbyteorder("<"), 1, position)[0])
            position += 4
        bits = slot.codec.bits(tuple(side))
        size = bits_lib.packed_bytes(count, bits)
        codes = np.zeros(slot.shape, np.uint32)
        if bits:
            codes[sent] = bits_lib.unpack(data[position : position + size], count, bits)
        position += size
        decoded = slot.codec.decode(
            Encoded(jnp.asarray(codes), bits, tuple(map(jnp.asarray, side)))
        )
        values[name] = np.where(sent, np.asarray(decoded), 0).astype(np.float32)
    if position != len(data):
        raise ValueError(f"the message has {len(data)} bytes, its layout {position}")
    return values


def _kind(scalar) -> str:
    dtype = np.asarray(scalar).dtype
    if dtype.itemsize != 4:
        raise ValueError(f"side information is made of scalars of 4 bytes, not {dtype}")
    return dtype.str[1:]
