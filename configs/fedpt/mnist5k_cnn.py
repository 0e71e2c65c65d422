"""FedPT on 4,000 MNIST digits: the first dense layer stays at its random initialisation.

    python -m experiments.train --config=configs/fedpt/mnist5k_cnn.py --workdir=DIR

20,106 of 1,199,882 parameters are trained and sent: 59.7 times fewer bytes each way.
"""

from configs.fedavg import mnist5k_cnn


def get_config():
    """The config."""
    config = mnist5k_cnn.get_config()
    config.method = "partial_training"
    config.partial_training.freeze = (("dense1/.*", True),)
    return config
