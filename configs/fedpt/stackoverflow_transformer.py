"""FedPT on Stack Overflow: the feed-forward layers stay at their random initialisation.

    python -m experiments.train --config=configs/fedpt/stackoverflow_transformer.py --workdir=DIR

2,111,968 of 4,211,680 parameters are trained and sent. Data and the rest as of
configs/fedavg/stackoverflow_transformer.py.
"""

from configs.fedavg import stackoverflow_transformer


def get_config():
    """The config."""
    config = stackoverflow_transformer.get_config()
    config.method = "partial_training"
    config.partial_training.freeze = ((r"layer\d+/ffn\d/.*", True),)
    return config
