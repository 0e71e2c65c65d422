"""FedAvg on 4,000 MNIST digits, 100 clients by Dirichlet(0.5), a narrow ResNet-18.

    python -m experiments.train --config=configs/fedavg/mnist5k_resnet.py --workdir=DIR

701,466 parameters with group normalisation, 16 to 128 channels. The substitute for CIFAR-10 that
needs no download.
"""

from configs import common
from configs.fedavg import mnist5k_cnn


def get_config():
    """The config."""
    config = mnist5k_cnn.get_config()
    config.model = common.base(
        "mnist5k",
        "resnet18_gn",
        "fedavg",
        model_options={
            "stem": "cifar",
            "stage_widths": (16, 32, 64, 128),
            "stage_strides": (2, 2, 2, 2),
        },
    ).model
    config.rounds = 60
    return config
