"""FedPT on CIFAR-10: the 3x3 convolutions of the last three stages stay at their random values.

    python -m experiments.train --config=configs/fedpt/cifar10_resnet.py --workdir=DIR

343,626 of 11,181,642 parameters are trained and sent: 32.5 times fewer bytes each way. Data and
the rest as of configs/fedavg/cifar10_resnet.py.
"""

from configs.fedavg import cifar10_resnet


def get_config():
    """The config."""
    config = cifar10_resnet.get_config()
    config.method = "partial_training"
    config.partial_training.freeze = ((r"stage[234]_block\d/conv[12]/.*", True),)
    return config
