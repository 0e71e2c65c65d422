"""FedAvg on glyphs with the network of McMahan et al. 2017 (arXiv 1602.05629).

    python -m experiments.train --config=configs/fedavg/glyphs_fedavg_cnn.py --workdir=DIR

1,690,046 parameters; the rest as of configs/fedavg/glyphs_cnn.py.
"""

from configs import common
from configs.fedavg import glyphs_cnn


def get_config():
    """The config."""
    config = glyphs_cnn.get_config()
    config.model = common.base("glyphs", "emnist_fedavg_cnn", "fedavg").model
    return config
