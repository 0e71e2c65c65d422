"""Federated dropout: Caldas et al. 2018 (arXiv 1812.07210), Guliani et al. 2022 (arXiv 2110.03634).

The papers' tables were not at hand: rows and columns follow what is known of them.
"""

from typing import Any

from flax.core import FrozenDict

from fedlite.models.rate_presets import KINDS, rate_presets
from fedlite.models.units import UnitAxes, UnitAxis
from scripts.tables.harness.spec import (
    ACCURACY,
    BACKBONES,
    BYTES,
    CER,
    CLIENT_COSTS,
    LEGEND,
    PARAMS_SHARE,
    WER,
    After,
    Backbone,
    Column,
    Figure,
    Row,
    Scale,
    Table,
)

SPEECH = "configs/fedavg/speech_conformer.py"
_DROPOUT = "configs/federated_dropout/speech_conformer.py"
_IMAGES = "configs/fedavg/mnist5k_cnn.py"
_IMAGES_DROPOUT = "configs/federated_dropout/mnist5k_cnn.py"
_RECONSTRUCTION = (
    "Reconstruction of the layout of a table of arXiv 2110.03634, whose numbers were not at hand. "
)
SPEAKERS = (
    "Digit strings by 120 made-up speakers, characters, tested on 40 others; a small Conformer. "
)
# The widths that the paper drops: those of the feed-forward modules.
_FFN = r"block\d+/ffn\d"

# The costs without what a client trains, which here is all that it has.
COSTS = (CLIENT_COSTS[0], PARAMS_SHARE, *CLIENT_COSTS[2:])
SPEECH_COLUMNS = (WER, CER, *COSTS, *BYTES)
SPEECH_LEGEND = (
    "WER and CER are the word and character error rates of the last round on the test speakers, "
    + LEGEND.partition("on the test set, ")[2]
)
SPEECH_FIGURE = Figure("wer", "Test WER (%)")


def _rates(rate: float, pattern: str = _FFN) -> dict[str, Any]:
    return {"federated_dropout.rates": ((pattern, rate),)}


def _uniform() -> tuple[Row, ...]:
    """Rates of all feed-forward modules, and a model that is as small to begin with."""
    return (
        Row("FedAvg", SPEECH),
        *(Row(f"rate {rate:g}", _DROPOUT, _rates(rate)) for rate in (0.1, 0.3, 0.5, 0.7)),
        Row("Small model, as rate 0.5", SPEECH, {"model.ffn": 128}),
    )


def _per_layer(blocks: int, ffn: int, d_model: int, rate: float) -> tuple[Row, ...]:
    """Rates that rise or fall with depth, all of one client size."""
    # A unit of any feed-forward module is a column with its bias and a row: all of one size.
    widths = [f"block{block}/ffn{half}" for block in range(1, blocks + 1) for half in (1, 2)]
    table = {width: (UnitAxis(width, 1), None) for width in widths}
    axes, shapes = UnitAxes(FrozenDict(table)), dict.fromkeys(widths, (ffn, 2 * d_model + 1))
    # "ambient" needs importances, which are measured on a trained model.
    kinds = [kind for kind in KINDS if kind != "ambient"]
    rows = [Row("FedAvg", SPEECH)]
    for kind in kinds:
        rates = rate_presets(kind, axes, shapes, widths, rate)
        rows.append(Row(kind.capitalize(), _DROPOUT, {"federated_dropout.rates": rates}))
    return tuple(rows)


_CUTS = (0.25, 0.5, 0.75)
_KINDS = ("random", "nested", "norm")
_SUBMODELS = After(
    "experiments.evaluate_submodels",
    "submodels.json",
    (
        f"--rates={','.join(map(str, _CUTS))}",
        f"--kinds={','.join(_KINDS)}",
        f"--widths={_FFN}",
    ),
)


def _cut_columns() -> tuple[Column, ...]:
    """Of the sub-models of every rate and kind, in the order of the program's rows."""
    pairs = [(rate, kind) for rate in _CUTS for kind in _KINDS]
    return tuple(
        Column(f"{kind} {rate:g}", f"rows.{index}.wer", 100, 1, file=_SUBMODELS.file)
        for index, (rate, kind) in enumerate(pairs)
    )


