"""FedPT, federated dropout and an 8-bit uplink at once on MNIST-5k.

    python -m experiments.train --config=configs/combinations/mnist5k_cnn.py --workdir=DIR

The first dense layer stays random, each client trains 3/4 of every hidden width of the rest, and
its update is quantised to 8 bits a value. 11,626 of 1,199,882 parameters are trained and sent. The
rest as of configs/fedpt/mnist5k_cnn.py. Test accuracy 0.919 (seed 0).
"""

from configs.fedpt import mnist5k_cnn


def get_config():
    """The config."""
    config = mnist5k_cnn.get_config()
    config.method = "partial_training+federated_dropout+quantize"
    config.federated_dropout.rates = ((".*", 0.25),)
    config.quantize.up = "uniform8"
    return config
