"""FedPT, partially trainable networks: Sidahmed et al. 2021 (arXiv 2110.03450).

The paper's tables were not at hand: rows and columns follow what is known of them.
"""

from typing import Any

from fedlite.models.freeze_sets import FREEZE_SETS, freeze_rules
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

_RECONSTRUCTION = (
    "Reconstruction of the layout of a table of arXiv 2110.03450, whose numbers were not at hand. "
)


def _freeze(model: str, name: str, chain: str = "") -> dict[str, Any]:
    """The overrides that freeze a set; `chain` is what stands to the right in the method."""
    rules = freeze_rules(model, name)
    return {"method": f"partial_training{chain}", "partial_training.freeze": rules}


def _sets(net: str, model: str, config: str, own: dict[str, str], **overrides) -> list[Row]:
    """All trained, and then a row for each freeze set of a model.

    Args:
      net: label of the network.
      model: its name.
      config: of the run with everything trained.
      own: configs of the sets that have settings of their own.
      **overrides: of all rows.
    """
    rows = [Row(f"{net}, all trained", config, overrides)]
    for name in FREEZE_SETS[model]:
        settings = {**_freeze(model, name), **overrides}
        rows.append(Row(f"{net}, {name} frozen", own.get(name, config), settings))
    return rows


def _emnist_rows(net: str, model: str, dataset: str, **overrides) -> list[Row]:
    """The freeze sets of one of TFF's networks: `model` and `dataset` name the configs."""
    fedavg, fedpt = (f"configs/{paper}/{dataset}.py" for paper in ("fedavg", "fedpt"))
    # With the large layer trained, the rates for a frozen one would be too high.
    frozen = ("dense1", "conv1+dense1", "all but logits")
    return _sets(net, model, fedavg, dict.fromkeys(frozen, fedpt), **overrides)


def _longer(net: str, config: str, rounds: int) -> Row:
    """What freezing saves, spent on more rounds."""
    return Row(f"{net}, dense1 frozen, {rounds} rounds", config, {"rounds": rounds})


def _small_rows(dataset: str, dense1: int, **overrides) -> tuple[Row, ...]:
    """Frozen at random, or not there at all, at the same number of trained parameters."""
    fedavg, fedpt = (f"configs/{paper}/{dataset}_cnn.py" for paper in ("fedavg", "fedpt"))
    sizes = {"model.conv1": 8, "model.conv2": 16, "model.dense1": dense1}

    def scaled(scale: float) -> Row:
        return Row(
            f"dense1 frozen at {scale:g} of its scale",
            fedpt,
            {"partial_training.scale": scale, **overrides},
        )

    momentum = {"server_optimizer.name": "momentum", "client_optimizer.learning_rate": 0.15}
    return (
        Row("All trained", fedavg, overrides),
        Row("dense1 frozen", fedpt, overrides),
        scaled(0.5),
        scaled(2.0),
        Row("Small and all trained", fedavg, {**sizes, **overrides}),
        Row(
            "Small, with the settings of the frozen",
            fedavg,
            {**sizes, **momentum, "model.dropout": 0.5, **overrides},
        ),
    )


_EIGHT_BITS = {"quantize.up": "uniform8", "quantize.down": "uniform8"}


def _shakespeare_rows(**overrides) -> tuple[Row, ...]:
    config = "configs/fedavg/shakespeare_transformer.py"
    model = "char_transformer"
    quantized = {**_freeze(model, "feed-forward", "+quantize"), **_EIGHT_BITS, **overrides}
    return (
        *_sets("Transformer", model, config, {}, **overrides),
        Row(
            "Transformer, all trained, 8 bits",
            config,
            {"method": "quantize", **_EIGHT_BITS, **overrides},
        ),
        Row("Transformer, feed-forward frozen, 8 bits", config, quantized),
        # Coarser bits and more rounds for the same bytes.
        Row(
            "Transformer, feed-forward frozen, 6 bits down, 4 up, 270 rounds",
            config,
            {
                **quantized,
                "quantize.down": "uniform6",
                "quantize.up": "uniform4",
                "rounds": 270,
            },
        ),
    )


def _pairs(config: str, noises: dict[str, dict[str, Any]], **full: Any) -> tuple[Row, ...]:
    """Full training, with options of its own, beside FedPT under each noise."""
    full = {"partial_training.freeze": (), **full}
    rows = []
    for label, noise in noises.items():
        all_trained = f"All trained, {label}"
        rows += [
            Row(all_trained, config, {**full, **noise}, reference=all_trained),
            Row(f"FedPT, {label}", config, noise, reference=all_trained),
        ]
    return tuple(rows)


def _epsilons(method: str, epsilons: tuple[float, ...]) -> dict[str, dict[str, Any]]:
    """Noise by label; epsilon 0 is no noise, with the clip all the same."""
    return {
        f"epsilon {epsilon:g}" if epsilon else "no noise": {
            f"{method}.epsilon": epsilon,
            f"{method}.noise_multiplier": float(epsilon > 0),
        }
        for epsilon in epsilons
    }


def _multipliers(*multipliers: float) -> dict[str, dict[str, Any]]:
    """Noise of a tree by label."""
    return {f"noise {z:g}": {"dp_ftrl.noise_multiplier": z} for z in multipliers}


_PRIVATE_DIFFERENCES = DIFFERENCES.replace("the first row", "full training at the same epsilon")
_EPSILON = Column("Epsilon", "privacy.epsilon", digits=2)
_NOISE = Column("Noise multiplier", "privacy.noise_multiplier", digits=2)

