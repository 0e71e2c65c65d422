"""FedPT, partially trainable networks: Sidahmed et al. 2021 (arXiv 2110.03450).

The paper's tables were not at hand: rows and columns follow what is known of them.
"""

from scripts.tables.harness.spec import Row, Scale, Table


def _rows(net: str, dataset: str, model: str, frozen: dict[str, str], **overrides) -> list[Row]:
    """All trained, and then one row a freeze set: label and pattern."""
    fedavg, fedpt = (f"configs/{paper}/{dataset}_{model}.py" for paper in ("fedavg", "fedpt"))
    rows = [Row(f"{net}, all trained", fedavg, overrides)]
    for label, pattern in frozen.items():
        freeze = {"method": "partial_training", "partial_training.freeze": ((pattern, True),)}
        # With the large layer trained, the rates for a frozen one would be too high.
        config = fedpt if "dense1" in pattern else fedavg
        rows.append(Row(f"{net}, {label}", config, {**freeze, **overrides}))
    return rows


def _emnist_rows(dataset: str, **overrides) -> tuple[Row, ...]:
    frozen = {
        "convolutions frozen": r"conv\d/.*",
        "dense1 frozen": "dense1/.*",
        "conv1 and dense1 frozen": "(conv1|dense1)/.*",
        "all but logits frozen": r"(conv\d|dense1)/.*",
    }
    small = {"model.conv1": 8, "model.conv2": 16, "model.dense1": 11, **overrides}
    return (
        *_rows("CNN", dataset, "cnn", frozen, **overrides),
        Row("CNN, small and all trained", f"configs/fedavg/{dataset}_cnn.py", small),
        *_rows("FedAvg CNN", dataset, "fedavg_cnn", frozen, **overrides),
    )


TABLES = {
    "emnist": Table(
        title="FedPT on EMNIST: freeze sets of two networks",
        source=(
            "Reconstruction of the layout of a table of arXiv 2110.03450, whose numbers were not "
            "at hand. Its abstract claims up to 46x less communication; which row that is, was "
            "not seen. CNN is TensorFlow Federated's conv_dropout network (1,206,590 parameters), "
            "FedAvg CNN its original_fedavg_cnn (1,690,046). The small CNN has as many "
            "parameters as the first one trains with dense1 frozen."
        ),
        scales={
            "bundled": Scale(
                rows=_emnist_rows("glyphs", rounds=100),
                seeds=3,
                note=(
                    "On glyphs (62 characters in fonts, by 200 made-up writers), a substitute for "
                    "EMNIST, and for few rounds. Rows that freeze dense1 have the learning rates "
                    "and the dropout of configs/fedpt, the others those of configs/fedavg."
                ),
            ),
            "paper": Scale(
                rows=_emnist_rows("emnist"),
                seeds=3,
                note="On federated EMNIST: 3,400 writers, 10 a round, 1,500 rounds.",
            ),
        },
    )
}
