r"""LibriSpeech's 960 hours by 2,338 speakers, character by character, Conformer-S with CTC.

    python -m experiments.train --config=configs/fedavg/librispeech_conformer.py --workdir=DIR

Needs LibriSpeech's archives, extracted in ~/LibriSpeech (or --config.dataset.data_dir=DIR), and
90 GB for their features; without the archives the run tells which to download. One subset is a
start: --config.dataset.train=train-clean-100 (251 speakers, 9 GB). 8,717,357 parameters.

Speakers as clients, 128 of them a round with one epoch each in batches of 16, SGD on clients and
Adam on the server, and SpecAugment are what papers 2110.03634 and 2209.06359 use as far as is
known. Not known, and chosen here: rounds, learning rates, clipping, Adam's moments (those of
configs/fedavg/speech_conformer.py), the masks of SpecAugment (LibriSpeech double of Park et al.
2019, without time warping), and how many utterances of a speaker count (all). Nothing at this scale
was trained yet. The papers' models are larger and transducers, and they add weight noise on
clients.

Utterances of more than 20 s are left out, of the test sets too (the run says how many), since all
are padded to the longest; for the whole sets score the finished run on each once more:

    python -m experiments.evaluate_on --workdir=DIR --out=test_other --data=test=test-other,\
max_seconds=36,train=train-clean-100,max_examples_per_client=1,validation=
"""

from configs import common
from fedlite.models.conformer import SIZES


def get_config():
    """The config."""
    config = common.base(
        "librispeech",
        "conformer",
        "fedavg",
        dataset_options={"train": "train-clean-100+train-clean-360+train-other-500"},
        model_options=SIZES["S"],
    )
    config.rounds = 2000
    config.clients_per_round = 128
    config.batch_size = 16
    # By an estimate: 64 utterances of 20 s and all their activations.
    config.clients_per_chunk = 4
    config.eval_every = 50
    config.checkpoint_every = 50
    config.client_optimizer.learning_rate = 0.05
    config.client_optimizer.clip = 2.0
    config.server_optimizer.name = "adam"
    config.server_optimizer.learning_rate = 0.003
    config.server_optimizer.b1 = 0.9
    config.server_optimizer.b2 = 0.99
    config.server_optimizer.eps = 1e-5
    config.task.time_masks = 2
    config.task.time_mask = 100
    config.task.frequency_masks = 2
    config.task.frequency_mask = 27
    return config
