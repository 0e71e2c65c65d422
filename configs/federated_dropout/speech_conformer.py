r"""Federated dropout on spoken digits: half of the hidden units of every feed-forward module.

    python -m experiments.train --config=configs/federated_dropout/speech_conformer.py \
        --workdir=DIR

0.708 of FedAvg's bytes each way. Kept units count twice, as in inverted dropout, so that the full
model sees the same mean as its sub-models: without it, it is worse than they are. With
`--config.federated_dropout.preset=ascending` rates rise with depth, and clients stay as large.
"""

from configs.fedavg import speech_conformer


def get_config():
    """The config."""
    config = speech_conformer.get_config()
    config.method = "federated_dropout"
    config.federated_dropout.rates = ((r"block\d+/ffn\d", 0.5),)
    config.federated_dropout.rescale = True
    return config
