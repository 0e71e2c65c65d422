"""Clients/s of fedlite's FedAvg on the EMNIST CNN with its defaults; prints one JSON line a turn.

python benchmarks/peers/fedlite_emnist.py [--clients=10] [--seconds=5] [--turns=1]
"""

import argparse
import importlib.metadata
import json

from experiments import benchmark, binary

parser = argparse.ArgumentParser()
parser.add_argument("--clients", type=int, default=10)
parser.add_argument("--seconds", type=float, default=5.0)
parser.add_argument("--turns", type=int, default=1)
arguments = parser.parse_args()

binary.use_all_cores()
case = benchmark.Case("full", "map", "auto", arguments.clients)
runner = benchmark.Runner(case, benchmark.make_split(arguments.clients, 100))
for _ in range(arguments.turns):
    print(
        json.dumps(
            {
                "framework": f"fedlite {importlib.metadata.version('fedlite')}",
                "params": runner.params,
                "clients_per_second": runner.clients_per_second(arguments.seconds),
            }
        ),
        flush=True,
    )
