"""FedOBD on 4,000 MNIST digits, 100 clients, IID, a DenseNet of growth 8 with two layers a block.

    python -m experiments.train --config=configs/fedobd/mnist5k_densenet.py --workdir=DIR

19,978 parameters in 17 blocks; batch normalisation by the batch at hand, as in the paper's
code (group normalisation learns far more slowly in so few steps). Dropout rate and beta are the
paper's, the rest is sized for two cores and not tuned.
"""

from configs import common
from configs.fedobd import use_fedobd


def get_config():
    """The config."""
    config = common.base(
        "mnist5k",
        "densenet",
        "fedavg",
        dataset_options={"partition": "stratified"},
        model_options={"growth": 8, "block_layers": (2, 2, 2)},
    )
    use_fedobd(config, stage1=60, stage2=3, beta=0.001)
    config.clients_per_round = 20
    config.local_epochs = 2
    config.batch_size = 20
    config.client_optimizer.learning_rate = 0.1
    config.client_optimizer.momentum = 0.9
    return config
