"""Federated pruning: Lin et al. 2022 (arXiv 2209.06359).

The paper's tables were not at hand: rows and columns follow what is known of them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fedlite.methods.pruning_groups import PATTERNS
from scripts.tables.federated_dropout import (
    COSTS,
    SPEECH,
    SPEECH_COLUMNS,
    SPEECH_FIGURE,
    SPEECH_LEGEND,
    Speech,
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


def _configs(speech: Speech) -> tuple[str, str]:
    """Without and with pruning."""
    return speech.config("fedavg"), speech.config("federated_pruning")


def _scores(speech: Speech) -> tuple[Row, ...]:
    """With one share for all widths, as a movement cannot be adaptive."""
    names = {
        "weight_l1": "Weight, L1",
        "weight_l2": "Weight, L2",
        "update": "Update",
        "taylor": "Taylor",
        "movement": "Movement",
        "random": "Random",
    }
    plain, pruning = _configs(speech)
    return (
        Row("Unpruned", plain),
        *(
            Row(name, pruning, _options(score=score, allocation="uniform"))
            for score, name in names.items()
        ),
    )


def _schedules(speech: Speech) -> tuple[Row, ...]:
    """From the full sparsity at once to four masks; all but one reach it in the same round."""
    plain, pruning = _configs(speech)
    earliest, early, late = (rounds * speech.length for rounds in (20, 30, 50))

    def row(label: str, schedule: str, prune_from: int, steps: int, every: int) -> Row:
        every *= speech.length
        phases = _options(schedule=schedule, prune_from=prune_from, steps=steps, every=every)
        return Row(label, pruning, phases)

    return (
        Row("Unpruned", plain),
        row(f"Constant, from round {late}", "constant", late, 1, 10),
        row(f"Constant, from round {early}", "constant", early, 1, 10),
        row("Step, 2 masks", "step", early, 2, 20),
        row("Step, 4 masks", "step", earliest, 4, 10),
        row("Cubic, 4 masks", "cubic", earliest, 4, 10),
    )


def _allocations(speech: Speech) -> tuple[Row, ...]:
    plain, pruning = _configs(speech)
    return (
        Row("Unpruned", plain),
        *(
            Row(
                f"{allocation.capitalize()}, {100 * sparsity:g} %",
                pruning,
                _options(allocation=allocation, sparsity=sparsity),
            )
            for sparsity in (0.3, 0.5, 0.7)
            for allocation in ("uniform", "adaptive")
        ),
    )


def _refinements(speech: Speech) -> tuple[Row, ...]:
    """From the last prune mask until fine-tuning begins."""
    plain, pruning = _configs(speech)
    often, more, most = (rounds * speech.length for rounds in (20, 10, 5))
    return (
        Row("Unpruned", plain),
        Row("None", pruning, _options(refine_every=0, refine_until=0)),
        *(
            Row(f"Every {every} rounds", pruning, _options(refine_every=every))
            for every in (often, more, most)
        ),
        Row(f"Every {more}, pruned stay zero", pruning, _options(refine_every=more, pruned="zero")),
    )


class _Central(NamedTuple):
    """A model that was trained centrally on another domain, and the data to go on with."""

    backbone: Backbone
    overrides: Mapping[str, Any]
    note: str


# Two cores take some ten minutes a run, half of them to compile a program for every mask: with one
# seed a table takes less than an hour.
_SEEDS = {"bundled": 1, "paper": 3}
# By the name of the configs.
_CENTRAL = {
    "speech_conformer": _Central(
        dataclasses.replace(
            SPEECH["bundled"].backbone, name="commands", overrides=SPEECH["bundled"].domain
        ),
        {},
        "All rows begin with a model that was trained centrally on spoken commands.",
    ),
    "librispeech_conformer": _Central(
        SPEECH["paper"].backbone,
        SPEECH["paper"].domain,
        "All rows begin with a model that was trained centrally on train-clean-100, go on with "
        "train-other-500, and are tested on test-other.",
    ),
}


def _centralised(speech: Speech) -> tuple[Row, ...]:
    """All from a model that was trained centrally on another domain."""
    plain, pruning = _configs(speech)
    central = _CENTRAL[speech.name]
    begin = {"backbone.path": f"{BACKBONES}{central.backbone.name}", **central.overrides}
    fixed = _options(schedule="constant", prune_from=0, steps=1, refine_every=0, refine_until=0)
    every, until = 30 * speech.length, 90 * speech.length
    refined = _options(refine_every=every, refine_until=until)
    return (
        Row("Unpruned", plain, begin),
        Row("Pruned centrally, then trained", pruning, {**begin, **fixed}),
        Row("Pruned centrally, then refined", pruning, {**begin, **fixed, **refined}),
        Row("Pruned in the federation", pruning, begin),
    )


def _speech(
    title: str,
    rows: Callable[[Speech], tuple[Row, ...]],
    note: Callable[[Speech], str] = lambda speech: "",
    backbones: Callable[[Speech], tuple[Backbone, ...]] = lambda speech: (),
) -> Table:
    scales = {
        scale: Scale(
            rows(speech),
            seeds=_SEEDS[scale],
            note=speech.note + note(speech),
            backbones=backbones(speech),
        )
        for scale, speech in SPEECH.items()
    }
    legend = SPEECH_LEGEND + _CONVENTION
    return Table(title, _RECONSTRUCTION, scales, SPEECH_COLUMNS, legend, SPEECH_FIGURE)


def _images(title: str, rows: tuple[Row, ...]) -> Table:
    columns, legend = (ACCURACY, *COSTS, *BYTES), LEGEND + _CONVENTION
    source = _RECONSTRUCTION + "On images in place of speech."
    return Table(title, source, {"bundled": Scale(rows, note=_DIGITS)}, columns, legend)


_HALF = "Half of what is prunable goes. "
TABLES = {
    "sparsity": _speech(
        "Federated pruning on speech: sparsity",
        lambda speech: _sparsities(*_configs(speech), speech.small),
        lambda speech: (
            f"The small model has {speech.small['ffn']} feed-forward units in each module, not "
            f"{speech.ffn}, and half of the channels before the first block."
        ),
    ),
    "patterns": _speech(
        "Federated pruning on speech: patterns",
        lambda speech: _patterns(*_configs(speech)),
        lambda speech: _HALF + "A row of an attention's output layer is one feature of all heads.",
    ),
    "scores": _speech(
        "Federated pruning on speech: scores",
        _scores,
        lambda speech: _HALF + "The same share of every width.",
    ),
    "schedule": _speech("Federated pruning on speech: schedules", _schedules, lambda speech: _HALF),
    "adaptive": _speech(
        "Federated pruning on speech: one share of every width, or by importance", _allocations
    ),
    "refinement": _speech(
        "Federated pruning on speech: refined masks", _refinements, lambda speech: _HALF
    ),
    "centralised": _speech(
        "Pruning with and without the clients' data",
        _centralised,
        lambda speech: _HALF + _CENTRAL[speech.name].note,
        backbones=lambda speech: (_CENTRAL[speech.name].backbone,),
    ),
    "sparsity_images": _images(
        "Federated pruning on images: sparsity",
        _sparsities(_IMAGES, _IMAGES_PRUNING, {"conv1": 23, "conv2": 45, "dense1": 91}),
    ),
    "patterns_images": _images(
        "Federated pruning on images: patterns", _patterns(_IMAGES, _IMAGES_PRUNING)
    ),
}
