"""FedOBD on CIFAR-10, 100 clients of 500 images, IID, DenseNet-40.

    python -m experiments.train --config=configs/fedobd/cifar10_densenet.py --workdir=DIR

176,122 parameters in 41 blocks; batch normalisation by the batch at hand. Needs CIFAR-10 prepared
by TensorFlow Datasets; without it the run tells how. Meant for an accelerator. Clients, cohort,
rounds, epochs, optimiser, dropout rate and beta are those of the authors' code (arXiv
2208.05174). A client's best epoch is chosen by a tenth of its own examples, where they took half of
the test set; standardising and mirroring are not theirs.
"""

from configs import common
from configs.fedobd import use_fedobd


def get_config():
    """The config."""
    config = common.base(
        "cifar10",
        "densenet",
        "fedavg",
        dataset_options={"clients": 100, "partition": "stratified"},
    )
    use_fedobd(config, stage1=100, stage2=10, beta=0.001)
    config.clients_per_round = 50
    config.local_epochs = 5
    config.batch_size = 64
    config.local_validation = 0.1
    config.client_optimizer.learning_rate = 0.1
    config.client_optimizer.momentum = 0.9
    config.client_optimizer.schedule = "cosine"
    config.client_optimizer.weight_decay = 1.0
    config.client_optimizer.decay_over_examples = True
    config.task.standardize = True
    config.task.flip = True
    return config
