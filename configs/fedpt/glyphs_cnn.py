"""FedPT on glyphs: the first dense layer stays at its random initialisation.

    python -m experiments.train --config=configs/fedpt/glyphs_cnn.py --workdir=DIR

26,814 of 1,206,590 parameters are trained and sent: 45.0 times fewer bytes each way.
Rates as of configs/fedpt/mnist5k_cnn.py. Test accuracy 0.458 (seed 0), and still rising; with
FedAvg's settings it is 0.120.
"""

from configs.fedavg import glyphs_cnn


def get_config():
    """The config."""
    config = glyphs_cnn.get_config()
    config.method = "partial_training"
    config.partial_training.freeze = (("dense1/.*", True),)
    config.model.dropout = 0.5
    config.client_optimizer.learning_rate = 0.15
    config.server_optimizer.name = "momentum"
    return config
