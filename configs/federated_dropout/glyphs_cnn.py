"""Federated dropout on glyphs: each client trains 3/4 of every hidden width.

    python -m experiments.train --config=configs/federated_dropout/glyphs_cnn.py --workdir=DIR

0.564 of FedAvg's bytes each way.
"""

from configs.fedavg import glyphs_cnn


def get_config():
    """The config."""
    config = glyphs_cnn.get_config()
    config.method = "federated_dropout"
    config.federated_dropout.rates = ((".*", 0.25),)
    return config
