"""FedBN on 4,000 MNIST digits, 100 clients by Dirichlet(0.1), a narrow ResNet-18.

    python -m experiments.train --config=configs/local_parameters/mnist5k_resnet.py --workdir=DIR

Every client keeps its normalisation layers, and the server's stay as they began, so the result is
what clients reach with their own: `personalization` in summary.json, on the quarter of their
examples that they hold out, before and after five epochs of their own training.
"""

from configs.fedavg import mnist5k_resnet


def get_config():
    """The config."""
    config = mnist5k_resnet.get_config()
    config.method = "local_parameters"
    config.local_parameters.local = ((r".*norm\d?/.*", True),)
    config.dataset.alpha = 0.1
    config.local_validation = 0.25
    config.personalization.epochs = 5
    return config
