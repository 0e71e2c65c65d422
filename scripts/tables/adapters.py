"""Parallel adapters in federated learning: Elvebakken et al. 2023 (arXiv 2302.02949).

The paper's tables were not at hand: rows and columns follow what is known of them.
"""

import dataclasses
from typing import Any

from configs.adapters import mnist5k_resnet
from scripts.tables.harness.spec import (
    ACCURACY,
    BACKBONES,
    BYTES,
    CLIENT_COSTS,
    DIFFERENCE,
    DIFFERENCES,
    LEGEND,
    MEGABYTE,
    Backbone,
    Column,
    Row,
    Scale,
    Table,
)

_RECONSTRUCTION = (
    "Reconstruction of the layout of a table of arXiv 2302.02949, whose numbers were not at hand. "
    "Its abstract claims roughly 90 % less communication at similar performance."
)
_LEGEND = (
    f"{LEGEND}{DIFFERENCES} Once is what a client receives at its first round besides: the "
    "backbone. To 85 % is what all clients moved until the test accuracy was first so high, where "
    "every seed came there."
)
_LEGEND_OF_PAIRS = _LEGEND.replace("the first row", "full training of the same setting")
_COLUMNS = (
    ACCURACY,
    DIFFERENCE,
    Column("Worst decile %", "final.client_accuracy.worst_decile", 100, 1),
    CLIENT_COSTS[1],
    *BYTES,
    Column("Once MB", "bytes.once_per_client", 1 / MEGABYTE, 2),
    Column("MB to 85 %", "accuracy", 1 / MEGABYTE, 0, target=0.85),
)

_DIGITS = "configs/adapters/mnist5k_resnet.py"
_PLAYS = "configs/adapters/shakespeare_transformer.py"
_CIFAR = "configs/adapters/cifar10_resnet.py"
_GLYPHS = Backbone("glyphs", f"{_DIGITS}:pretrain")
_ROLES = Backbone("plays", f"{_PLAYS}:pretrain", epochs=8, learning_rate=2e-3, batch_size=32)
_CIFAR100 = Backbone("cifar100", f"{_CIFAR}:pretrain", epochs=60)

_ADAM = {"server_optimizer.name": "adam", "server_optimizer.learning_rate": 0.01}

# Parts that stay frozen, as in the configs, for chains with another technique.
_VARIANTS = {"Full": "full", "Adapters": "adapters"}


def _row(
    label: str,
    config: str,
    variant: str,
    backbone: Backbone | None,
    reference: str = "",
    **overrides,
) -> Row:
    begin = {"backbone.path": f"{BACKBONES}{backbone.name}"} if backbone else {}
    return Row(label, f"{config}:{variant}", {**begin, **overrides}, reference=reference)


def _technique(variant: str, method: str) -> str:
    """The method's spec: adapters are FedPT with a backbone that was sent."""
    return {"adapters": f"partial_training+{method}", "full": method}[variant]


def _techniques(config: str, backbone: Backbone, **overrides) -> tuple[Row, ...]:
    """Full training and adapters under every technique."""
    techniques: dict[str, tuple[str, dict[str, Any]]] = {
        "FedAvg": ("fedavg", {}),
        "FedProx": ("fedprox", {"fedprox.mu": 0.1}),
        "SCAFFOLD": ("scaffold", {}),
        "FedNova": ("fednova", {}),
        "FedAdam": ("fedavg", _ADAM),
        "FedYogi": (
            "fedavg",
            {"server_optimizer.name": "yogi", "server_optimizer.learning_rate": 0.01},
        ),
    }
    return tuple(
        _row(
            f"{label}, {name}",
            config,
            variant,
            backbone,
            f"Full, {name}",
            method=_technique(variant, method),
            **options,
            **overrides,
        )
        for name, (method, options) in techniques.items()
        for label, variant in _VARIANTS.items()
    )


_SILO = {"dataset.clients": 10, "clients_per_round": 10, "local_epochs": 5, "rounds": 20}
_SETTINGS = {"cross-device": {}, "cross-silo": _SILO}
_SPLITS = {
    "Dirichlet 0.1": {"dataset.alpha": 0.1},
    "Dirichlet 0.5": {"dataset.alpha": 0.5},
    "Dirichlet 1": {"dataset.alpha": 1.0},
    "two-class shards": {"dataset.partition": "shards"},
    "quantity skew": {"dataset.partition": "quantity", "dataset.alpha": 1.0},
}


