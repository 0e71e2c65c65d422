"""SMAFD on 4,000 MNIST digits, 100 clients by Dirichlet(0.5), TFF's EMNIST CNN.

    python -m experiments.train --config=configs/smafd/mnist5k_cnn.py --workdir=DIR

The server chooses seven tenths of the values, by tensors; what clients do not receive they go on
with from their own last round.
"""

from configs.fedavg import mnist5k_cnn


def get_config():
    """The config."""
    config = mnist5k_cnn.get_config()
    config.method = "smafd"
    config.smafd.rate = 0.3
    return config
