"""FedNova on 4,000 MNIST digits, 100 clients by Dirichlet(0.5), TFF's EMNIST CNN.

    python -m experiments.train --config=configs/fednova/mnist5k_cnn.py --workdir=DIR

Clients run two epochs of SGD with momentum, so that a client with more examples takes more steps.
"""

from configs.fedavg import mnist5k_cnn


def get_config():
    """The config."""
    config = mnist5k_cnn.get_config()
    config.method = "fednova"
    config.local_epochs = 2
    config.client_optimizer.momentum = 0.5
    config.client_optimizer.learning_rate = 0.05
    return config
