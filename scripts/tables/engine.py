"""Methods one by one and chained, under one engine and one meter. No paper prints these tables."""

from scripts.tables.harness.spec import Row, Scale, Table

_ROUNDS = {"rounds": 200}
_DROPOUT = {"federated_dropout.rates": ((".*", 0.25),)}


def _row(label: str, config: str, **overrides) -> Row:
    return Row(label, f"configs/{config}.py", {**_ROUNDS, **overrides})


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
                    _row("FedAvg", "fedavg/mnist5k_cnn"),
                    _row("FedAvg in bfloat16", "fedavg/mnist5k_cnn", **{"model.dtype": "bfloat16"}),
                    _row("FedAvg + 8-bit uplink", "fedavg/mnist5k_cnn_8bit"),
                    _row("FedProx", "fedprox/mnist5k_cnn", local_epochs=1),
                    _row("FedAvgM", "fedopt/mnist5k_cnn_fedavgm"),
                    _row("FedAdagrad", "fedopt/mnist5k_cnn_fedadagrad"),
                    _row("FedAdam", "fedopt/mnist5k_cnn_fedadam"),
                    _row("FedYogi", "fedopt/mnist5k_cnn_fedyogi"),
                    _row("FedPT", "fedpt/mnist5k_cnn"),
                    _row("Federated dropout (FD)", "federated_dropout/mnist5k_cnn"),
                    _row(
                        "FedPT + FD",
                        "fedpt/mnist5k_cnn",
                        method="partial_training+federated_dropout",
                        **_DROPOUT,
                    ),
                    _row("FedPT + FD + 8-bit uplink", "combinations/mnist5k_cnn"),
                ),
                note=(
                    "FedPT freezes the first dense layer, FD keeps 3/4 of every hidden width, the "
                    "8-bit uplink is FedPAQ's stochastic quantiser. bfloat16 is the type of the "
                    "clients' computation; parameters and messages stay float32."
                ),
            )
        },
    )
}
