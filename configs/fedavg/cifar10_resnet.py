"""FedAvg on CIFAR-10, 500 clients of 100 images by Dirichlet(0.1), TFF's ResNet-18.

    python -m experiments.train --config=configs/fedavg/cifar10_resnet.py --workdir=DIR

11,181,642 parameters with group normalisation; images are cropped to 24x24, mirrored and
standardised. Needs CIFAR-10 prepared by TensorFlow Datasets; without it the run tells how. Meant
for an accelerator. Cohort, batch and crop are those of TFF's field-guide trainer; the
partition is a recollection of the FedPT paper's, and the learning rates are not tuned.
"""

from configs import common


def get_config():
    """The config."""
    config = common.base(
        "cifar10",
        "resnet18_gn",
        "fedavg",
        dataset_options={"clients": 500, "partition": "dirichlet_by_client", "alpha": 0.1},
    )
    config.rounds = 1500
    config.clients_per_round = 10
    config.batch_size = 20
    config.eval_every = 50
    config.checkpoint_every = 100
    config.task.standardize = True
    config.task.crop = 24
    config.task.flip = True
    return config
