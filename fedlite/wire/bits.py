"""Packing of unsigned integers into bits: `width` bits a code, most significant bit first.

Eight codes fill `width` whole bytes, so codes are taken in groups of eight: the j-th codes of
all groups are shifted at once into the bytes of the group that they reach into.
"""

import numpy as np

# Codes at a time: what is worked on stays in the cache. A multiple of 8, so that every block but
# the last ends on a whole byte.
_BLOCK = 1 << 16


def pack(codes: np.ndarray, width: int) -> bytes:
    """Packs `codes` (unsigned, each below 2**width) into ceil(n * width / 8) bytes."""
    codes = np.asarray(codes, np.uint32).ravel()
    _check_width(width)
    if width < 32 and codes.size and int(codes.max()) >> width:
        raise ValueError(f"code {int(codes.max())} does not fit in {width} bits")
    blocks = []
    for begin in range(0, codes.size, _BLOCK):
        block = codes[begin : begin + _BLOCK]
        groups = np.pad(block, (0, -block.size % 8)).reshape(-1, 8).T.copy()
        packed = np.zeros((width, groups.shape[1]), np.uint8)
        for code, byte, shift in _overlaps(width):
            # The cast to a byte cuts off what belongs to the bytes before.
            packed[byte] |= _shifted(groups[code], shift).astype(np.uint8)
        blocks.append(packed.T.tobytes()[: packed_bytes(block.size, width)])
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
    most = np.uint32(2**width - 1)
    for begin in range(0, count, _BLOCK):
        size = min(_BLOCK, count - begin)
        raw = np.frombuffer(data, np.uint8, packed_bytes(size, width), begin * width // 8)
        packed = np.pad(raw, (0, -raw.size % width)).reshape(-1, width).T.astype(np.uint32)
        groups = np.zeros((8, packed.shape[1]), np.uint32)
        for code, byte, shift in _overlaps(width):
            groups[code] |= _shifted(packed[byte], -shift)
        codes[begin : begin + size] = (groups & most).T.ravel()[:size]
    return codes


def packed_bytes(count: int, width: int) -> int:
    """Bytes that `count` codes of `width` bits take."""
    return (count * width + 7) // 8


def _overlaps(width: int) -> list[tuple[int, int, int]]:
    """Every (code, byte, shift) of a group: `code << shift` has the bits for `byte`."""
    return [
        (code, byte, 8 * (byte + 1) - (code + 1) * width)
        for code in range(8)
        for byte in range(code * width // 8, ((code + 1) * width - 1) // 8 + 1)
    ]


def _shifted(values: np.ndarray, shift: int) -> np.ndarray:
    return values << np.uint32(shift) if shift >= 0 else values >> np.uint32(-shift)


def _check_width(width: int):
    if not 1 <= width <= 32:
        raise ValueError(f"a code takes 1 to 32 bits, not {width}")
