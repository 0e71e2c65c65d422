"""A config that runs in seconds: digits, a small perceptron, three methods in a chain."""

from configs import common


def get_config(rounds="30"):
    config = common.base(
        "digits",
        "mlp",
        "partial_training+federated_dropout+quantize",
        dataset_options={"clients": 12},
        model_options={"hidden": (16, 12)},
    )
    config.rounds = int(rounds)
    config.clients_per_round = 4
    config.devices = 1
    config.eval_every = 5
    config.checkpoint_every = 4
    config.server_optimizer.name = "adam"
    config.server_optimizer.learning_rate = 0.01
    config.partial_training.freeze = (("dense1/bias", True),)
    return config
