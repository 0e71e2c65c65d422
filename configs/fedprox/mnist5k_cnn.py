"""FedProx on 4,000 MNIST digits.

python -m experiments.train --config=configs/fedprox/mnist5k_cnn.py --workdir=DIR
"""

from configs.fedavg import mnist5k_cnn


def get_config():
    """The config."""
    config = mnist5k_cnn.get_config()
    config.method = "fedprox"
    config.fedprox.mu = 0.01
    config.local_epochs = 2
    return config
