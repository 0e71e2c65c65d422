"""FedPT on Stack Overflow with user-level differential privacy: DP-FTRL, 100 users a round.

    python -m experiments.train --config=configs/fedpt/stackoverflow_transformer_dp.py --workdir=DIR

Rounds, cohort, clip, rates and noise are those of the example run in google-research/federated,
dp_ftrl: one pass of 1,600 rounds with one tree. Its noise multiplier of 0.149 protects nobody with
such a cohort: it stands for the noise of one that is larger by the factor by which a multiplier
that protects is larger. --config.partial_training.freeze="()" trains the full network.
"""

from configs.fedpt import stackoverflow_transformer


def get_config():
    """The config."""
    config = stackoverflow_transformer.get_config()
    config.method = "partial_training+dp_ftrl"
    config.participation = "cyclic"
    config.client_weighting = "uniform"
    config.rounds = 1600
    config.clients_per_round = 100
    config.client_optimizer.learning_rate = 0.5
    config.dp_ftrl.noise_multiplier = 0.149
    config.dp_ftrl.clip = 1.0
    config.server_optimizer.name = "momentum"
    config.server_optimizer.learning_rate = 3.0
    return config
