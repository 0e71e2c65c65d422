"""FedAvg on 4,000 MNIST digits, 100 clients by Dirichlet(0.5), TFF's EMNIST CNN.

    python -m experiments.train --config=configs/fedavg/mnist5k_cnn.py --workdir=DIR

About a minute on two cores; test accuracy 0.956 (seed 0).
"""

from configs import common


def get_config():
    """The config."""
    config = common.base("mnist5k", "emnist_cnn", "fedavg")
    config.rounds = 200
    return config
