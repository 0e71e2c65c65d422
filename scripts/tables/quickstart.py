"""The first look: three ways to train one network, on digits that arrive inside a package."""

from scripts.tables.harness.spec import Row, Scale, Table

_ROUNDS = 200


def _row(label: str, method: str) -> Row:
    return Row(label, f"configs/{method}/mnist5k_cnn.py", {"rounds": _ROUNDS})


TABLES = {
    "": Table(
        title="MNIST-5k: what a client pays, and what the server gets",
        source=(
            "4,000 training digits over 100 clients by Dirichlet(0.5), 1,000 test digits; "
            "TFF's EMNIST CNN. No paper prints this table."
        ),
        scales={
            "bundled": Scale(
                rows=(
                    _row("FedAvg", "fedavg"),
                    _row("FedPT", "fedpt"),
                    _row("Federated dropout", "federated_dropout"),
                ),
                seeds=1,
                note=(
                    "FedPT freezes the first dense layer at its random initialisation, federated "
                    "dropout gives each client 3/4 of every hidden width."
                ),
            )
        },
    )
}
