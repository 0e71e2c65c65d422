r"""Federated dropout on spoken digits: half of the hidden units of every feed-forward module.

    python -m experiments.train --config=configs/federated_dropout/speech_conformer.py \
        --workdir=DIR

0.708 of FedAvg's bytes each way.
"""

from configs.fedavg import speech_conformer


def get_config():
    """The config."""
    config = speech_conformer.get_config()
    config.method = "federated_dropout"
    config.federated_dropout.rates = ((r"block\d+/ffn\d", 0.5),)
    return config
