"""SMAFD on 4,000 MNIST digits, 100 clients by Dirichlet(0.5), a narrow ResNet-18.

    python -m experiments.train --config=configs/smafd/mnist5k_resnet.py --workdir=DIR

Clients receive the whole model and upload seven tenths of its values, the tensors that the server
chose. With `smafd.stale=True` they receive these alone and go on from their own values elsewhere:
38.2 +- 38.9 % over three seeds in results/fedobd/main, where it is tried.
"""

from configs.fedavg import mnist5k_resnet


def get_config():
    """The config."""
    config = mnist5k_resnet.get_config()
    config.method = "smafd"
    config.smafd.rate = 0.3
    config.smafd.stale = False
    return config
