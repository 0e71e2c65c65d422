r"""Digit strings by 120 made-up speakers, word by word, a small Conformer with CTC.

    python -m experiments.train --config=configs/fedavg/speech_words.py --workdir=DIR

Easier than characters (configs/fedavg/speech_conformer.py): CTC need not learn how words are spelt.
Word error rate on the test speakers: results/federated_dropout/submodels_words.
"""

from configs.fedavg import speech_conformer


def get_config():
    """The config."""
    config = speech_conformer.get_config()
    config.dataset.vocabulary = "words"
    config.rounds = 150
    return config
