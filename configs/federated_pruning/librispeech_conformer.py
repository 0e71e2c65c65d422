r"""Federated pruning on LibriSpeech: half of the prunable parameters go, in two steps.

    python -m experiments.train --config=configs/federated_pruning/librispeech_conformer.py \
        --workdir=DIR

Rounds 0 to 299 train the full model, masks at rounds 300 and 500 prune it to 25 % and 50 % (L2
norms, adaptive over feed-forward units, heads and convolution groups), that of round 700 refines
it, and it holds for the remaining rounds. Data and the rest as of
configs/fedavg/librispeech_conformer.py, which says what is known of the papers' settings. Of
arXiv 2209.06359 the phases, the weight score, the step schedule and adaptive sparsity are known;
its sparsities, the lengths of its phases and the formula of the allocation are not.
"""

from configs.fedavg import librispeech_conformer


def get_config():
    """The config."""
    config = librispeech_conformer.get_config()
    config.method = "federated_pruning"
    config.federated_pruning.sparsity = 0.5
    config.federated_pruning.allocation = "adaptive"
    config.federated_pruning.schedule = "step"
    config.federated_pruning.prune_from = 300
    config.federated_pruning.steps = 2
    config.federated_pruning.every = 200
    config.federated_pruning.refine_every = 200
    config.federated_pruning.refine_until = 900
    return config
