"""Methods one by one and chained, under one engine and one meter. No paper prints these tables."""

from scripts.tables.harness.spec import Row, Scale, Table

_PARTIAL = {"partial_training.freeze": (("dense1/.*", True),)}
_DROPOUT = {"federated_dropout.rates": ((".*", 0.25),)}


def _chain(label: str, method: str, *options: dict) -> Row:
    overrides = {"method": method, "rounds": 200}
    for option in options:
        overrides |= option
    return Row(label, "configs/fedavg/mnist5k_cnn.py", overrides)


def _fedopt(label: str, name: str) -> Row:
    return Row(label, f"configs/fedopt/mnist5k_cnn_{name}.py", {"rounds": 200})


TABLES = {
    "combinations": Table(
        title="Methods and their combinations on MNIST-5k",
        source=(
            "4,000 training digits over 100 clients by Dirichlet(0.5), 1,000 test digits; "
            "TFF's EMNIST CNN. No paper prints this table."
        ),
        scales={
            "bundled": Scale(
                rows=(
                    _chain("FedAvg", "fedavg"),
                    _chain("FedAvg + 8-bit uplink", "quantize"),
                    _chain("FedProx", "fedprox"),
                    _fedopt("FedAvgM", "fedavgm"),
                    _fedopt("FedAdagrad", "fedadagrad"),
                    _fedopt("FedAdam", "fedadam"),
                    _fedopt("FedYogi", "fedyogi"),
                    _chain("FedPT", "partial_training", _PARTIAL),
                    _chain("Federated dropout (FD)", "federated_dropout", _DROPOUT),
                    _chain("FedPT + FD", "partial_training+federated_dropout", _PARTIAL, _DROPOUT),
                    _chain(
                        "FedPT + FD + 8-bit uplink",
                        "partial_training+federated_dropout+quantize",
                        _PARTIAL,
                        _DROPOUT,
                    ),
                ),
                note=(
                    "FedPT freezes the first dense layer, FD keeps 3/4 of every hidden width, the "
                    "8-bit uplink is FedPAQ's stochastic quantiser."
                ),
            )
        },
    )
}
