"""What an accelerator's time goes into, read from the trace of a run.

    python -m experiments.train --config=CONFIG --workdir=DIR --profile_rounds=2
    python -m benchmarks.kernels DIR/profile/plugins/profile/TIME/HOST.trace.json.gz

Prints a Markdown table: the kernels of each kind, their time, and their share of it, with how much
of the traced time a kernel ran at all. A kind is told by the names that XLA and cuBLAS give; a
product that XLA has fused with what follows counts as a product.
"""

import collections
import gzip
import json
import pathlib
import re
import sys
from collections.abc import Iterable
from typing import NamedTuple

# The first that fits.
KINDS = {
    "matrix products": r"gemm|_dot|cublas|xmma|cutlass|nvjet",
    "convolutions": r"conv(?!ert)|cudnn",
    "copies": r"memcpy|memset|copy",
    "reductions": r"reduce",
    "transposes, patches": r"transpose|concatenate|pad|gather|scatter|slice",
    "sorts and random bits": r"sort|rng|threefry",
    "element by element": r"",
}


class Kernel(NamedTuple):
    """One run of a kernel; times in microseconds."""

    name: str
    start: float
    duration: float


def kind(name: str) -> str:
    """Which of `KINDS` a kernel's name belongs to."""
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE))


def kernels(trace: dict) -> list[Kernel]:
    """The kernels of a trace in Chrome's format, on the streams of its accelerators."""
    events = trace["traceEvents"]
    devices = {
        event["pid"]
        for event in events
        if event.get("ph") == "M"
        and event["name"] == "process_name"
        and event["args"]["name"].startswith("/device:")
    }
    return [
        Kernel(event["name"], event["ts"], event["dur"])
        for event in events
        if event.get("ph") == "X" and event["pid"] in devices
    ]


def busy(found: Iterable[Kernel]) -> tuple[float, float]:
    """Microseconds in which a kernel ran, and those from the first one's start to the last end."""
    found = sorted(found, key=lambda kernel: kernel.start)
    running, until = 0.0, found[0].start
    for kernel in found:
        end = kernel.start + kernel.duration
        running += max(0.0, end - max(until, kernel.start))
        until = max(until, end)
    return running, until - found[0].start


def table(found: list[Kernel]) -> str:
    """The table, longest time first."""
    times, counts = collections.Counter(), collections.Counter()
    for kernel in found:
        times[kind(kernel.name)] += kernel.duration
        counts[kind(kernel.name)] += 1
    total = sum(times.values())
    lines = ["| kind | kernels | ms | share |", "| --- | --- | --- | --- |"]
    for name, time in times.most_common():
        lines.append(f"| {name} | {counts[name]:,} | {time / 1000:.2f} | {time / total:.0%} |")
    running, span = busy(found)
    lines += ["", f"A kernel ran in {running / span:.0%} of {span / 1000:.2f} ms."]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Prints the table of the trace that is named."""
    if len(arguments) != 1:
        print("error: give one trace, HOST.trace.json.gz", file=sys.stderr)
        return 2
    try:
        trace = json.loads(gzip.decompress(pathlib.Path(arguments[0]).read_bytes()))
        found = kernels(trace)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        print(f"error: {arguments[0]} is no trace of a run: {error}", file=sys.stderr)
        return 2
    if not found:
        print(f"error: {arguments[0]} has no kernels: a CPU's trace has none", file=sys.stderr)
        return 2
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
