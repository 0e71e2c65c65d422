r"""Digit strings by 120 made-up speakers, character by character, a small Conformer with CTC.

    python -m experiments.train --config=configs/fedavg/speech_conformer.py --workdir=DIR

226,437 parameters; the test speakers are others than those that train. For the first rounds the
model says nothing but blanks, and leaves that by itself. Word error rate on the test speakers:
results/federated_dropout/submodels.
"""

from configs import common


def get_config():
    """The config."""
    config = common.base("speech", "conformer", "fedavg")
    config.rounds = 200
    config.clients_per_round = 12
    config.batch_size = 8
    config.eval_every = 20
    config.client_optimizer.learning_rate = 0.05
    config.client_optimizer.clip = 2.0
    config.server_optimizer.name = "adam"
    config.server_optimizer.learning_rate = 0.003
    config.server_optimizer.b1 = 0.9
    config.server_optimizer.b2 = 0.99
    config.server_optimizer.eps = 1e-5
    config.task.buckets = (140, 190, 260)
    return config
