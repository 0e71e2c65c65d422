"""SCAFFOLD on 4,000 MNIST digits, 100 clients by Dirichlet(0.5), TFF's EMNIST CNN.

    python -m experiments.train --config=configs/scaffold/mnist5k_cnn.py --workdir=DIR

Twice the bytes of FedAvg each way; clients run two epochs of plain SGD.
"""

from configs.fedavg import mnist5k_cnn


def get_config():
    """The config."""
    config = mnist5k_cnn.get_config()
    config.method = "scaffold"
    config.local_epochs = 2
    return config
