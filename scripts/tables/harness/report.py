"""Writes a table as Markdown and CSV."""

import csv
import io
from collections.abc import Sequence

from scripts.tables.harness.results import Measured, RowResult
from scripts.tables.harness.spec import Column, Scale, Table

MISSING = "–"


def render_cell(column: Column, cell: Measured) -> str:
    """A number as a person reads it; the deviation where it is there and isn't 0."""
    if cell.mean is None:
        return MISSING
    if column.reduction:
        return f"{cell.mean:,.{column.digits}f}x"
    if column.difference:
        return _difference(column, cell)
    text = f"{column.scale * cell.mean:,.{column.digits}f}"
    if cell.deviation:
        text += f" ± {column.scale * cell.deviation:,.{column.digits}f}"
    return text


def _difference(column: Column, cell: Measured) -> str:
    def signed(value: float) -> str:
        return f"{column.scale * value:+,.{column.digits}f}"

    if cell.interval is None:
        return signed(cell.mean)
    low, high = cell.mean - cell.interval, cell.mean + cell.interval
    return f"{signed(cell.mean)} [{signed(low)}, {signed(high)}]"


def cells(table: Table, results: Sequence[RowResult]) -> list[list[str]]:
    """The table's text: a heading and a line a row; papers' own numbers stand in columns apart."""
    paper = [
        column.title
        for column in table.columns
        if any(column.title in result.row.paper for result in results)
    ]
    heading = ["Method", *(f"Paper: {title}" for title in paper)]
    lines = [heading + [column.title for column in table.columns]]
    for result in results:
        printed = [result.row.paper.get(title, MISSING) for title in paper]
        measured = map(render_cell, table.columns, result.cells)
        lines.append([result.row.label, *printed, *measured])
    return lines


def grid(lines: Sequence[Sequence[str]], *, numbers: bool = True) -> str:
    """A Markdown table whose columns are aligned in plain text, too.

    Args:
      lines: the heading and the rows.
      numbers: whether all columns but the first are aligned at the right.
    """
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    right = [numbers and i > 0 for i in range(len(widths))]

    def row(line):
        cells = zip(line, widths, right)
        return "| " + " | ".join(t.rjust(w) if r else t.ljust(w) for t, w, r in cells) + " |"

    rule = ["-" * (width - 1) + (":" if r else "-") for width, r in zip(widths, right)]
    return "\n".join([row(lines[0]), row(rule), *map(row, lines[1:])])


def markdown(table: Table, scale: Scale, results: Sequence[RowResult], facts: Sequence[str]) -> str:
    """The whole file.

    Args:
      table: the table.
      scale: the one that ran.
      results: of its rows.
      facts: lines for its head: command, code, machine, rounds, what failed.
    """
    blocks = [
        f"# {table.title}",
        table.source,
        scale.note,
        "\n".join(f"* {fact}" for fact in facts),
        grid(cells(table, results)),
        table.legend,
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def comma_separated(table: Table, results: Sequence[RowResult]) -> str:
    """The numbers as they are in summary.json, unrounded, by their path there."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    measured = [i for i, column in enumerate(table.columns) if not column.reduction]
    heading = ["method", "seeds"]
    for i in measured:
        path = table.columns[i].path + (" difference" if table.columns[i].difference else "")
        heading += [f"{path} mean", f"{path} sd"]
    writer.writerow(heading)
    for result in results:
        line = [result.row.label, len(result.seeds)]
        for i in measured:
            line += [result.cells[i].mean, result.cells[i].deviation]
        writer.writerow(line)
    return file.getvalue()
