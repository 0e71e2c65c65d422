"""What every config has. A config is one file with `get_config()`, built on `base`."""

import ml_collections

from fedlite import data, methods, models
from fedlite.models import backbone


def base(
    dataset: str,
    model: str,
    method: str,
    *,
    dataset_options: dict | None = None,
    model_options: dict | None = None,
) -> ml_collections.ConfigDict:
    """All keys with their defaults.

    Args:
      dataset: name, see `fedlite.data.DATASETS`; its options become `config.dataset.*`.
      model: name, see `fedlite.models.NAMES`; its options become `config.model.*`.
      method: names of methods joined by "+", outermost first. Every method has a section
        `config.NAME.*` with its options, which counts where `config.method` names it.
      dataset_options, model_options: values other than the defaults.
    """
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.rounds = 100
    config.clients_per_round = 10
    config.local_epochs = 1
    config.batch_size = 20
    # Clients that vmap trains together; 0: one on a CPU, up to 64 on an accelerator.
    config.clients_per_chunk = 0
    # Unroll clients and steps instead of looping: slow to compile.
    config.unroll = False
    # At most so many rounds a program call; 0: 16, or fewer where the data is streamed.
    config.rounds_per_dispatch = 0
    # Devices to use, of which a CPU has one a core; 0: all that shorten a round.
    config.devices = 0
    config.eval_every = 10
    config.checkpoint_every = 50
    # "examples": a client weighs as many as it has; "uniform": all the same.
    config.client_weighting = "examples"
    # How cohorts are drawn: "uniform" without replacement, "poisson", "cyclic".
    config.participation = "uniform"
    # Clients that fail or come too late, see fedlite/federated/availability.py: selected for each
    # of the cohort, chance to fail, deadline in steps of the median client (0: none).
    config.availability = ml_collections.ConfigDict(
        {"over_selection": 1.0, "failure_rate": 0.0, "deadline": 0.0, "spread": 0.5}
    )
    # Share of each client's examples by which its best local epoch is chosen; 0: the last epoch.
    config.local_validation = 0.0
    # Every client's own training after the last round, scored on what it holds out; 0 epochs: none.
    # A learning rate of 0 is that of the rounds.
    config.personalization = ml_collections.ConfigDict({"epochs": 0, "learning_rate": 0.0})
    # schedule: constant, or cosine over the epochs of a round.
    config.client_optimizer = ml_collections.ConfigDict(
        {
            "learning_rate": 0.1,
            "momentum": 0.0,
            "weight_decay": 0.0,
            "decay_over_examples": False,
            "clip": 0.0,
            "schedule": "constant",
        }
    )
    # name: sgd (FedAvg), momentum (FedAvgM), adagrad, adam or yogi.
    config.server_optimizer = ml_collections.ConfigDict(
        {"name": "sgd", "learning_rate": 1.0, "momentum": 0.9, "b1": 0.9, "b2": 0.99, "eps": 1e-3}
    )
    config.dataset = ml_collections.ConfigDict(
        {"name": dataset, **data.dataset_options(dataset), **(dataset_options or {})}
    )
    config.model = ml_collections.ConfigDict(
        {"name": model, **models.model_options(model), **(model_options or {})}
    )
    # Branches beside layers of the model, see fedlite/models/adapters.py.
    config.adapters = ml_collections.ConfigDict({"kind": "none", "places": (), "init": "zero"})
    # Parameters that experiments.pretrain made: their directory ("": none), the digest that is
    # expected ("": any), and what is left fresh all the same.
    config.backbone = ml_collections.ConfigDict({"path": "", "digest": "", "skip": backbone.SKIP})
    # Text file of word vectors, such as GloVe's, with which the embedding begins; "": none.
    config.word_vectors = ""
    # Of images: standardize each, crop to a size (0: whole), mirror at random. Of speech, see
    # fedlite/tasks/speech.py: SpecAugment's masks along time and mels and their greatest lengths,
    # beam of the last evaluation's search (0: none), numbers of frames to which batches are cut.
    config.task = ml_collections.ConfigDict(
        {
            "standardize": False,
            "crop": 0,
            "flip": False,
            "time_masks": 0,
            "time_mask": 0,
            "frequency_masks": 0,
            "frequency_mask": 0,
            "beam": 0,
            "buckets": (),
        }
    )
    config.method = method
    for name in methods.names():
        if options := methods.options(name):
            config[name] = ml_collections.ConfigDict(options)
    return config
