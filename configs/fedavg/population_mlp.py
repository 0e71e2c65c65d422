"""FedAvg on a made-up population, 10,000 clients with 1 to 7 MNIST digits each, a perceptron.

    python -m experiments.train --config=configs/fedavg/population_mlp.py --workdir=DIR

For a million clients (3.2 GB, written once; examples are then read from the file round by round):

    python -m scripts.make_population --clients=1000000 --out=DATA
    python -m experiments.train --config=configs/fedavg/population_mlp.py --workdir=DIR \
        --config.dataset.clients=1000000 --config.dataset.data_dir=DATA \
        --config.clients_per_round=1000

See benchmarks/population.md for its speed and memory.
"""

from configs import common


def get_config():
    """The config."""
    config = common.base(
        "population",
        "mlp",
        "fedavg",
        dataset_options={"clients": 10_000},
        model_options={"hidden": (64,)},
    )
    config.rounds = 200
    config.clients_per_round = 100
    config.batch_size = 4
    return config