TABLES = {
    "emnist": Table(
        title="FedPT on EMNIST: freeze sets of two networks",
        source=(
            f"{_RECONSTRUCTION}Its abstract claims up to 46x less communication; which row that "
            "is, was not seen. CNN is TensorFlow Federated's conv_dropout network (1,206,590 "
            "parameters), FedAvg CNN its original_fedavg_cnn (1,690,046)."
        ),
        scales={
            "bundled": Scale(
                rows=(
                    *_emnist_rows("CNN", "emnist_cnn", "glyphs_cnn"),
                    _longer("CNN", "configs/fedpt/glyphs_cnn.py", 800),
                ),
                seeds=3,
                note=(
                    "On glyphs (62 characters in fonts, by 200 made-up writers), a substitute for "
                    "EMNIST, and for 200 rounds, which are few. Rows that freeze dense1 have the "
                    "learning rates and the dropout of configs/fedpt, the others those of "
                    "configs/fedavg."
                ),
            ),
            "paper": Scale(
                rows=(
                    *_emnist_rows("CNN", "emnist_cnn", "emnist_cnn"),
                    *_emnist_rows("FedAvg CNN", "emnist_fedavg_cnn", "emnist_fedavg_cnn"),
                ),
                seeds=3,
                note="On federated EMNIST: 3,400 writers, 10 a round, 1,500 rounds.",
            ),
        },
    ),
    "cifar10": Table(
        title="FedPT on CIFAR-10: freeze sets of ResNet-18",
        source=f"{_RECONSTRUCTION}TensorFlow Federated's ResNet-18 with group normalisation.",
        scales={
            "bundled": Scale(
                rows=tuple(
                    _sets(
                        "ResNet",
                        "resnet18_gn",
                        "configs/fedavg/mnist5k_resnet.py",
                        {},
                    )
                ),
                seeds=3,
                note="A narrow ResNet-18 on 4,000 MNIST digits over 100 clients, a substitute.",
            ),
            "paper": Scale(
                rows=tuple(
                    _sets("ResNet-18", "resnet18_gn", "configs/fedavg/cifar10_resnet.py", {})
                ),
                seeds=3,
                note="500 clients of 100 images by Dirichlet(0.1), 10 a round, 1,500 rounds.",
            ),
        },
    ),
    "stackoverflow": Table(
        title="FedPT on text: freeze sets of a Transformer",
        source=(
            f"{_RECONSTRUCTION}The accuracy leaves out padding, out-of-vocabulary words and ends "
            "of sentences."
        ),
        scales={
            "bundled": Scale(
                rows=_shakespeare_rows(),
                seeds=3,
                note=(
                    "Next character of Shakespeare's plays by role, a substitute for Stack "
                    "Overflow. 8 bits: the quantiser of FedPAQ, both ways."
                ),
            ),
            "paper": Scale(
                rows=tuple(
                    _sets(
                        "Transformer",
                        "word_transformer",
                        "configs/fedavg/stackoverflow_transformer.py",
                        {},
                    )
                ),
                seeds=3,
                note="Next word of Stack Overflow: 342,477 users, 10 a round, 1,500 rounds.",
            ),
        },
    ),
    "frozen_vs_small": Table(
        title="Frozen at random, or not there: as many trained parameters",
        source="An ablation. No paper prints this table.",
        scales={
            "bundled": Scale(
                rows=_small_rows("mnist5k", 8, rounds=150),
                seeds=3,
                note=(
                    "On 4,000 MNIST digits over 100 clients. With dense1 frozen 20,106 parameters "
                    "are trained; the small network has as many within a few percent. Scale: what "
                    "the initialisation of the frozen kernel is multiplied by."
                ),
            ),
            "paper": Scale(
                rows=_small_rows("emnist", 11),
                seeds=3,
                note="On federated EMNIST: 3,400 writers, 10 a round, 1,500 rounds.",
            ),
        },
    ),
    "dp": Table(
        title="FedPT and full training under user-level differential privacy",
        source=(
            f"{_RECONSTRUCTION}Its abstract claims better utility under strong privacy. The noise "
            "of every coordinate is the same at the same epsilon, so its norm grows with the root "
            "of the number of trained parameters."
        ),
        scales={
            "bundled": Scale(
                rows=_pairs(
                    "configs/fedpt/mnist5k_cnn_dp.py",
                    _epsilons("dp_fedavg", (0.0, 8.0, 2.0)),
                    **{"server_optimizer.learning_rate": 0.1},
                ),
                seeds=3,
                note=(
                    "On 4,000 MNIST digits over 1,000 clients, 200 a round, Poisson; DP-FedAvg "
                    "with a clip of 0.3 for both. The server's learning rate is 0.5 for FedPT and "
                    "0.1 for full training, hardly tuned: for the latter 0.03 was stopped after "
                    "a slow start, and 0.5 diverged with 100 clients, 50 a round."
                ),
            ),
            "paper": Scale(
                rows=_pairs(
                    "configs/fedpt/stackoverflow_transformer_dp.py",
                    _multipliers(0.0, 0.149, 0.298, 0.596),
                ),
                seeds=3,
                note=(
                    "Next word of Stack Overflow: 342,477 users in turn, 100 a round; DP-FTRL with "
                    "one tree over 1,600 rounds. The noise is the multiplier of a tree's node."
                ),
            ),
        },
        columns=(ACCURACY, DIFFERENCE, _EPSILON, _NOISE, CLIENT_COSTS[1], *BYTES),
        legend=LEGEND
        + _PRIVATE_DIFFERENCES
        + " Epsilon is of the whole run, at the delta of each run's summary.json.",
    ),
}
