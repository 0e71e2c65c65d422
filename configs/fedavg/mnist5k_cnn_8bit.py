"""FedAvg with an uplink of 8 bits a value (FedPAQ's stochastic quantiser) on MNIST-5k.

    python -m experiments.train --config=configs/fedavg/mnist5k_cnn_8bit.py --workdir=DIR

A quarter of FedAvg's bytes up, all of them down. Accuracy as of configs/fedavg/mnist5k_cnn.py.
"""

from configs.fedavg import mnist5k_cnn


def get_config():
    """The config."""
    config = mnist5k_cnn.get_config()
    config.method = "quantize"
    config.quantize.up = "uniform8"
    return config