def _grid(config: str, backbone: Backbone, settings: dict[str, dict[str, Any]]) -> tuple[Row, ...]:
    return tuple(
        _row(f"{label}, {name}", config, variant, backbone, f"Full, {name}", **options)
        for name, options in settings.items()
        for label, variant in _VARIANTS.items()
    )


def _placement(config: str, backbone: Backbone) -> tuple[Row, ...]:
    """What is trained, from everything to the head."""
    convolutions = r"stem_conv|.*/conv\d"

    def adapters(**options) -> dict[str, Any]:
        return {f"adapters.{key}": value for key, value in options.items()}

    return (
        _row("Full", config, "full", backbone),
        _row("Full, from scratch", config, "full", None),
        _row("Parallel 1x1, zero", config, "adapters", backbone),
        _row("Parallel 1x1, normal", config, "adapters", backbone, **adapters(init="normal")),
        _row(
            "Parallel, rank 8",
            config,
            "adapters",
            backbone,
            **adapters(places=((convolutions, 8),)),
        ),
        _row(
            "Parallel, first of each block",
            config,
            "adapters",
            backbone,
            **adapters(places=((r".*/conv1", 0),)),
        ),
        _row("Series 1x1", config, "adapters", backbone, **adapters(kind="series")),
        _row(
            "LoRA, rank 2",
            config,
            "adapters",
            backbone,
            **adapters(kind="lora", places=((convolutions, 2),)),
        ),
        _row("Head alone", config, "head", backbone),
        _row(
            "Adapters on a random backbone",
            config,
            "adapters",
            None,
            # A seed serves in place of the backbone.
            **{"partial_training.origin": "seed"},
        ),
    )


def _transfer(config: str, backbone: Backbone) -> tuple[Row, ...]:
    names = {"full": "Full", "adapters": "Adapters", "head": "Head alone"}
    return tuple(_row(name, config, variant, backbone) for variant, name in names.items())


def _with_adam(config: str, backbone: Backbone) -> tuple[Row, ...]:
    """The same with the server that suits adapters best in the table of techniques."""
    return tuple(
        dataclasses.replace(row, reference="")
        for row in _techniques(config, backbone)
        if row.label.endswith(", FedAdam")
    )


_PERSONAL = {"local_validation": 0.25, "personalization.epochs": 5, "dataset.alpha": 0.1}
_PERSONAL_COLUMNS = (
    Column("Before %", "personalization.before.mean", 100, 1),
    Column("After %", "personalization.after.mean", 100, 1),
    Column("Worst decile before %", "personalization.before.worst_decile", 100, 1),
    Column("Worst decile after %", "personalization.after.worst_decile", 100, 1),
    CLIENT_COSTS[1],
    *BYTES,
)

_PERSONAL_LEGEND = (
    f"{LEGEND} Before and After are of the clients' own held-out examples, mean over clients; "
    "After five epochs of their own."
)
_PERSONAL_NOTE = (
    "; here the split is by Dirichlet(0.1), and each client holds out a quarter of its examples"
)

_DIGITS_NOTE = (
    "A ResNet-26 of an eighth of the size, trained on glyphs (62 characters from typefaces), then "
    "adapted to 4,000 MNIST digits over 100 clients by Dirichlet(0.5), 10 a round; the server has "
    "momentum 0.9 where it is not Adam or Yogi"
)
_CIFAR_NOTE = "ResNet-26 trained on CIFAR-100, adapted to CIFAR-10"


def _table(title: str, rows, columns=_COLUMNS, legend=_LEGEND, note="", more=()) -> Table:
    """Rows on digits and on CIFAR: a function of a config and its backbone.

    `more` makes further backbones of a backbone.
    """

    def scale(config: str, backbone: Backbone, about: str) -> Scale:
        backbones = (backbone, *(make(backbone) for make in more))
        return Scale(rows(config, backbone), 3, f"{about}{note}.", backbones)

    scales = {
        "bundled": scale(_DIGITS, _GLYPHS, _DIGITS_NOTE),
        "paper": scale(_CIFAR, _CIFAR100, _CIFAR_NOTE),
    }
    return Table(title, _RECONSTRUCTION, scales, columns, legend)


