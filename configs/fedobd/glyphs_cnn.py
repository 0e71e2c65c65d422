"""FedOBD on glyphs, 62 characters by 200 made-up writers, TFF's EMNIST CNN.

    python -m experiments.train --config=configs/fedobd/glyphs_cnn.py --workdir=DIR

1,206,590 parameters in four blocks. dense1 has 98 % of them, more than the 70 % that a client may
send, so it is sent in the second stage alone: a network that shows where block dropout ends. The
first stage is that of configs/fedavg/glyphs_cnn.py.
"""

from configs.fedavg import glyphs_cnn
from configs.fedobd import use_fedobd


def get_config():
    """The config."""
    return use_fedobd(glyphs_cnn.get_config(), stage1=200, stage2=5, beta=0.001)
