"""Runs all rows of a table over several seeds, and writes it with its figure.

    python -m scripts.reproduce_table --table=PAPER/NAME --scale={bundled,paper} --out=DIR \
        [--seeds=N] [--rows=LABEL;LABEL] [--parallel=N] [--reuse=DIR,DIR] [--tiny]

DIR gets table.md, table.csv, figure.png, figure.pdf, and runs/ROW/seedN with each run's files and
its log.txt; a table that is computed without runs has table.md and table.csv alone. The same
command resumes where it was stopped: finished runs are not run again, and a row whose config has
changed is refused. Ctrl-C or SIGTERM lets every row write a checkpoint. Many tables begin with the
same row: --reuse names directories of other tables, whose finished runs and backbones are copied
where this table has the same.

Exit code: 0 (also where it was stopped), 1 if a row failed (the others go on), 2 for bad input.
"""

import os
import pathlib
import sys
from collections.abc import Iterable, Sequence

from absl import app, flags

from experiments import binary, provenance
from fedlite.errors import UserError

_TABLE = flags.DEFINE_string("table", None, "PAPER/NAME, see scripts/tables/.")
_SCALE = flags.DEFINE_enum("scale", "bundled", ["bundled", "paper"], "Bundled or the paper's data.")
_OUT = flags.DEFINE_string("out", None, "Where the table and its runs go.")
_SEEDS = flags.DEFINE_integer("seeds", 0, "Runs of a row; 0 for the table's own number.", 0)
_ROWS = flags.DEFINE_string("rows", "", "Run these rows alone, by label, joined by ';'.")
_PARALLEL = flags.DEFINE_integer("parallel", 0, "Runs at a time; 0 chooses.", 0)
_REUSE = flags.DEFINE_list("reuse", [], "Directories of tables to copy what is the same from.")
_TINY = flags.DEFINE_bool("tiny", False, "Two rounds at a tiny size, to try a table out.")

# What a run of the bundled tables takes at most, with room to spare.
_BYTES_PER_RUN = 3 << 30


def main(_):
    """Makes the table of the flags."""
    binary.require(table=_TABLE.value, out=_OUT.value)
    from scripts import tables
    from scripts.tables.harness import after, computed, machine, plan, prepare, reuse, runs
    from scripts.tables.harness.progress import Progress

    table = tables.load(_TABLE.value)
    scale = tables.scale_of(table, _SCALE.value)
    out = pathlib.Path(_OUT.value)
    _check_writable(out)
    if isinstance(table, computed.ComputedTable):
        _write_computed(table, scale(), out)
        return
    planned = plan.plan(scale, out, seeds=_SEEDS.value, small=_TINY.value)
    wanted = plan.select(planned, _ROWS.value)
    parallel = _PARALLEL.value or _default_parallel()
    others = [pathlib.Path(other) for other in _REUSE.value]
    # A backbone of a tiny size is another one.
    copied = [] if _TINY.value else reuse.take_backbones(scale, out, others)
    prepare.prepare(scale, out, small=_TINY.value)
    if copied := copied + reuse.take_runs(wanted, out, others):
        print(f"Copied from other tables: {'; '.join(copied)}", flush=True)
    with Progress(wanted) as progress:
        outcome = runs.execute(wanted, parallel, progress)
    failures = {**outcome.failures, **({} if outcome.stopped else after.score(scale, wanted))}
    if any(run.finished for run in planned):
        command = machine.command(
            _TABLE.value,
            _SCALE.value,
            seeds=_SEEDS.value,
            small=_TINY.value,
            rows=_ROWS.value,
        )
        _write(table, scale, plan.shown(planned, wanted), failures, command, out)
    for run, reason in failures.items():
        print(f"FAILED: {run.name}: {reason}")
    if outcome.stopped:
        print("Stopped before all rows were finished; the same command resumes.")
    if failures:
        sys.exit(1)


def _check_writable(out: pathlib.Path):
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"--out={out}: {there} is a file; name a directory")
    if not os.access(there, os.W_OK):
        raise UserError(f"--out={out} cannot be written; name another directory")


def _default_parallel() -> int:
    """Runs at a time: one on an accelerator, else as many as cores and memory hold."""
    from scripts.tables.harness import machine

    if provenance.accelerators():
        return 1
    return max(1, min(provenance.cores(), machine.free_memory() // _BYTES_PER_RUN))


def _write(table, scale, planned: Sequence, failures: Iterable, command: str, out: pathlib.Path):
    from scripts.tables.harness import figure, report, results

    measured = results.collect(table, planned)
    facts = [
        f"Command: `{command}`",
        f"Code: {_made_by(planned, 'code') or provenance.code()}",
        f"Machine: {_made_by(planned, 'machine') or provenance.machine()}",
        f"Rounds: {_span(run.config['rounds'] for run in planned)}; "
        f"seeds a row: {_span(len(result.seeds) for result in measured)}",
    ]
    if failures:
        facts.append(f"Failed: {'; '.join(run.name for run in failures)}")
    text = report.markdown(table, scale, measured, facts)
    _write_files(text, report.comma_separated(table, measured), out)
    if table.figure:
        curves = results.curves(table.figure, planned)
        figure.draw(table.figure, curves, table.title, out / "figure")
        print(f"Figure: {out / 'figure.png'}")


def _write_computed(table, sections: Sequence, out: pathlib.Path):
    from scripts.tables.harness import computed, machine

    command = machine.command(_TABLE.value, _SCALE.value, seeds=0, small=False)
    facts = [f"Command: `{command}`", f"Code: {provenance.code()}", "Computed, without training"]
    text = computed.markdown(table, sections, facts)
    _write_files(text, computed.comma_separated(sections), out)


def _write_files(text: str, comma_separated: str, out: pathlib.Path):
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(text, encoding="utf-8")
    (out / "table.csv").write_text(comma_separated, encoding="utf-8")
    print(text)
    print(f"Table: {out / 'table.md'}")


def _made_by(planned: Sequence, fact: str) -> str:
    """Every code or machine that ran a finished run."""
    found = (value for run in planned if run.finished for value in run.made_by(fact))
    return "; and ".join(dict.fromkeys(found))


def _span(numbers: Iterable[int]) -> str:
    numbers = list(numbers)
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


if __name__ == "__main__":
    app.run(binary.guarded(main), flags_parser=binary.parse_flags)
