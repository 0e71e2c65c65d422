r"""Federated pruning on spoken digits: half of the prunable parameters go, in two steps.

    python -m experiments.train --config=configs/federated_pruning/speech_conformer.py \
        --workdir=DIR

Rounds 0 to 29 train the full model, masks at rounds 30 and 50 prune it to 25 % and 50 % (L2 norms,
adaptive over feed-forward units, heads and the channels of the subsampling), that of round 70
refines it, and it holds for the remaining rounds. The convolutions, which have few parameters, stay
whole.
"""

from configs.fedavg import speech_conformer


def get_config():
    """The config."""
    config = speech_conformer.get_config()
    config.method = "federated_pruning"
    config.federated_pruning.sparsity = 0.5
    config.federated_pruning.prunable = ((r".*/conv(/.*)?", False), (r".*", True))
    config.federated_pruning.allocation = "adaptive"
    config.federated_pruning.schedule = "step"
    config.federated_pruning.prune_from = 30
    config.federated_pruning.steps = 2
    config.federated_pruning.every = 20
    config.federated_pruning.refine_every = 20
    config.federated_pruning.refine_until = 90
    return config
