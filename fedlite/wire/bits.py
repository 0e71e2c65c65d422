"""Packing of unsigned integers into bits: `width` bits a code, most significant bit first."""

import numpy as np

# Codes are unpacked to one byte a bit, so work on a bounded number of them at a time. A
# multiple of 8, so that every block but the last ends on a whole byte.
_BLOCK = 1 << 20


def pack(codes: np.ndarray, width: int) -> bytes:
    """Packs `codes` (unsigned, each below 2**width) into ceil(n * width / 8) bytes."""
    codes = np.asarray(codes, np.uint32).ravel()
    _check_width(width)
    if width < 32 and codes.size and int(codes.max()) >> width:
        raise ValueError(f"code {int(codes.max())} does not fit in {width} bits")
    blocks = []
    for begin in range(0, codes.size, _BLOCK):
        big_endian = codes[begin : begin + _BLOCK].astype(">u4").view(np.uint8).reshape(-1, 4)
        blocks.append(np.packbits(np.unpackbits(big_endian, axis=1)[:, 32 - width :]).tobytes())
    return b"".join(blocks)


def unpack(data: bytes, count: int, width: int) -> np.ndarray:
    """The `count` codes that `pack` wrote, uint32 [count]."""
    _check_width(width)
    if len(data) != packed_bytes(count, width):
        raise ValueError(
            f"{count} codes of {width} bits take {packed_bytes(count, width)} bytes, "
            f"got {len(data)}"
        )
    codes = np.empty(count, np.uint32)
    for begin in range(0, count, _BLOCK):
        size = min(_BLOCK, count - begin)
        first = begin * width // 8
        raw = np.frombuffer(data, np.uint8, packed_bytes(size, width), first)
        bits = np.unpackbits(raw, count=size * width).reshape(size, width)
        padded = np.zeros((size, 32), np.uint8)
        padded[:, 32 - width :] = bits
        codes[begin : begin + size] = np.packbits(padded, axis=1).view(">u4").ravel()
    return codes


def packed_bytes(count: int, width: int) -> int:
    """Bytes that `count` codes of `width` bits take."""
    return (count * width + 7) // 8


def _check_width(width: int):
    if not 1 <= width <= 32:
        raise ValueError(f"a code takes 1 to 32 bits, not {width}")
