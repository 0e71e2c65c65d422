"""HeteroFL on 4,000 MNIST digits, 100 clients by Dirichlet(0.5), TFF's EMNIST CNN.

    python -m experiments.train --config=configs/heterofl/mnist5k_cnn.py --workdir=DIR

A client has all units of each hidden width, half of them or a quarter, with equal chances and for
life.
"""

from configs.fedavg import mnist5k_cnn


def get_config():
    """The config."""
    config = mnist5k_cnn.get_config()
    config.method = "heterofl"
    config.heterofl.levels = (1.0, 0.5, 0.25)
    return config
