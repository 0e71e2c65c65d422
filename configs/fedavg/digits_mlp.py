"""FedAvg on 1,437 digits of 8x8 pixels, 20 clients by Dirichlet(0.5), a perceptron.

    python -m experiments.train --config=configs/fedavg/digits_mlp.py --workdir=DIR

The smallest experiment, for a first try and for debugging: seconds, most of them to compile. Test
accuracy 0.944 (seed 0).
"""

from configs import common


def get_config():
    """The config."""
    config = common.base("digits", "mlp", "fedavg", model_options={"hidden": (64,)})
    config.rounds = 100
    config.clients_per_round = 5
    config.batch_size = 10
    return config
