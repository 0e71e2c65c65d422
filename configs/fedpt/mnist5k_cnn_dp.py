"""FedPT on 4,000 MNIST digits with user-level differential privacy: DP-FedAvg, Poisson cohorts.

    python -m experiments.train --config=configs/fedpt/mnist5k_cnn_dp.py --workdir=DIR

1,000 clients of four digits, 200 a round. 20,106 of 1,199,882 parameters are trained, sent, clipped
and noised: 59.7 times fewer bytes each way and, at the same epsilon, noise of a 7.7 times smaller
norm than on the full network. The noise is solved for epsilon = 8 over the run. For the full
network: --config.partial_training.freeze="()", and --config.server_optimizer.learning_rate=0.1.
"""

from configs.fedpt import mnist5k_cnn


def get_config():
    """The config."""
    config = mnist5k_cnn.get_config()
    config.method = "partial_training+dp_fedavg"
    config.participation = "poisson"
    config.client_weighting = "uniform"
    config.dataset.clients = 1000
    config.rounds = 40
    config.clients_per_round = 200
    config.local_epochs = 3
    config.batch_size = 4
    config.eval_every = 5
    config.dp_fedavg.epsilon = 8.0
    config.dp_fedavg.clip = 0.3
    config.server_optimizer.name = "momentum"
    config.server_optimizer.learning_rate = 0.5
    return config
