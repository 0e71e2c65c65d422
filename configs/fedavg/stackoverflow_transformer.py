"""Next word of Stack Overflow, 342,477 users, the field guide's Transformer of one layer.

    python -m experiments.train --config=configs/fedavg/stackoverflow_transformer.py --workdir=DIR

4,211,680 parameters. Needs stackoverflow.sqlite and its word counts in ~/.tff (or
--config.dataset.data_dir=DIR); without them the run tells what to download. The first run
converts the whole set; --config.dataset.max_clients=10000 converts a part. Clients and server are
those of the field guide's example run (client SGD 0.1, server Adam 0.03, 10 clients a
round), the rounds those of Reddi et al. 2021 (arXiv 2003.00295).
"""

from configs import common


def get_config():
    """The config."""
    config = common.base("stackoverflow", "word_transformer", "fedavg")
    config.rounds = 1500
    config.clients_per_round = 10
    config.batch_size = 16
    config.eval_every = 100
    config.checkpoint_every = 100
    config.server_optimizer.name = "adam"
    config.server_optimizer.learning_rate = 0.03
    config.server_optimizer.b2 = 0.999
    config.server_optimizer.eps = 1e-3
    return config
