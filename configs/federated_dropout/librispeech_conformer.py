r"""Federated dropout on LibriSpeech: half of the hidden units of every feed-forward module.

    python -m experiments.train --config=configs/federated_dropout/librispeech_conformer.py \
        --workdir=DIR

0.694 of FedAvg's bytes each way. Data and the rest as of configs/fedavg/librispeech_conformer.py,
which says what is known of the paper's settings. Rates, their layers, the sub-models' scope and
their aggregation in arXiv 2110.03634 are not; its group is thought to drop feed-forwards.
"""

from configs.fedavg import librispeech_conformer


def get_config():
    """The config."""
    config = librispeech_conformer.get_config()
    config.method = "federated_dropout"
    config.federated_dropout.rates = ((r"block\d+/ffn\d", 0.5),)
    return config