_SOURCE = Backbone("digits", SPEECH, epochs=20)
_ON_SOURCE = After(
    "experiments.evaluate_on", "source.json", ("--data=grammar=digits", "--out=source")
)


def _adaptation() -> tuple[Row, ...]:
    """From one grammar to the other, by the clients' data alone."""
    target = {"dataset.grammar": "commands", "rounds": 100}
    begin = {"backbone.path": f"{BACKBONES}{_SOURCE.name}", **target}
    # A step of next to nothing, as a run has at least one.
    still = {"rounds": 1, "server_optimizer.name": "sgd", "server_optimizer.learning_rate": 1e-12}
    return (
        Row("FedAvg", SPEECH, begin),
        Row("Not adapted", SPEECH, {**begin, **still}),
        *(
            Row(f"Dropout, rate {rate:g}", _DROPOUT, {**begin, **_rates(rate)})
            for rate in (0.25, 0.5, 0.75)
        ),
        Row("FedAvg, from scratch", SPEECH, target),
    )


def _images() -> tuple[Row, ...]:
    """What is kept of every hidden width."""
    half = {"model.conv1": 16, "model.conv2": 32, "model.dense1": 64}
    return (
        Row("FedAvg", _IMAGES, {"model.dropout": 0.0}),
        *(
            Row(f"keep {keep:g}", _IMAGES_DROPOUT, _rates(1 - keep, ".*"))
            for keep in (0.875, 0.75, 0.625, 0.5)
        ),
        Row("Small model, as keep 0.5", _IMAGES, {"model.dropout": 0.0, **half}),
    )


def _speech_table(title: str, rows: tuple[Row, ...], note: str = "", **more) -> Table:
    columns = more.pop("columns", SPEECH_COLUMNS)
    legend = SPEECH_LEGEND + more.pop("legend", "")
    scale = Scale(rows, note=SPEAKERS + note, **more)
    return Table(title, _RECONSTRUCTION, {"bundled": scale}, columns, legend, SPEECH_FIGURE)


TABLES = {
    "uniform": _speech_table(
        "Federated dropout on speech: one rate for all feed-forward modules", _uniform()
    ),
    "per_layer": _speech_table(
        "Federated dropout on speech: rates that differ by layer, clients of one size",
        _per_layer(blocks=2, ffn=256, d_model=64, rate=0.5),
        "Which schemes the paper compares is not known; these are the suite's own.",
    ),
    "submodels": _speech_table(
        "Sub-models inside the big model: WER without further training",
        (
            Row("FedAvg", SPEECH),
            *(Row(f"rate {rate:g}", _DROPOUT, _rates(rate)) for rate in (0.25, 0.5)),
        ),
        after=(_SUBMODELS,),
        columns=(WER, *_cut_columns(), CLIENT_COSTS[0], PARAMS_SHARE, *BYTES[2:]),
        legend=(
            " The other columns are the WER of sub-models that lose this share of the units of "
            "every feed-forward module: drawn at random (mean of 5 draws), the last ones, or those "
            "with the least norm."
        ),
    ),
    "domain_adaptation": _speech_table(
        "Adapting a speech model to another domain with smaller clients",
        _adaptation(),
        (
            "A model that was trained centrally on the digit strings is adapted to spoken commands "
            "by the speakers who say them; a substitute for the paper's multi-domain corpus."
        ),
        backbones=(_SOURCE,),
        after=(_ON_SOURCE,),
        columns=(WER, Column("Source WER %", "wer", 100, 1, file=_ON_SOURCE.file), CER)
        + (*COSTS, *BYTES),
        legend=" WER is that on the target, spoken commands; the source are the digit strings.",
    ),
    "uniform_images": Table(
        title="Federated dropout on images: what is kept of every hidden width",
        source=(
            "Reconstruction of the layout of a table of arXiv 1812.07210, whose numbers were not "
            "at hand. Its abstract claims 14 times fewer bytes down, 28 times fewer up and 1.7 "
            "times less local computation, together with lossy compression both ways."
        ),
        scales={
            "bundled": Scale(
                _images(),
                note=(
                    "4,000 MNIST digits over 100 clients, 10 a round; the network's own dropout is "
                    "off in all rows. No compression: it combines with quantisation, see the "
                    "table combinations."
                ),
            )
        },
        columns=(ACCURACY, *COSTS, *BYTES),
    ),
}
