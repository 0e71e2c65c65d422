"""FedOBD, opportunistic block dropout: Chen et al. 2023 (arXiv 2208.05174).

The paper's result tables were not at hand: rows and columns follow its authors' code.
"""

import importlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from fedlite import methods, models
from fedlite.federated.conventions import MEGABYTE, Comparison, Count, counts
from fedlite.models import units
from fedlite.models.blocks import semantic_blocks
from scripts.tables.harness.computed import ComputedTable, Section
from scripts.tables.harness.spec import (
    ACCURACY,
    BYTES,
    CLIENT_COSTS,
    DIFFERENCE,
    DIFFERENCES,
    LEGEND,
    Column,
    Row,
    Scale,
    Table,
)

_COLUMNS = (
    ACCURACY,
    DIFFERENCE,
    *CLIENT_COSTS,
    *BYTES,
    Column("Uncharged MB left out", "bytes.total_paper_convention", 1 / MEGABYTE, 1),
)
_LEGEND = LEGEND + (
    f"{DIFFERENCES} The last column leaves out what the authors do not charge: signs, norms, "
    "offsets, levels, and which blocks were sent."
)
_RECONSTRUCTION = (
    "Reconstruction of the layout of a table of arXiv 2208.05174, whose numbers were not at hand. "
    "Its abstract claims over 88 % less communication than the best baseline."
)


def _plain(name: str) -> dict[str, Any]:
    """Options of a method at their defaults: a method that doesn't run may have no others."""
    return {f"{name}.{option}": value for option, value in methods.options(name).items()}


def _quantized(codec: str) -> dict[str, str]:
    return {"quantize.up": codec, "quantize.down": codec}


def _get(path: str) -> ml_collections.ConfigDict:
    return importlib.import_module(path.removesuffix(".py").replace("/", ".")).get_config()


def _baseline(label: str, config: str, method: str, **options) -> Row:
    """Another method with the settings of FedOBD's first stage."""
    rounds = _get(config).fedobd.stage1_rounds
    overrides = {"method": method, **_plain("quantize"), **_plain("fedobd"), "rounds": rounds}
    return Row(label, config, {**overrides, **options})


def _main(config: str, clients: int = 0, **data) -> tuple[Row, ...]:
    """FedOBD and its baselines on one data set, of so many clients where the config differs."""
    chosen = _get(config)
    clients, rate = clients or chosen.dataset.clients, chosen.fedobd.dropout_rate
    baselines: dict[str, tuple[str, dict[str, Any]]] = {
        "FedAvg, same cohort": ("fedavg", {}),
        "FedAvg, all clients": ("fedavg", {"clients_per_round": clients}),
        "FedPAQ": ("quantize", {"quantize.up": "fedpaq"}),
        "FedDropoutAvg": ("feddropoutavg", {"feddropoutavg.rate": rate}),
        "SMAFD": ("smafd", {"smafd.rate": rate}),
        "HeteroFL": ("heterofl", {}),
    }
    rows = (
        _baseline(label, config, method, **options, **data)
        for label, (method, options) in baselines.items()
    )
    return (*rows, Row("FedOBD", config, data))


def _text(config: str) -> tuple[Row, ...]:
    """The same, and with an embedding that stays as it begins: where words have no vectors, random.

    It is more than half of the model, and a block that takes most of the budget.
    """
    frozen = {
        "method": "partial_training+quantize+fedobd",
        "partial_training.freeze": (("embed/.*", True),),
    }
    return (*_main(config), Row("FedOBD, embedding frozen", config, frozen))


def _densenet40(config: str, rounds: int) -> tuple[Row, ...]:
    """DenseNet-40 itself, for few rounds."""
    size = {"model.growth": 12, "model.block_layers": (6, 6, 6)}
    stages = {"fedobd.stage1_rounds": rounds, "fedobd.stage2_rounds": 1, "rounds": rounds + 1}
    return (
        _baseline("FedAvg, same cohort", config, "fedavg", **size, rounds=rounds),
        Row("FedOBD", config, {**size, **stages}),
    )


