"""Federated pruning: Lin et al. 2022 (arXiv 2209.06359).

The paper's tables were not at hand: rows and columns follow what is known of them.
"""

from typing import Any

from fedlite.methods.pruning_groups import PATTERNS
from scripts.tables.federated_dropout import (
    COSTS,
    SPEAKERS,
    SPEECH,
    SPEECH_COLUMNS,
    SPEECH_FIGURE,
    SPEECH_LEGEND,
)
from scripts.tables.harness.spec import (
    ACCURACY,
    BACKBONES,
    BYTES,
    LEGEND,
    Backbone,
    Row,
    Scale,
    Table,
)

_PRUNING = "configs/federated_pruning/speech_conformer.py"
_IMAGES = "configs/fedavg/mnist5k_cnn.py"
_IMAGES_PRUNING = "configs/federated_pruning/mnist5k_cnn.py"
_RECONSTRUCTION = (
    "Reconstruction of the layout of a table of arXiv 2209.06359, whose numbers were not at hand. "
)
_DIGITS = "4,000 MNIST digits over 100 clients, 10 a round. "
# Kernels are [in, out]: a convention that differs between papers.
_CONVENTION = (
    " A column is an output unit (kernels are [in, out]), a unit a column with the rows that read "
    "it. Sparsity is the share of what is prunable: of the parameters around prunable widths "
    "(units), or of the entries of prunable kernels. The numbers of a client are those of the last "
    "phase; the total counts all phases."
)


def _options(**options) -> dict[str, Any]:
    return {f"federated_pruning.{key}": value for key, value in options.items()}


def _sparsities(plain: str, pruning: str, small: dict[str, int]) -> tuple[Row, ...]:
    """Shares of what is prunable, and a model that is as small to begin with."""
    return (
        Row("Unpruned", plain),
        *(Row(f"{100 * s:g} %", pruning, _options(sparsity=s)) for s in (0.1, 0.3, 0.5, 0.7)),
        Row("Small model, as 50 %", plain, {f"model.{key}": n for key, n in small.items()}),
    )


_NAMES = {
    "unit": "Unit",
    "column": "Whole column",
    "row": "Whole row",
    "half_column": "Half column",
    "half_row": "Half row",
    "unstructured": "Unstructured, the bound",
}


def _patterns(plain: str, pruning: str) -> tuple[Row, ...]:
    rows = [Row(_NAMES[name], pruning, _options(pattern=name)) for name in PATTERNS]
    return (Row("Unpruned", plain), *rows)


def _scores() -> tuple[Row, ...]:
    """With one share for all widths, as a movement cannot be adaptive."""
    names = {
        "weight_l1": "Weight, L1",
        "weight_l2": "Weight, L2",
        "update": "Update",
        "taylor": "Taylor",
        "movement": "Movement",
        "random": "Random",
    }
    return (
        Row("Unpruned", SPEECH),
        *(
            Row(name, _PRUNING, _options(score=score, allocation="uniform"))
            for score, name in names.items()
        ),
    )


def _schedules() -> tuple[Row, ...]:
    """From the full sparsity at once to four masks; all but one reach it in round 90."""
    return (
        Row("Unpruned", SPEECH),
        Row("Constant, from round 90", _PRUNING, _phases("constant", 90, 1, 10)),
        Row("Constant, from round 60", _PRUNING, _phases("constant", 60, 1, 10)),
        Row("Step, 2 masks", _PRUNING, _phases("step", 60, 2, 30)),
        Row("Step, 4 masks", _PRUNING, _phases("step", 60, 4, 10)),
        Row("Cubic, 4 masks", _PRUNING, _phases("cubic", 60, 4, 10)),
    )


def _phases(schedule: str, prune_from: int, steps: int, every: int) -> dict[str, Any]:
    return _options(schedule=schedule, prune_from=prune_from, steps=steps, every=every)


