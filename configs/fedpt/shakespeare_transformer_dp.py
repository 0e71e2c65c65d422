"""FedPT on Shakespeare's plays with user-level differential privacy: DP-FTRL, roles in turn.

    python -m experiments.train --config=configs/fedpt/shakespeare_transformer_dp.py --workdir=DIR

144,352 of 407,776 parameters are trained, sent, clipped and noised: 2.8 times fewer bytes each way.
The noise is that of a banded matrix factorisation, solved for epsilon = 8 over the run, in which a
role takes part every 7 rounds; server SGD with momentum makes it DP-FTRLM. The rates are not
tuned. --config.partial_training.freeze="()" trains the full network.
"""

from configs.fedpt import shakespeare_transformer


def get_config():
    """The config."""
    config = shakespeare_transformer.get_config()
    config.method = "partial_training+dp_ftrl"
    config.participation = "cyclic"
    config.client_weighting = "uniform"
    config.rounds = 100
    config.clients_per_round = 100
    config.eval_every = 10
    config.dp_ftrl.epsilon = 8.0
    config.dp_ftrl.mechanism = "matrix"
    config.dp_ftrl.clip = 0.3
    config.server_optimizer.name = "momentum"
    config.server_optimizer.learning_rate = 0.5
    return config
