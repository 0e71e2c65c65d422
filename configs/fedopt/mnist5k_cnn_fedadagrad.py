"""FedAdagrad on MNIST-5k (Reddi et al. 2021, arXiv 2003.00295).

    python -m experiments.train --config=configs/fedopt/mnist5k_cnn_fedadagrad.py --workdir=DIR

The client's learning rate is the one tuned for EMNIST there. With a third of the server's the test
accuracy was 0.925 (seed 0).
"""

from configs.fedavg import mnist5k_cnn


def get_config():
    """The config."""
    config = mnist5k_cnn.get_config()
    config.client_optimizer.learning_rate = 10**-1.5
    config.server_optimizer.name = "adagrad"
    config.server_optimizer.learning_rate = 0.1
    return config
