"""Federated dropout: Caldas et al. 2018 (arXiv 1812.07210), Guliani et al. 2022 (arXiv 2110.03634).

The papers' tables were not at hand: rows and columns follow what is known of them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from flax.core import FrozenDict

from fedlite.models.rate_presets import KINDS
from scripts.tables.harness.spec import (
    ACCURACY,
    BACKBONES,
    BYTES,
    CER,
    CLIENT_COSTS,
    DIFFERENCES,
    LEGEND,
    PARAMS_SHARE,
    WER,
    WER_DIFFERENCE,
    After,
    Backbone,
    Column,
    Figure,
    Row,
    Scale,
    Table,
)

_IMAGES = "configs/fedavg/mnist5k_cnn.py"
_IMAGES_DROPOUT = "configs/federated_dropout/mnist5k_cnn.py"
_RECONSTRUCTION = (
    "Reconstruction of the layout of a table of arXiv 2110.03634, whose numbers were not at hand. "
)


@dataclasses.dataclass(frozen=True)
class Speech:
    """Data and model of the speech tables at one scale.

    Attributes:
      name: of the configs, one a method.
      note: what they are.
      blocks, ffn, d_model: of the Conformer.
      small: options of the model with which it is as small as with half of what is prunable.
      length: of a run, in that of the bundled one.
      domain: options of the data set that make the domain to which a model is adapted.
      backbone: a model that was trained centrally on another domain.
      source: options of the data set for a test on the backbone's domain.
      adaptation: what is adapted to what.
      importance: of the feed-forward modules, in order of depth, by experiments.importance on the
        row FedAvg, seed 0; () where that was not run.
    """

    name: str
    note: str
    blocks: int
    ffn: int
    d_model: int
    small: dict[str, int]
    length: int
    domain: dict[str, str]
    backbone: Backbone
    source: str
    adaptation: str
    importance: tuple[float, ...] = ()

    def config(self, method: str) -> str:
        """The config of a method."""
        return f"configs/{method}/{self.name}.py"


SPEECH = {
    "bundled": Speech(
        name="speech_conformer",
        note=(
            "Digit strings by 120 made-up speakers, characters, tested on 40 others; a small "
            "Conformer. "
        ),
        blocks=2,
        ffn=256,
        d_model=64,
        small={"ffn": 96, "subsampling": 16},
        length=1,
        domain={"dataset.grammar": "commands"},
        backbone=Backbone("digits", "configs/fedavg/speech_conformer.py", epochs=20),
        source="grammar=digits",
        adaptation=(
            "A model that was trained centrally on the digit strings is adapted to spoken commands "
            "by the speakers who say them; a substitute for the paper's multi-domain corpus."
        ),
        importance=(0.0, 0.0, 1.0, 0.633),
    ),
    "paper": Speech(
        name="librispeech_conformer",
        note=(
            "LibriSpeech, characters, utterances of at most 20 s; all 960 hours by 2,338 speakers "
            "and tested on test-clean, where nothing else is said. Conformer-S with CTC in place "
            "of the paper's larger transducer. Which settings are known: see "
            "configs/fedavg/librispeech_conformer.py. "
        ),
        blocks=16,
        ffn=576,
        d_model=144,
        small={"ffn": 144, "subsampling": 72},
        length=10,
        domain={
            "dataset.train": "train-other-500",
            "dataset.validation": "dev-other",
            "dataset.test": "test-other",
        },
        backbone=Backbone(
            "clean",
            "configs/fedavg/librispeech_conformer.py",
            {"dataset.train": "train-clean-100"},
            epochs=20,
        ),
        # Of its training data, which only has to be there, as little as there may be.
        source=(
            "train=train-clean-100,max_examples_per_client=1,validation=dev-clean,test=test-clean"
        ),
        adaptation=(
            "A model that was trained centrally on train-clean-100 is adapted to train-other-500 "
            "by its speakers, and tested on test-other; a substitute for the paper's multi-domain "
            "corpus."
        ),
    ),
}
# The widths that the paper drops: those of the feed-forward modules.
_FFN = r"block\d+/ffn\d"

# The costs without what a client trains, which here is all that it has.
COSTS = (CLIENT_COSTS[0], PARAMS_SHARE, *CLIENT_COSTS[2:])
SPEECH_COLUMNS = (WER, WER_DIFFERENCE, CER, *COSTS, *BYTES)
SPEECH_LEGEND = (
    "WER and CER are the word and character error rates of the last round on the test speakers, "
    + LEGEND.partition("on the test set, ")[2]
    + DIFFERENCES
)
SPEECH_FIGURE = Figure("wer", "Test WER (%)")


def _rates(rate: float, pattern: str = _FFN) -> dict[str, Any]:
    return {"federated_dropout.rates": ((pattern, rate),)}


def _uniform(speech: Speech) -> tuple[Row, ...]:
    """Rates of all feed-forward modules, and a model that is as small to begin with."""
    plain, dropout = speech.config("fedavg"), speech.config("federated_dropout")
    return (
        Row("FedAvg", plain),
        *(Row(f"rate {rate:g}", dropout, _rates(rate)) for rate in (0.1, 0.3, 0.5, 0.7)),
        Row("Small model, as rate 0.5", plain, {"model.ffn": speech.ffn // 2}),
    )


def _per_layer(speech: Speech, rate: float = 0.5) -> tuple[Row, ...]:
    """Rates that rise or fall with depth, all of one client size."""
    blocks = range(1, speech.blocks + 1)
    widths = [f"block{block}/ffn{half}" for block in blocks for half in (1, 2)]
    importance = {"federated_dropout.importance": tuple(zip(widths, speech.importance))}
    # "ambient" needs importances, which are measured on a trained model.
    kinds = [kind for kind in KINDS if kind != "ambient" or speech.importance]
    rows = [Row("FedAvg", speech.config("fedavg"))]
    for kind in kinds:
        more = importance if kind == "ambient" else {}
        chosen = {**_rates(rate), "federated_dropout.preset": kind, **more}
        rows.append(Row(kind.capitalize(), speech.config("federated_dropout"), chosen))
    return tuple(rows)


def _submodels(speech: Speech) -> tuple[Row, ...]:
    """Trained without and with dropout."""
    dropout = speech.config("federated_dropout")
    return (
        Row("FedAvg", speech.config("fedavg")),
        *(Row(f"rate {rate:g}", dropout, _rates(rate)) for rate in (0.25, 0.5)),
    )


def _submodels_words() -> tuple[Row, ...]:
    """The same with a vocabulary of words, at the length of configs/fedavg/speech_words.py."""
    words = {"dataset.vocabulary": "words", "rounds": 150}
    dropout = SPEECH["bundled"].config("federated_dropout")
    return (
        Row("FedAvg", "configs/fedavg/speech_words.py"),
        Row("rate 0.5", dropout, {**_rates(0.5), **words}),
    )


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


# A model that was trained without rescaling may gain by it when it is cut.
_RESCALED = After(
    "experiments.evaluate_submodels",
    "rescaled.json",
    (
        f"--rates={','.join(map(str, _CUTS))}",
        "--kinds=random",
        f"--widths={_FFN}",
        "--rescale=yes",
        "--result=rescaled",
    ),
)


def _cut_columns() -> tuple[Column, ...]:
    """Of the sub-models of every rate and kind, in the order of the program's rows."""
    pairs = [(rate, kind) for rate in _CUTS for kind in _KINDS]
    return (
        *(
            Column(f"{kind} {rate:g}", f"rows.{index}.wer", 100, 1, file=_SUBMODELS.file)
            for index, (rate, kind) in enumerate(pairs)
        ),
        *(
            Column(f"rescaled {rate:g}", f"rows.{index}.wer", 100, 1, file=_RESCALED.file)
            for index, rate in enumerate(_CUTS)
        ),
    )


