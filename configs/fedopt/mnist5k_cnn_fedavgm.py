"""FedAvgM on MNIST-5k (Reddi et al. 2021, arXiv 2003.00295).

    python -m experiments.train --config=configs/fedopt/mnist5k_cnn_fedavgm.py --workdir=DIR

The client's learning rate is the one tuned for EMNIST there, the server's the better of two that
were tried here. Test accuracy 0.957 (seed 0).
"""

from configs.fedavg import mnist5k_cnn


def get_config():
    """The config."""
    config = mnist5k_cnn.get_config()
    config.client_optimizer.learning_rate = 10**-1.5
    config.server_optimizer.name = "momentum"
    config.server_optimizer.learning_rate = 1.0
    return config
