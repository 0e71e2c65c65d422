"""Where a table's numbers come from: command, code and machine, without names of hosts or paths."""

import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Sequence

from scripts.tables.harness.plan import ROOT
from scripts.tables.harness.runs import cores


def command(table: str, scale: str, *, seeds: int, small: bool) -> str:
    """The command that makes the table again."""
    words = [f"python -m scripts.reproduce_table --table={table} --scale={scale} --out=DIR"]
    if seeds:
        words.append(f"--seeds={seeds}")
    if small:
        words.append("--tiny")
    return " ".join(words)


def code() -> str:
    """The commit, and whether tracked files were changed since; else the package's version."""
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
        return f"commit {commit[:12]}" + (", with local changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return f"fedlite {importlib.metadata.version('fedlite')}"


def _git(*arguments: str) -> str:
    # A table may be made in a tree that lies inside some other repository.
    if not (ROOT / ".git").exists():
        raise FileNotFoundError(".git")
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def machine(backends: Sequence[str]) -> str:
    """Processor, cores, memory and versions.

    Args:
      backends: that the runs' summaries name.
    """
    gigabytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return (
        f"{_processor()}, {cores()} cores, {gigabytes:.0f} GiB, "
        f"{' and '.join(sorted(set(backends))) or 'no backend'}; "
        f"jax {importlib.metadata.version('jax')}, Python {platform.python_version()}"
    )


def _processor() -> str:
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def free_memory() -> int:
    """Bytes that new processes may take."""
    for line in pathlib.Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable"):
            return 1024 * int(line.split()[1])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def accelerated() -> bool:
    """Whether runs will use an accelerator, as JAX says in a process of its own.

    This process must not claim the accelerator's memory.
    """
    probe = "import jax, json; print(json.dumps(jax.default_backend()))"
    answer = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    return answer.returncode == 0 and json.loads(answer.stdout) != "cpu"
