"""FedPT on glyphs with the network of McMahan et al. 2017: dense1 stays random.

    python -m experiments.train --config=configs/fedpt/glyphs_fedavg_cnn.py --workdir=DIR

83,902 of 1,690,046 parameters are trained and sent: 20.1 times fewer bytes each way.
Rates as of configs/fedpt/mnist5k_cnn.py.
"""

from configs.fedavg import glyphs_fedavg_cnn


def get_config():
    """The config."""
    config = glyphs_fedavg_cnn.get_config()
    config.method = "partial_training"
    config.partial_training.freeze = (("dense1/.*", True),)
    config.client_optimizer.learning_rate = 0.15
    config.server_optimizer.name = "momentum"
    return config
