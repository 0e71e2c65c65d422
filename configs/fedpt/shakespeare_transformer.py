"""FedPT on Shakespeare's plays: the feed-forward layers stay at their random initialisation.

    python -m experiments.train --config=configs/fedpt/shakespeare_transformer.py --workdir=DIR

144,352 of 407,776 parameters are trained and sent: 2.8 times fewer bytes each way.
"""

from configs.fedavg import shakespeare_transformer


def get_config():
    """The config."""
    config = shakespeare_transformer.get_config()
    config.method = "partial_training"
    config.partial_training.freeze = ((r"layer\d+/ffn\d/.*", True),)
    return config
