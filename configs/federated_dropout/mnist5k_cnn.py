"""Federated dropout on 4,000 MNIST digits: each client trains 3/4 of every hidden width.

    python -m experiments.train --config=configs/federated_dropout/mnist5k_cnn.py --workdir=DIR

0.563 of FedAvg's bytes each way.
"""

from configs.fedavg import mnist5k_cnn


def get_config():
    """The config."""
    config = mnist5k_cnn.get_config()
    config.method = "federated_dropout"
    config.federated_dropout.rates = ((".*", 0.25),)
    return config
