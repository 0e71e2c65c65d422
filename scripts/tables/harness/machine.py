"""What a table says of its making besides `experiments.provenance`, and what the machine holds."""

import os
import pathlib


def command(table: str, scale: str, *, seeds: int, small: bool, rows: str = "") -> str:
    """The command that makes the table again."""
    words = [f"python -m scripts.reproduce_table --table={table} --scale={scale} --out=DIR"]
    if rows:
        words.append(f'"--rows={rows}"')
    if seeds:
        words.append(f"--seeds={seeds}")
    if small:
        words.append("--tiny")
    return " ".join(words)


def free_memory() -> int:
    """Bytes that new processes may take."""
    for line in pathlib.Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable"):
            return 1024 * int(line.split()[1])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
