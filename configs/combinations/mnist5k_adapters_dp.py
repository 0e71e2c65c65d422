"""Private adapters on sub-models of the backbone: five methods, on 4,000 MNIST digits.

    python -m experiments.train --config=configs/combinations/mnist5k_adapters_dp.py --workdir=DIR \
        --config.backbone.path=BACKBONE

Each client gets three quarters of the inner channels of a frozen ResNet-26, trains adapters, norms
and head of that sub-model, and sends them with 8 bits a value; the server clips and adds noise for
epsilon = 8. Backbone and the rest as of configs/adapters/mnist5k_resnet.py.
"""

from configs.adapters import mnist5k_resnet


def get_config():
    """The config."""
    config = mnist5k_resnet.get_config()
    config.method = "partial_training+dp_fedavg+federated_dropout+quantize"
    config.participation = "poisson"
    config.client_weighting = "uniform"
    config.clients_per_round = 50
    config.dp_fedavg.epsilon = 8.0
    config.dp_fedavg.clip = 0.3
    config.federated_dropout.rates = ((".*", 0.25),)
    # Under a fixed denominator a client answers for every parameter.
    config.federated_dropout.aggregation = "zero"
    return config
