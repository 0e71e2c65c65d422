"""Measures how fast arrays are packed for the wire, on one core: `python -m benchmarks.wire`.

The rates are megabytes (10^6) of float32 values a second: 4 bytes a value, whatever its code
takes; of several turns the median [least, most]. First the packing of codes alone, by their width;
then the codecs on a normal array: `encode` is the compiled quantiser, `write` the packing of its
codes and the checks.
"""

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedlite.wire import Part, bits, parse_codec, write

VALUES = 4_000_000
TURNS = 5
WIDTHS = (*range(1, 10), 12, 16, 24, 32)
CODECS = ("nnadq0.001", "nnadq0.001s", "fedpaq", "qsgd15", "sign", "uniform8", "bfloat16")


def rate(function: Callable[[], object]) -> str:
    """Megabytes of float32 a second that `function` gets through, over `TURNS` turns."""
    function()
    rates = []
    for _ in range(TURNS):
        begin = time.perf_counter()
        function()
        rates.append(4 * VALUES / 1e6 / (time.perf_counter() - begin))
    return f"{statistics.median(rates):.0f} [{min(rates):.0f}, {max(rates):.0f}]"


def main():
    """Prints both tables."""
    rng = np.random.default_rng(0)
    print("| bits a code | pack MB/s | unpack MB/s |\n| --- | --- | --- |")
    for width in WIDTHS:
        codes = rng.integers(0, 2**width, VALUES, np.uint32)
        data = bits.pack(codes, width)
        packing = rate(lambda codes=codes, width=width: bits.pack(codes, width))
        unpacking = rate(lambda data=data, width=width: bits.unpack(data, VALUES, width))
        print(f"| {width} | {packing} | {unpacking} |", flush=True)
    value = jnp.asarray(rng.normal(0, 0.01, VALUES), jnp.float32)
    print("\n| codec | bits a value | encode MB/s | write MB/s |\n| --- | --- | --- | --- |")
    for name in CODECS:
        codec = parse_codec(name)
        encode = jax.jit(codec.encode)
        encoded = encode(value, jax.random.key(0))
        part = Part(
            np.asarray(jax.jit(codec.decode)(encoded)),
            bits=int(encoded.bits),
            side=tuple(map(np.asarray, encoded.side)),
            codes=np.asarray(encoded.codes),
        )
        encoding = rate(
            lambda encode=encode: jax.block_until_ready(encode(value, jax.random.key(0)))
        )
        writing = rate(lambda part=part: write({"a": part}))
        print(f"| {name} | {part.bits} | {encoding} | {writing} |", flush=True)


if __name__ == "__main__":
    main()
