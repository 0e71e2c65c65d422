"""Adapters on CIFAR-10, 100 clients by Dirichlet(0.5), Rebuffi's ResNet-26.

    python -m experiments.pretrain --config=configs/adapters/cifar10_resnet.py:pretrain \
        --workdir=BACKBONE --epochs=60
    python -m experiments.train --config=configs/adapters/cifar10_resnet.py --workdir=DIR \
        --config.backbone.path=BACKBONE

The first command trains the backbone on CIFAR-100; 655,530 of 6,462,474 parameters are then trained
and sent, 88.7 % less than the backbone and its head. Needs both sets prepared by TensorFlow
Datasets; without them the runs tell how. Meant for an accelerator; the paper's own settings are
not known. With :full all is trained, without adapters; with :head the head alone.
"""

from configs import common
from configs.adapters import mnist5k_resnet


def get_config(what: str = "adapters"):
    """The config: "adapters", "full", "head", or "pretrain" for the backbone."""
    config = mnist5k_resnet.get_config(what)
    options = {} if what == "pretrain" else {"partition": "dirichlet_by_client", "alpha": 0.5}
    name = "cifar100" if what == "pretrain" else "cifar10"
    full = common.base(name, "resnet26", "fedavg", dataset_options={"clients": 100, **options})
    config.dataset, config.model = full.dataset, full.model
    config.task.standardize = True
    config.task.flip = True
    if what != "pretrain":
        config.rounds = 500
    return config
