"""Trains a federated experiment, or resumes it.

    python -m experiments.train --config=configs/fedavg/mnist5k_cnn.py --workdir=DIR \
        [--config.rounds=100 ...]

The directory holds config.json, metrics.jsonl, summary.json, checkpoints/ and tensorboard/.
Run again in the same directory to resume. SIGTERM and SIGINT finish the running rounds, write a
checkpoint and exit with 0; bad input exits with 2 before anything is compiled or written.
"""

from absl import app, flags
from ml_collections import config_flags

from experiments import binary

_CONFIG = config_flags.DEFINE_config_file("config", None, "The config's file.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run's files go.")


def main(_):
    """Runs the experiment of the flags."""
    binary.require(config=_CONFIG.value, workdir=_WORKDIR.value)
    from experiments.build import build
    from fedlite.federated import training
    from fedlite.federated.workdir import Workdir

    binary.enable_compilation_cache()
    workdir = Workdir(_WORKDIR.value)
    experiment = build(_CONFIG.value)
    summary = training.train(experiment, workdir)
    if summary is None:
        print(f"Stopped after a checkpoint in {workdir.path}; the same command resumes.")
        return
    final, megabytes = summary["final"], summary["bytes"]["total"] / training.MEGABYTE
    print(
        f"{summary['method']} on {summary['dataset']}: accuracy {final['accuracy']:.4f}, "
        f"{megabytes:.1f} MB, summary in {workdir.summary}"
    )


if __name__ == "__main__":
    app.run(binary.guarded(main), flags_parser=binary.parse_flags)
