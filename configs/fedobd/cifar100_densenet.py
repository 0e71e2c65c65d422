"""FedOBD on CIFAR-100, 50 clients of 1,000 images, IID, DenseNet-40.

    python -m experiments.train --config=configs/fedobd/cifar100_densenet.py --workdir=DIR

188,092 parameters in 41 blocks. Needs CIFAR-100 prepared by TensorFlow Datasets; without it the
run tells how. The rest as of configs/fedobd/cifar10_densenet.py, with 25 clients a round.
"""

from configs import common
from configs.fedobd import cifar10_densenet


def get_config():
    """The config."""
    config = cifar10_densenet.get_config()
    config.dataset = common.base(
        "cifar100",
        "densenet",
        "fedavg",
        dataset_options={"clients": 50, "partition": "stratified"},
    ).dataset
    config.clients_per_round = 25
    return config
