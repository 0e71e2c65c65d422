"""FedOBD on 4,000 MNIST digits, 100 clients, IID, a narrow ResNet-18.

    python -m experiments.train --config=configs/fedobd/mnist5k_resnet.py --workdir=DIR

263,546 parameters with group normalisation, 16 to 64 channels, in 23 blocks, such as a convolution
with its norm. Dropout rate and beta are the paper's.
"""

from configs import common
from configs.fedobd import use_fedobd


def get_config():
    """The config."""
    config = common.base(
        "mnist5k",
        "resnet18_gn",
        "fedavg",
        dataset_options={"partition": "stratified"},
        model_options={
            "stem": "cifar",
            "stage_widths": (16, 32, 48, 64),
            "stage_strides": (2, 2, 2, 2),
        },
    )
    use_fedobd(config, stage1=100, stage2=3, beta=0.001)
    config.clients_per_round = 20
    config.local_epochs = 2
    config.client_optimizer.learning_rate = 0.03
    config.client_optimizer.momentum = 0.9
    return config
