"""FedDropoutAvg on 4,000 MNIST digits, 100 clients by Dirichlet(0.5), TFF's EMNIST CNN.

    python -m experiments.train --config=configs/feddropoutavg/mnist5k_cnn.py --workdir=DIR

A client uploads seven tenths of its values, drawn anew each time.
"""

from configs.fedavg import mnist5k_cnn


def get_config():
    """The config."""
    config = mnist5k_cnn.get_config()
    config.method = "feddropoutavg"
    config.feddropoutavg.rate = 0.3
    return config
