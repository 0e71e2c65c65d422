"""FedOBD on IMDB's reviews, 100 clients of 250, IID, a Transformer of two layers.

    python -m experiments.train --config=configs/fedobd/imdb_transformer.py --workdir=DIR

2,905,597 parameters: 905,197 and 100 for each of 20,004 tokens. In four blocks, of which the
embedding is 69 % of the values and just within the 70 % that a client may send. Needs imdb_reviews
prepared by TensorFlow Datasets; without it the run tells how. Meant for an accelerator. Clients,
cohort, rounds, epochs, optimiser, length, dropout rate, beta and the missing padding mask are those
of the authors' code (arXiv 2208.05174); the size of the vocabulary is not known, and they begin
with GloVe's vectors.
"""

from configs import common
from configs.fedobd import use_fedobd


def get_config():
    """The config."""
    config = common.base(
        "imdb_reviews",
        "transformer_classifier",
        "fedavg",
        dataset_options={"clients": 100, "partition": "stratified", "vocabulary_size": 20_000},
        model_options={"vocabulary_size": 20_004, "padding_mask": False},
    )
    use_fedobd(config, stage1=100, stage2=10, beta=0.0001)
    config.clients_per_round = 50
    config.local_epochs = 5
    config.batch_size = 64
    config.local_validation = 0.1
    config.client_optimizer.learning_rate = 0.01
    config.client_optimizer.momentum = 0.9
    config.client_optimizer.schedule = "cosine"
    return config
