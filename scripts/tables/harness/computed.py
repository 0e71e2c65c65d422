"""Tables that are computed and need no runs."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from scripts.tables.harness.report import grid


class Section(NamedTuple):
    """A part of a table.

    Attributes:
      title: its heading.
      lines: the columns' headings, the same in every section, and the rows.
    """

    title: str
    lines: Sequence[Sequence[str]]


class ComputedTable(NamedTuple):
    """A table in sections.

    Attributes:
      title: its heading.
      source: the paper, and how the table relates to what the paper prints.
      scales: by name what computes the sections.
      legend: what the columns mean.
    """

    title: str
    source: str
    scales: Mapping[str, Callable[[], list[Section]]]
    legend: str


def markdown(table: ComputedTable, sections: Sequence[Section], facts: Sequence[str]) -> str:
    """The whole file; `facts` are lines for its head: command and code."""
    blocks = [f"# {table.title}", table.source, "\n".join(f"* {fact}" for fact in facts)]
    for section in sections:
        blocks += [f"## {section.title}", grid(section.lines)]
    return "\n\n".join([*blocks, table.legend]) + "\n"


def comma_separated(sections: Sequence[Section]) -> str:
    """All sections in one, with a first column that names them; without thousands separators."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["section", *sections[0].lines[0]])
    for section in sections:
        for label, *numbers in section.lines[1:]:
            writer.writerow([section.title, label, *(n.replace(",", "") for n in numbers)])
    return file.getvalue()