def _allocations() -> tuple[Row, ...]:
    return (
        Row("Unpruned", SPEECH),
        *(
            Row(
                f"{allocation.capitalize()}, {100 * sparsity:g} %",
                _PRUNING,
                _options(allocation=allocation, sparsity=sparsity),
            )
            for sparsity in (0.3, 0.5, 0.7)
            for allocation in ("uniform", "adaptive")
        ),
    )


def _refinements() -> tuple[Row, ...]:
    """From round 90, at which the last prune mask is made, to round 150."""
    return (
        Row("Unpruned", SPEECH),
        Row("None", _PRUNING, _options(refine_every=0, refine_until=0)),
        *(
            Row(f"Every {every} rounds", _PRUNING, _options(refine_every=every))
            for every in (20, 10, 5)
        ),
        Row("Every 10, pruned stay zero", _PRUNING, _options(refine_every=10, pruned="zero")),
    )


_BACKBONE = Backbone("commands", SPEECH, {"dataset.grammar": "commands"}, epochs=20)


def _centralised() -> tuple[Row, ...]:
    """All from a model that was trained centrally on another domain."""
    begin = {"backbone.path": f"{BACKBONES}{_BACKBONE.name}"}
    fixed = _options(schedule="constant", prune_from=0, steps=1, refine_every=0, refine_until=0)
    refined = _options(refine_every=30, refine_until=150)
    return (
        Row("Unpruned", SPEECH, begin),
        Row("Pruned centrally, then trained", _PRUNING, {**begin, **fixed}),
        Row("Pruned centrally, then refined", _PRUNING, {**begin, **fixed, **refined}),
        Row("Pruned in the federation", _PRUNING, begin),
    )


def _speech(title: str, rows: tuple[Row, ...], note: str = "", **more) -> Table:
    scale = Scale(rows, note=SPEAKERS + note, **more)
    legend = SPEECH_LEGEND + _CONVENTION
    return Table(title, _RECONSTRUCTION, {"bundled": scale}, SPEECH_COLUMNS, legend, SPEECH_FIGURE)


def _images(title: str, rows: tuple[Row, ...]) -> Table:
    columns, legend = (ACCURACY, *COSTS, *BYTES), LEGEND + _CONVENTION
    source = _RECONSTRUCTION + "On images in place of speech."
    return Table(title, source, {"bundled": Scale(rows, note=_DIGITS)}, columns, legend)


_HALF = "Half of what is prunable goes. "
TABLES = {
    "sparsity": _speech(
        "Federated pruning on speech: sparsity",
        _sparsities(SPEECH, _PRUNING, {"ffn": 69}),
        "The small model has 69 feed-forward units in each module, not 256.",
    ),
    "patterns": _speech(
        "Federated pruning on speech: patterns",
        _patterns(SPEECH, _PRUNING),
        _HALF + "A row of an attention's output layer is one feature of all heads.",
    ),
    "scores": _speech(
        "Federated pruning on speech: scores", _scores(), _HALF + "The same share of every width."
    ),
    "schedule": _speech("Federated pruning on speech: schedules", _schedules(), _HALF),
    "adaptive": _speech(
        "Federated pruning on speech: one share of every width, or by importance", _allocations()
    ),
    "refinement": _speech("Federated pruning on speech: refined masks", _refinements(), _HALF),
    "centralised": _speech(
        "Pruning with and without the clients' data",
        _centralised(),
        _HALF + "All rows begin with a model that was trained centrally on spoken commands.",
        backbones=(_BACKBONE,),
    ),
    "sparsity_images": _images(
        "Federated pruning on images: sparsity",
        _sparsities(_IMAGES, _IMAGES_PRUNING, {"conv1": 23, "conv2": 45, "dense1": 91}),
    ),
    "patterns_images": _images(
        "Federated pruning on images: patterns", _patterns(_IMAGES, _IMAGES_PRUNING)
    ),
}
