"""Reads what runs left: numbers of summary.json, curves of metrics.jsonl, each over seeds."""

import collections
import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from fedlite.errors import UserError
from scripts.tables.harness.plan import Run
from scripts.tables.harness.spec import Column, Figure, Row, Table


@dataclasses.dataclass(frozen=True)
class Measured:
    """A number over seeds.

    Attributes:
      mean: None where no run has the number.
      deviation: sample standard deviation; None for a single run.
      interval: half the width of the 95 % interval of the mean; None but for differences.
    """

    mean: float | None
    deviation: float | None = None
    interval: float | None = None


@dataclasses.dataclass(frozen=True)
class RowResult:
    """A row's finished runs.

    Attributes:
      row: of the table.
      seeds: of the finished runs.
      cells: one a column.
    """

    row: Row
    seeds: tuple[int, ...]
    cells: tuple[Measured, ...]


def measure(values: Iterable[float | None]) -> Measured:
    """Mean and sample standard deviation of the values that are there."""
    there = [value for value in values if value is not None]
    if not there:
        return Measured(None)
    deviation = statistics.stdev(there) if len(there) > 1 else None
    return Measured(statistics.fmean(there), deviation)


def collect(table: Table, runs: Sequence[Run]) -> list[RowResult]:
    """The rows in the table's order, from the runs that are finished."""
    by_row: dict[str, list[Run]] = collections.defaultdict(list)
    for run in runs:
        by_row[run.row.slug].append(run)
    first = next(iter(by_row.values()), [])
    by_label = {group[0].row.label: group for group in by_row.values()}

    def reference(row: Row) -> list[Run]:
        return by_label.get(row.reference, []) if row.reference else first

    results = []
    for group in by_row.values():
        finished = [run for run in group if run.finished]
        summaries = [_json(run, "summary.json") for run in finished]
        cells = tuple(
            _cell(column, finished, summaries, reference(group[0].row)) for column in table.columns
        )
        seeds = tuple(run.seed for run in finished)
        results.append(RowResult(group[0].row, seeds, cells))
    return with_reductions(table.columns, results)


def _cell(
    column: Column,
    runs: Sequence[Run],
    summaries: Sequence[dict[str, Any]],
    reference: Sequence[Run],
) -> Measured:
    if column.difference:
        return _difference(column, runs, reference)
    if column.file != "summary.json":
        summaries = [_json(run, column.file) for run in runs]
    if not column.target:
        return measure(_value(column, summary) for summary in summaries)
    needed = [bytes_to_target(column, run) for run in runs]
    return Measured(None) if None in needed else measure(needed)


def _difference(column: Column, runs: Sequence[Run], reference: Sequence[Run]) -> Measured:
    """Of runs with the same seed; nothing for the reference itself."""
    there = {run.seed: run for run in reference if run.finished}
    pairs = [(run, there[run.seed]) for run in runs if run.seed in there]
    if not pairs or pairs[0][0] is pairs[0][1]:
        return Measured(None)
    numbers = [[_value(column, _json(run, column.file)) for run in pair] for pair in pairs]
    differences = [own - other for own, other in numbers if None not in (own, other)]
    found = measure(differences)
    if found.deviation is None:
        return found
    # Slow to import.
    from scipy import stats

    quantile = float(stats.t.ppf(0.975, len(differences) - 1))
    half = quantile * found.deviation / math.sqrt(len(differences))
    return dataclasses.replace(found, interval=half)


def _value(column: Column, summary: dict[str, Any]) -> float | None:
    value = _lookup(summary, column.path)
    whole = _lookup(summary, column.of) if column.of else 1
    return value / whole if value is not None and whole else None


def bytes_to_target(column: Column, run: Run) -> float | None:
    """Bytes until a run first reached the column's target; None where it never did."""
    points = _evaluations(Figure(metric=column.path, scale=1.0), run)
    reached = [points[r][0] * 2**20 for r in sorted(points) if points[r][1] >= column.target]
    return reached[0] if reached else None


def with_reductions(columns: Sequence[Column], results: list[RowResult]) -> list[RowResult]:
    """The rows with the means of reduction columns divided into that of the first row."""
    first = results[0].cells

    def cell(column: Column, reference: Measured, value: Measured) -> Measured:
        if not column.reduction:
            return value
        if reference.mean is None or not value.mean:
            return Measured(None)
        return Measured(reference.mean / value.mean)

    return [
        dataclasses.replace(result, cells=tuple(map(cell, columns, first, result.cells)))
        for result in results
    ]


@dataclasses.dataclass(frozen=True)
class Curve:
    """A line of the figure; lists of one length.

    Attributes:
      label: of the row.
      megabytes: that all clients moved so far, mean over seeds.
      mean, deviation: of the metric over seeds; the deviation is 0 for one seed.
    """

    label: str
    megabytes: list[float]
    mean: list[float]
    deviation: list[float]


def curves(figure: Figure, runs: Sequence[Run]) -> list[Curve]:
    """One curve a row, over the rounds at which every finished seed was evaluated."""
    by_row: dict[str, list[dict[int, tuple[float, float]]]] = collections.defaultdict(list)
    labels = {run.row.slug: run.row.label for run in runs}
    for run in runs:
        if run.finished:
            by_row[run.row.slug].append(_evaluations(figure, run))
    found = []
    for slug, label in labels.items():
        if not by_row[slug]:
            continue
        rounds = sorted(set.intersection(*(set(points) for points in by_row[slug])))
        if not rounds:
            continue
        values = [measure(points[r][1] for points in by_row[slug]) for r in rounds]
        found.append(
            Curve(
                label,
                [statistics.fmean(points[r][0] for points in by_row[slug]) for r in rounds],
                [value.mean for value in values],
                [value.deviation or 0.0 for value in values],
            )
        )
    return found


def _evaluations(figure: Figure, run: Run) -> dict[int, tuple[float, float]]:
    """By round: megabytes so far and the scaled metric."""
    found = {}
    text = (run.directory / "metrics.jsonl").read_text(encoding="utf-8")
    for line in text.splitlines():
        entry = json.loads(line)
        if entry["kind"] == "eval" and entry["split"] == figure.split:
            value = entry.get(figure.metric)
            if value is not None:
                megabytes = entry["total_bytes"] / 2**20
                found[entry["round"]] = (megabytes, figure.scale * value)
    return found


def _json(run: Run, name: str) -> dict[str, Any]:
    """A file of the run; empty where it is missing, as before an `After` came to it."""
    file = run.directory / name
    if not file.exists():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}): delete {run.directory}") from error


def _lookup(summary: dict[str, Any], path: str) -> float | None:
    """The value at a dotted path; None where it is missing or null."""
    value: Any = summary
    for key in path.split("."):
        if isinstance(value, list):
            value = dict(zip(map(str, range(len(value))), value))
        if not isinstance(value, dict) or value.get(key) is None:
            return None
        value = value[key]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