def _ablation(config: str) -> tuple[Row, ...]:
    """FedOBD, and FedOBD without or with another of each of its parts."""

    def choice(name: str) -> dict[str, str]:
        return {"fedobd.choice": name}

    rounds = _get(config).fedobd.stage1_rounds
    first_stage = {"fedobd.stage1_rounds": 0, "fedobd.stage2_rounds": 0, "rounds": rounds}
    return (
        _baseline("FedAvg, same cohort", config, "fedavg"),
        Row("FedOBD", config),
        Row("SQ: 255 stochastic levels", config, _quantized("fedpaq")),
        Row("No quantisation", config, {"method": "fedobd", **_plain("quantize")}),
        Row("First stage alone", config, first_stage),
        Row("No block dropout", config, {"fedobd.dropout_rate": 0.0}),
        Row("Norm not divided by size", config, choice("norm")),
        Row("Random blocks", config, choice("random_blocks")),
        Row("Random tensors", config, choice("random_tensors")),
    )


def _sweep(config: str, betas: tuple[float, ...], rates: tuple[float, ...]) -> tuple[Row, ...]:
    """Each beta at the config's dropout rate, then each rate at the config's beta."""
    return (
        *(Row(f"beta {beta:f}".rstrip("0"), config, _quantized(f"nnadq{beta}")) for beta in betas),
        *(Row(f"lambda {rate}", config, {"fedobd.dropout_rate": rate}) for rate in rates),
    )


_MNIST = "configs/fedobd/mnist5k_resnet.py"
_FILMS = "configs/fedobd/rotten_tomatoes_transformer.py"
_CIFAR10 = "configs/fedobd/cifar10_densenet.py"
_CIFAR100 = "configs/fedobd/cifar100_densenet.py"
_IMDB = "configs/fedobd/imdb_transformer.py"

_BASELINES = (
    "FedPAQ has a norm for each array, where the authors have one for all. SMAFD's clients go on "
    "from their own values of what they do not receive, which the server's model does not have."
)
_SWEEP = {"betas": (0.01, 0.001, 0.0001), "rates": (0.1, 0.3, 0.5, 0.7)}


def _table(title: str, **scales: Scale) -> Table:
    return Table(title, _RECONSTRUCTION, scales, _COLUMNS, _LEGEND)


TABLES = {
    "main": _table(
        "FedOBD and its baselines on images",
        bundled=Scale(
            _main(_MNIST),
            note=(
                "A narrow ResNet-18 on 4,000 MNIST digits over 100 clients, IID, 20 a round. "
                + _BASELINES
            ),
        ),
        paper=Scale(
            _main(_CIFAR10),
            note="DenseNet-40 on CIFAR-10 over 100 clients, IID, 50 a round.",
        ),
    ),
    "main_dirichlet": _table(
        "FedOBD and its baselines on images that are spread unevenly",
        bundled=Scale(
            _main(_MNIST, **{"dataset.partition": "dirichlet_by_client", "dataset.alpha": 0.5}),
            note=(
                "A narrow ResNet-18 on 4,000 MNIST digits over 100 clients by Dirichlet(0.5), 20 "
                f"a round. {_BASELINES}"
            ),
        ),
    ),
    "main_cifar100": _table(
        "FedOBD and its baselines on CIFAR-100",
        paper=Scale(
            _main(_CIFAR100),
            note="DenseNet-40 on CIFAR-100 over 50 clients, IID, 25 a round.",
        ),
    ),
    "main_text": _table(
        "FedOBD and its baselines on reviews of films",
        bundled=Scale(
            _text(_FILMS),
            note=(
                "A Transformer on reviews of Rotten Tomatoes over 200 clients, IID, 20 a round; "
                f"the server is Adam in all rows. {_BASELINES}"
            ),
        ),
        paper=Scale(
            _main(_IMDB),
            note="A Transformer on IMDB's reviews over 100 clients, IID, 50 a round.",
        ),
    ),
    "main_films": _table(
        "FedOBD and its baselines on reviews, a client a film",
        bundled=Scale(
            _main(_FILMS, 405, **{"dataset.partition": "natural", "dataset.clients": 0}),
            note=(
                "A Transformer on reviews of Rotten Tomatoes: the 405 films with ten reviews or "
                "more, 20 a round; the server is Adam in all rows. Of a film's reviews 17 % to "
                f"91 % are good ones. {_BASELINES}"
            ),
        ),
    ),
    "densenet40": _table(
        "DenseNet-40 in a short run",
        bundled=Scale(
            _densenet40("configs/fedobd/mnist5k_densenet.py", 15),
            seeds=1,
            note="4,000 MNIST digits over 100 clients, IID, 20 a round; few rounds, not tuned.",
        ),
    ),
    "ablation": _table(
        "What each part of FedOBD brings",
        bundled=Scale(
            _ablation(_MNIST),
            note="A narrow ResNet-18 on 4,000 MNIST digits over 100 clients, IID, 20 a round.",
        ),
        paper=Scale(
            _ablation(_CIFAR100),
            note="DenseNet-40 on CIFAR-100 over 50 clients, IID, 25 a round.",
        ),
    ),
    "beta_lambda": _table(
        "FedOBD's two settings: beta of the quantiser, lambda of block dropout",
        bundled=Scale(
            _sweep(_MNIST, **_SWEEP),
            note="A narrow ResNet-18 on 4,000 MNIST digits over 100 clients, IID, 20 a round.",
        ),
        paper=Scale(
            _sweep(_CIFAR10, **_SWEEP),
            note="DenseNet-40 on CIFAR-10 over 100 clients, IID, 50 a round.",
        ),
    ),
}


