"""FedOBD on 4,000 MNIST digits, 100 clients by Dirichlet(0.5), TFF's EMNIST CNN.

    python -m experiments.train --config=configs/fedobd/mnist5k_cnn.py --workdir=DIR

1,199,882 parameters in four blocks. dense1 has 98 % of them, more than the 70 % that a client may
send, so it is sent in the second stage alone: a network that shows where block dropout ends. The
first stage is that of configs/fedavg/mnist5k_cnn.py.
"""

from configs.fedavg import mnist5k_cnn
from configs.fedobd import use_fedobd


def get_config():
    """The config."""
    return use_fedobd(mnist5k_cnn.get_config(), stage1=200, stage2=5, beta=0.001)