def _on_source(speech: Speech) -> After:
    arguments = (f"--data={speech.source}", "--out=source")
    return After("experiments.evaluate_on", "source.json", arguments)


def _adaptation(speech: Speech) -> tuple[Row, ...]:
    """From one domain to the other, by the clients' data alone."""
    plain, dropout = speech.config("fedavg"), speech.config("federated_dropout")
    target = {**speech.domain, "rounds": 100 * speech.length}
    begin = {"backbone.path": f"{BACKBONES}{speech.backbone.name}", **target}
    # A step of next to nothing, as a run has at least one.
    still = {"rounds": 1, "server_optimizer.name": "sgd", "server_optimizer.learning_rate": 1e-12}
    return (
        Row("FedAvg", plain, begin),
        Row("Not adapted", plain, {**begin, **still}),
        *(
            Row(f"Dropout, rate {rate:g}", dropout, {**begin, **_rates(rate)})
            for rate in (0.25, 0.5, 0.75)
        ),
        Row("FedAvg, from scratch", plain, target),
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


def _speech_table(
    title: str,
    rows: Callable[[Speech], tuple[Row, ...]],
    note: Callable[[Speech], str] = lambda speech: "",
    after: Callable[[Speech], tuple[After, ...]] = lambda speech: (),
    backbones: Callable[[Speech], tuple[Backbone, ...]] = lambda speech: (),
    columns: tuple[Column, ...] = SPEECH_COLUMNS,
    legend: str = "",
    seeds: Mapping[str, int] = FrozenDict(),
) -> Table:
    scales = {
        scale: Scale(
            rows(speech),
            seeds=seeds.get(scale, 3),
            note=speech.note + note(speech),
            after=after(speech),
            backbones=backbones(speech),
        )
        for scale, speech in SPEECH.items()
    }
    legend = SPEECH_LEGEND + legend
    return Table(title, _RECONSTRUCTION, scales, columns, legend, SPEECH_FIGURE)


# Of tables whose runs are scored by `_SUBMODELS`.
_CUT_TABLE = {
    "columns": (WER, WER_DIFFERENCE, *_cut_columns(), CLIENT_COSTS[0], PARAMS_SHARE, *BYTES[2:]),
    "legend": (
        " The other columns are the WER of sub-models that lose this share of the units of every "
        "feed-forward module: drawn at random (mean of 5 draws), the last ones, or those with the "
        "least norm; each rescaled where the row was trained so. Rescaled: random ones of every "
        "row."
    ),
}

TABLES = {
    "uniform": _speech_table(
        "Federated dropout on speech: one rate for all feed-forward modules", _uniform
    ),
    "per_layer": _speech_table(
        "Federated dropout on speech: rates that differ by layer, clients of one size",
        _per_layer,
        lambda speech: (
            "Which schemes the paper compares is not known; these are the suite's own. "
            + ("Ambient drops least where a reset costs most. " if speech.importance else "")
        ),
        # Less than an hour on two cores, as the other tables.
        seeds={"bundled": 2},
    ),
    "submodels": _speech_table(
        "Sub-models inside the big model: WER without further training",
        _submodels,
        after=lambda speech: (_SUBMODELS, _RESCALED),
        **_CUT_TABLE,
    ),
    "submodels_words": Table(
        title="Sub-models inside the big model, with a vocabulary of words",
        source="No paper prints this table.",
        scales={
            "bundled": Scale(
                _submodels_words(),
                note=(
                    "Digit strings by 120 made-up speakers, words, tested on 40 others; a small "
                    "Conformer."
                ),
                after=(_SUBMODELS, _RESCALED),
            )
        },
        columns=_CUT_TABLE["columns"],
        legend=SPEECH_LEGEND + _CUT_TABLE["legend"],
        figure=SPEECH_FIGURE,
    ),
    "domain_adaptation": _speech_table(
        "Adapting a speech model to another domain with smaller clients",
        _adaptation,
        lambda speech: speech.adaptation,
        backbones=lambda speech: (speech.backbone,),
        after=lambda speech: (_on_source(speech),),
        columns=(
            WER,
            WER_DIFFERENCE,
            Column("Source WER %", "wer", 100, 1, file="source.json"),
            CER,
        )
        + (*COSTS, *BYTES),
        legend=" WER is that on the target, the source is what the backbone was trained on.",
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