_IMAGE = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
_REVIEW = jax.ShapeDtypeStruct((1, 300), jnp.int32)


def comparison(path: str, num_classes: int, example: jax.ShapeDtypeStruct = _IMAGE) -> Comparison:
    """The sizes of a config, without its data.

    Args:
      path: of the config.
      num_classes: labels.
      example: an input of the model.
    """
    config = _get(path)
    options = {key: value for key, value in config.model.items() if key != "name"}
    model = models.build(config.model.name, num_classes=num_classes, **options)
    shapes = units.param_shapes(model, example)
    return Comparison(
        tensors=tuple(math.prod(shape) for _, shape in sorted(shapes.items())),
        blocks=len(set(semantic_blocks(shapes).values())),
        clients=config.dataset.clients,
        cohort=config.clients_per_round,
        rounds=config.fedobd.stage1_rounds,
        stage2_rounds=config.fedobd.stage2_rounds,
        dropout_rate=config.fedobd.dropout_rate,
    )


def _accounting() -> list[Section]:
    conventions = {
        "as the authors count": "authors",
        "with sign bits": "with_signs",
        "as fedlite encodes": "as_encoded",
    }
    sections = []
    settings = (
        ("CIFAR-10", _CIFAR10, 10, _IMAGE),
        ("CIFAR-100", _CIFAR100, 100, _IMAGE),
        ("IMDB", _IMDB, 2, _REVIEW),
    )
    for name, config, num_classes, example in settings:
        found = counts(comparison(config, num_classes, example))
        for title, convention in conventions.items():
            sections.append(Section(f"{name}, {title}", _lines(found, convention)))
    return sections


def _lines(found: list[Count], convention: str) -> list[list[str]]:
    """Megabytes, and by how much they are less than those of three references."""
    references = found[:3]
    heading = ["Method", "Clients a round", "Messages", "MB"]
    lines = [[*heading, *(f"% less than {reference.method}" for reference in references)]]
    for count in found:
        total = getattr(count, convention)
        less = (100 * (1 - total / getattr(reference, convention)) for reference in references)
        lines.append(
            [
                count.method,
                f"{count.cohort}",
                f"{count.messages:,}",
                f"{total / MEGABYTE:,.2f}",
                *(f"{share:.1f}" for share in less),
            ]
        )
    return lines


COMPUTED = {
    "accounting": ComputedTable(
        title="What FedOBD's comparison costs, and by which count",
        source=(
            "DenseNet-40, and on IMDB a Transformer with an embedding of 20,004 tokens; the "
            "settings of the authors' code for arXiv 2208.05174: 100 rounds, 10 more of all "
            "clients, lambda 0.3. The formulas are those of the authors' analysis script, see "
            "fedlite/federated/conventions.py. The paper's own numbers were not at hand; its "
            "abstract claims over 88 % less communication than the best baseline."
        ),
        scales={"paper": _accounting},
        legend=(
            "MB (2^20 bytes) are of all clients, all rounds, both ways. As the authors count: "
            "values alone, and a broadcast to all clients before the first round; of SMAFD one "
            "broadcast a round. With sign bits: one bit more for each quantised value. As fedlite "
            "encodes: with signs, norms, offsets, levels, ids of blocks and tensors, and every "
            "download, but nothing before a client takes part. FedOBD's bits are those of a value "
            "without its sign, here the same in every tensor and round; its quantiser chooses them "
            "while it trains. Block dropout is charged its whole budget."
        ),
    )
}
