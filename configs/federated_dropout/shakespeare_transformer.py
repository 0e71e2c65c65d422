"""Federated dropout on Shakespeare's plays: half of the feed-forward units of every layer.

    python -m experiments.train --config=configs/federated_dropout/shakespeare_transformer.py \
        --workdir=DIR

0.677 of FedAvg's bytes each way.
"""

from configs.fedavg import shakespeare_transformer


def get_config():
    """The config."""
    config = shakespeare_transformer.get_config()
    config.method = "federated_dropout"
    config.federated_dropout.rates = ((r"layer\d+/ffn", 0.5),)
    return config
