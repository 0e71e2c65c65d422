"""What a table is: data, and nothing else.

Rows are runs of `experiments.train`, columns are paths into their summary.json.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

MEGABYTE = 2**20


@dataclasses.dataclass(frozen=True)
class Column:
    """One number of summary.json, its mean and standard deviation over seeds.

    Attributes:
      title: its heading, with the unit.
      path: keys of summary.json joined by dots, such as "client.params"; "rows.2" is the third of a
        list.
      scale: what the number is multiplied by.
      digits: after the point.
      reduction: print how many times smaller the number is than that of the table's first row.
      target: above 0, the number is the bytes of all clients until the metric that `path` names in
        the evaluations of the test set was first at least this; only where every seed came there.
      file: of the run's directory, in place of summary.json: that of an `After`.
      of: the number is divided by that of this path, if there is one.
      difference: print what is left of the number after that of the row's reference with the same
        seed: the mean over seeds and its 95 % interval by Student's t.
    """

    title: str
    path: str
    scale: float = 1.0
    digits: int = 0
    reduction: bool = False
    target: float = 0.0
    file: str = "summary.json"
    of: str = ""
    difference: bool = False


ACCURACY = Column("Accuracy %", "final.accuracy", 100, 1)
DIFFERENCE = Column("Difference", "final.accuracy", 100, 1, difference=True)
WER = Column("WER %", "final.wer", 100, 1)
WER_DIFFERENCE = Column("Difference", "final.wer", 100, 1, difference=True)
CER = Column("CER %", "final.cer", 100, 1)
PARAMS_SHARE = Column("Of the full %", "client.params", 100, 1, of="server_params")
CLIENT_COSTS = (
    Column("Params", "client.params"),
    Column("Trained", "client.trained_params"),
    Column("MFLOP/example", "client.flops_per_example", 1e-6, 1),
    Column("Peak MB", "client.peak_memory_bytes", 1 / MEGABYTE, 1),
)
BYTES = (
    Column("Down MB", "bytes.down_per_client_round", 1 / MEGABYTE, 3),
    Column("Up MB", "bytes.up_per_client_round", 1 / MEGABYTE, 3),
    Column("Total MB", "bytes.total", 1 / MEGABYTE, 1),
    Column("Reduction", "bytes.total", reduction=True, digits=1),
)

# Of tables with a column of differences.
DIFFERENCES = (
    " Difference is to the first row in points, seed by seed: the mean, and in brackets its 95 % "
    "interval by Student's t."
)
LEGEND = (
    "Accuracy is that of the last round on the test set, mean ± standard deviation over the seeds. "
    "Params are those of a client's model, Trained those that it returns. MFLOP an example and "
    "Peak MB are of one training step as XLA compiled it for a CPU. Down and Up are a client's in "
    "a round, as encoded, Total those of all clients and rounds, and Reduction says how many times "
    "more the first row's total is. A MB has 2^20 bytes."
)


@dataclasses.dataclass(frozen=True)
class Figure:
    """A metric of metrics.jsonl against the bytes that were moved, a line a row.

    Attributes:
      metric: key of the lines of kind "eval".
      label: of its axis.
      scale: what the metric is multiplied by.
      split: whose evaluation it is.
    """

    metric: str = "accuracy"
    label: str = "Test accuracy (%)"
    scale: float = 100.0
    split: str = "test"


@dataclasses.dataclass(frozen=True)
class Row:
    """One experiment.

    Attributes:
      label: unique in its table; also names its directory.
      config: its file, from the root of the repository, as in "configs/fedpt/mnist5k_cnn.py"; with
        ":NAME" behind it where the file has several variants.
      overrides: values by key, such as {"rounds": 50, "fedprox.mu": 0.1}.
      paper: numbers by the title of the column, as the paper prints them. Only numbers that
        were read in a source.
      reference: label of the row that differences refer to; "" for the table's first one.
    """

    label: str
    config: str
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    paper: Mapping[str, str] = dataclasses.field(default_factory=dict)
    reference: str = ""

    @property
    def slug(self) -> str:
        """The label as the name of a directory."""
        return re.sub(r"[^a-z0-9]+", "-", self.label.lower()).strip("-")


@dataclasses.dataclass(frozen=True)
class Backbone:
    """Parameters that rows begin with, by the override "backbone.path": BACKBONES + name.

    Attributes:
      name: of its directory.
      config: as of `Row`, for `experiments.pretrain`.
      overrides: as of `Row`.
      epochs: of the central training.
      learning_rate: of its first step.
      batch_size: of a step.
    """

    name: str
    config: str
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    epochs: int = 10
    learning_rate: float = 1e-3
    batch_size: int = 128


@dataclasses.dataclass(frozen=True)
class After:
    """A program that scores every finished run once more, for columns of its own.

    Attributes:
      module: of the program; it takes --workdir.
      file: JSON that it leaves in the run's directory.
      arguments: its other flags.
    """

    module: str
    file: str
    arguments: tuple[str, ...] = ()


# Stands for the directory of a table's backbones in the values of overrides.
BACKBONES = "{backbones}/"


@dataclasses.dataclass(frozen=True)
class Scale:
    """The rows at one size.

    Attributes:
      rows: the first is the one that reductions refer to.
      backbones: what rows begin with; each is trained once, before them.
      seeds: runs of a row, with `seed` 0, 1, ...
      note: what a reader must know of this scale.
      after: programs that score the runs once more.
    """

    rows: tuple[Row, ...]
    seeds: int = 3
    note: str = ""
    backbones: tuple[Backbone, ...] = ()
    after: tuple[After, ...] = ()

    def __post_init__(self):
        if not self.rows or len({row.slug for row in self.rows}) != len(self.rows):
            raise ValueError("a table needs rows whose labels differ in letters or digits")


@dataclasses.dataclass(frozen=True)
class Table:
    """A table and its figure.

    Attributes:
      title: its heading.
      source: the paper, and how the table relates to what the paper prints.
      scales: "bundled" (data that arrives inside packages), "paper" (the paper's data), or both.
      columns: see `Column`.
      legend: what the columns mean.
      figure: see `Figure`; None for no figure.
    """

    title: str
    source: str
    scales: Mapping[str, Scale]
    columns: tuple[Column, ...] = (ACCURACY, *CLIENT_COSTS, *BYTES)
    legend: str = LEGEND
    figure: Figure | None = Figure()
