"""FedPT on glyphs with user-level differential privacy: DP-FedAvg, adaptive clip, Poisson cohorts.

    python -m experiments.train --config=configs/fedpt/glyphs_cnn_dp.py --workdir=DIR

26,814 of 1,206,590 parameters are trained, sent, clipped and noised: 45.0 times fewer bytes each
way. The noise is solved for epsilon = 8 over the run; --config.partial_training.freeze="()" trains
the full network. The rates are not tuned: 200 writers are few for user-level privacy with 62
classes.
"""

from configs.fedpt import glyphs_cnn


def get_config():
    """The config."""
    config = glyphs_cnn.get_config()
    config.method = "partial_training+dp_fedavg"
    config.participation = "poisson"
    config.client_weighting = "uniform"
    config.rounds = 100
    # Half of the clients: the noise is divided by the cohort.
    config.clients_per_round = 100
    config.dp_fedavg.epsilon = 8.0
    config.dp_fedavg.clip = 0.3
    config.dp_fedavg.adaptive = True
    config.server_optimizer.learning_rate = 0.5
    return config
