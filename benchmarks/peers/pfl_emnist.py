"""Clients/s of pfl-research's FedAvg on the EMNIST CNN in PyTorch; prints one JSON line a turn.

    python pfl_emnist.py [--clients=10] [--seconds=5] [--turns=1]

100 examples a client, batch 20, one epoch, SGD: as `python -m experiments.benchmark`. Needs an
environment of its own: `pip install pfl==0.6.0 torch==2.13.0`.
"""

import argparse
import importlib.metadata
import json
import time

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel

parser = argparse.ArgumentParser()
parser.add_argument("--clients", type=int, default=10)
parser.add_argument("--seconds", type=float, default=5.0)
parser.add_argument("--turns", type=int, default=1)
arguments = parser.parse_args()

rng = np.random.default_rng(0)
DATA = {
    client: (
        torch.tensor(rng.random((100, 1, 28, 28), dtype=np.float32)),
        torch.tensor(rng.integers(0, 62, 100)),
    )
    for client in range(arguments.clients)
}


class EmnistCnn(torch.nn.Module):
    """The network of TFF's EMNIST baseline: 1,206,590 parameters."""

    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(1, 32, 3)
        self.conv2 = torch.nn.Conv2d(32, 64, 3)
        self.dense1 = torch.nn.Linear(9216, 128)
        self.logits = torch.nn.Linear(128, 62)

    def forward(self, x):
        """Logits."""
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        x = torch.nn.functional.dropout(torch.max_pool2d(x, 2), 0.25, self.training)
        x = torch.relu(self.dense1(x.flatten(1)))
        return self.logits(torch.nn.functional.dropout(x, 0.5, self.training))

    def loss(self, x, y, eval=False):
        """Mean cross-entropy."""
        self.eval() if eval else self.train()
        return torch.nn.functional.cross_entropy(self(x), y)

    @torch.no_grad()
    def metrics(self, x, y, eval=False):
        """Loss alone."""
        loss = torch.nn.functional.cross_entropy(self(x), y, reduction="sum")
        return {"loss": Weighted(float(loss), len(y))}


class Clock(TrainingProcessCallback):
    """Notes when each iteration ends; stops after the time that is asked for."""

    def __init__(self):
        self.times = []

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        """Stops after all turns."""
        self.times.append(time.perf_counter())
        long_enough = (arguments.seconds + 1) * arguments.turns
        return len(self.times) > 2 and self.times[-1] - self.times[1] > long_enough, Metrics()


network = EmnistCnn()
model = PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(network.parameters(), 1.0))
dataset = FederatedDataset(
    lambda user: Dataset(DATA[user]), get_user_sampler("minimize_reuse", list(DATA))
)
clock = Clock()
FederatedAveraging().run(
    algorithm_params=NNAlgorithmParams(
        central_num_iterations=10**6,
        evaluation_frequency=10**6,
        train_cohort_size=arguments.clients,
        val_cohort_size=None,
    ),
    backend=SimulatedBackend(training_data=dataset, val_data=None),
    model=model,
    model_train_params=NNTrainHyperParams(
        local_num_epochs=1, local_learning_rate=0.1, local_batch_size=20
    ),
    model_eval_params=None,
    callbacks=[clock],
    send_metrics_to_platform=False,
)
first = 1
for _ in range(arguments.turns):
    ends = [i for i, t in enumerate(clock.times) if t >= clock.times[first] + arguments.seconds]
    last = ends[0] if ends else len(clock.times) - 1
    rate = (last - first) * arguments.clients / (clock.times[last] - clock.times[first])
    first = last
    print(
        json.dumps(
            {
                "framework": f"pfl {importlib.metadata.version('pfl')}",
                "params": sum(p.numel() for p in network.parameters()),
                "clients_per_second": rate,
            }
        ),
        flush=True,
    )
