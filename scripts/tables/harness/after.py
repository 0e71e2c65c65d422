"""The programs that score a table's finished runs once more."""

import subprocess
import sys
from collections.abc import Sequence

from scripts.tables.harness.plan import ROOT, Run
from scripts.tables.harness.spec import Scale


def score(scale: Scale, runs: Sequence[Run]) -> dict[Run, str]:
    """Runs a scale's programs, one after another, where a finished run lacks their file.

    Returns:
      By run that could not be scored, the last line of what the program said.
    """
    failures = {}
    for run in runs:
        for after in scale.after if run.finished else ():
            if (run.directory / after.file).exists():
                continue
            print(f"Scoring {run.name}: {after.module}", flush=True)
            workdir = f"--workdir={run.directory.resolve()}"
            done = subprocess.run(
                [sys.executable, "-m", after.module, *after.arguments, workdir],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode or not (run.directory / after.file).exists():
                lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
                failures[run] = f"{after.module}: {lines[-1]}"
    return failures
