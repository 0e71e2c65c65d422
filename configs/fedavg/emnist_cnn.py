"""FedAvg on federated EMNIST: 62 characters by 3,400 writers, TFF's conv_dropout network.

    python -m experiments.train --config=configs/fedavg/emnist_cnn.py --workdir=DIR

Needs emnist_all.sqlite in ~/.tff (or --config.dataset.data_dir=DIR); without it the run tells
what to download. Cohort, batch, rounds and learning rates are those tuned for FedAvg by Reddi
et al. 2021 (arXiv 2003.00295).
"""

from configs import common


def get_config():
    """The config."""
    config = common.base("emnist", "emnist_cnn", "fedavg")
    config.rounds = 1500
    config.clients_per_round = 10
    config.batch_size = 20
    config.eval_every = 50
    config.checkpoint_every = 100
    config.client_optimizer.learning_rate = 0.1
    config.server_optimizer.learning_rate = 1.0
    return config