def _split_rows(config: str, backbone: Backbone) -> tuple[Row, ...]:
    rows = _grid(config, backbone, _SPLITS)
    if config != _DIGITS:
        return rows
    domains, skew = "configs/adapters/digit_domains_resnet.py", "feature skew by domain"
    return (
        *rows,
        *(
            _row(f"{label}, {skew}", domains, variant, backbone, f"Full, {skew}")
            for label, variant in _VARIANTS.items()
        ),
    )


def _setting_rows(config: str, backbone: Backbone) -> tuple[Row, ...]:
    return _grid(config, backbone, _SETTINGS)


def _personal_rows(config: str, backbone: Backbone) -> tuple[Row, ...]:
    rows = [
        _row(label, config, variant, backbone, **_PERSONAL)
        for label, variant in {**_VARIANTS, "Head alone": "head"}.items()
    ]
    # Scored with each client's own norms, which the server never has.
    local = {"local_parameters.local": ((r".*norm\d?/.*", True),)}
    for label, variant in _VARIANTS.items():
        method = _technique(variant, "local_parameters")
        more = {"method": method, **local, **_PERSONAL}
        rows.append(_row(f"{label}, FedBN", config, variant, backbone, **more))
    return tuple(rows)


def _norm_rows(config: str, backbone: Backbone) -> tuple[Row, ...]:
    """Adapters beside group normalisation, and three uses of running statistics."""
    moments = r".*/running_(mean|var)"
    kept = {
        "method": _technique("adapters", "local_parameters"),
        "local_parameters.local": ((moments, True),),
    }
    trained = mnist5k_resnet.TRAINED["adapters"]
    frozen = {"partial_training.freeze": ((moments, True), (trained, False), (".*", True))}
    batch = _batch_normalized(backbone)
    return (
        _row("Group", config, "adapters", backbone, **_PERSONAL),
        *(
            _row(f"Batch, statistics {label}", config, "adapters", batch, **_PERSONAL, **options)
            for label, options in {
                "sent": {"model.norm": "running"},
                "kept by each client": {"model.norm": "running", **kept},
                "of the backbone": {"model.norm": "fixed", **frozen},
            }.items()
        ),
    )


def _batch_normalized(backbone: Backbone) -> Backbone:
    overrides = {**backbone.overrides, "model.norm": "running"}
    return dataclasses.replace(backbone, name=f"{backbone.name}_running", overrides=overrides)


TABLES = {
    "techniques": _table("Adapters under six techniques", _techniques, legend=_LEGEND_OF_PAIRS),
    "cross_silo_device": _table(
        "Adapters across silos and devices", _setting_rows, legend=_LEGEND_OF_PAIRS
    ),
    "splits": _table("Adapters on five splits", _split_rows, legend=_LEGEND_OF_PAIRS),
    "placement": _table("Where adapters are placed, and how they begin", _placement),
    "personalisation": _table(
        "Adapters before and after each client trains on for itself",
        _personal_rows,
        _PERSONAL_COLUMNS,
        _PERSONAL_LEGEND,
        _PERSONAL_NOTE,
    ),
    "normalization": _table(
        "Adapters and what becomes of the statistics of batch normalisation",
        _norm_rows,
        (ACCURACY, *_PERSONAL_COLUMNS),
        f"{_PERSONAL_LEGEND} Accuracy is that of the server's model: where clients keep their "
        "statistics, it has the backbone's.",
        _PERSONAL_NOTE,
        (_batch_normalized,),
    ),
    "transfer": Table(
        "Adapters on digits after a backbone of typefaces",
        _RECONSTRUCTION,
        {
            "bundled": Scale(
                _transfer(_DIGITS, _GLYPHS) + _with_adam(_DIGITS, _GLYPHS),
                3,
                f"{_DIGITS_NOTE}.",
                (_GLYPHS,),
            )
        },
        _COLUMNS,
        _LEGEND,
    ),
    "transfer_text": Table(
        "Adapters on some plays after a backbone of others",
        _RECONSTRUCTION,
        {
            "bundled": Scale(
                _transfer(_PLAYS, _ROLES),
                3,
                "A Transformer trained on the roles of every other play of Shakespeare's, adapted "
                "to the roles of the rest.",
                (_ROLES,),
            )
        },
        (ACCURACY, DIFFERENCE, CLIENT_COSTS[1], *BYTES, _COLUMNS[-2]),
        LEGEND + DIFFERENCES,
    ),
}
