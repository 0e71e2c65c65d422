"""Where numbers come from: the code and the machine, without names of hosts or paths."""

import ast
import functools
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys

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


def machine() -> str:
    """Processor, cores, memory, accelerators that JAX uses, and versions."""
    gigabytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    parts = [_processor(), f"{cores()} cores", f"{gigabytes:.0f} GiB", *accelerators()]
    return (
        f"{', '.join(parts)}; "
        f"jax {importlib.metadata.version('jax')}, Python {platform.python_version()}"
    )


@functools.cache
def accelerators() -> tuple[str, ...]:
    """Number and kind of those that JAX would use, as another process tells.

    In this process JAX might claim their memory.
    """
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return ()
    probe = "import jax; print([d.device_kind for d in jax.devices() if d.platform != 'cpu'])"
    done = subprocess.run(
        [sys.executable, "-c", probe],
        env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    kinds = ast.literal_eval(done.stdout) if done.returncode == 0 else []
    return tuple(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))


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
