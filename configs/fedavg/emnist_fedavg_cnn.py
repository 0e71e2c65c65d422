"""FedAvg on federated EMNIST with the network of McMahan et al. 2017 (arXiv 1602.05629).

    python -m experiments.train --config=configs/fedavg/emnist_fedavg_cnn.py --workdir=DIR

1,690,046 parameters; data and the rest as of configs/fedavg/emnist_cnn.py.
"""

from configs import common
from configs.fedavg import emnist_cnn


def get_config():
    """The config."""
    config = emnist_cnn.get_config()
    config.model = common.base("emnist", "emnist_fedavg_cnn", "fedavg").model
    return config
