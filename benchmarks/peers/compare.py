"""Runs fedlite, FedJAX and pfl-research in turns on the same round; see README.md here."""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

from experiments import provenance

HERE = pathlib.Path(__file__).parent


def main():
    """Writes medians, spreads and the ratio to the better peer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fedjax", required=True, help="Python of FedJAX's environment.")
    parser.add_argument("--pfl", required=True, help="Python of pfl's environment.")
    parser.add_argument("--out", required=True, help="The JSON file to write.")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0)
    arguments = parser.parse_args()
    speeds: dict[str, list[float]] = {}
    for _ in range(arguments.turns):
        for python, script in (
            (sys.executable, HERE / "fedlite_emnist.py"),
            (arguments.fedjax, HERE / "fedjax_emnist.py"),
            (arguments.pfl, HERE / "pfl_emnist.py"),
        ):
            command = [python, str(script), f"--seconds={arguments.seconds}"]
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            answer = json.loads(result.stdout.strip().splitlines()[-1])
            speeds.setdefault(answer["framework"], []).append(answer["clients_per_second"])
            print(answer["framework"], f"{answer['clients_per_second']:.2f} clients/s", flush=True)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    ours = next(name for name in medians if name.startswith("fedlite"))
    best = max(value for name, value in medians.items() if name != ours)
    report = {
        "command": "python -m benchmarks.peers.compare --fedjax=PYTHON --pfl=PYTHON --out=FILE "
        f"--turns={arguments.turns} --seconds={arguments.seconds:g}",
        "code": provenance.code(),
        "machine": provenance.machine(),
        "clients_per_second": medians,
        "turns": speeds,
        "ratio_to_better_peer": medians[ours] / best,
    }
    text = json.dumps(report, indent=2) + "\n"
    pathlib.Path(arguments.out).write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
