"""Where numbers come from: the code and the machine, without names of hosts or paths."""

import importlib.metadata
import os
import pathlib
import platform
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[1]


def code() -> str:
    """The commit, and whether tracked files were changed since; else the package's version."""
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
        return f"commit {commit[:12]}" + (", with local changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return f"fedlite {importlib.metadata.version('fedlite')}"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def machine(*backends: str) -> str:
    """Processor, cores, memory, the backends that were used, and versions."""
    gigabytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return (
        f"{_processor()}, {cores()} cores, {gigabytes:.0f} GiB, "
        f"{' and '.join(sorted(set(backends))) or 'no backend'}; "
        f"jax {importlib.metadata.version('jax')}, Python {platform.python_version()}"
    )


def _git(*arguments: str) -> str:
    # The files may lie inside some other repository.
    if not (ROOT / ".git").exists():
        raise FileNotFoundError(".git")
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def _processor() -> str:
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
