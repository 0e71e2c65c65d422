"""FedAvg on glyphs, 62 characters by 200 made-up writers, TFF's conv_dropout network.

    python -m experiments.train --config=configs/fedavg/glyphs_cnn.py --workdir=DIR

The substitute for EMNIST that needs no download: a minute or two on two cores. Test accuracy
0.628 (seed 0), and still rising.
"""

from configs import common


def get_config():
    """The config."""
    config = common.base("glyphs", "emnist_cnn", "fedavg")
    config.rounds = 200
    return config
