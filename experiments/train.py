"""Trains a federated experiment, or resumes it.

    python -m experiments.train --config=configs/fedavg/mnist5k_cnn.py --workdir=DIR \
        [--config.rounds=100 ...]

--profile_rounds=N also traces N rounds, from the second on, for TensorBoard or ui.perfetto.dev,
into DIR/profile.

The directory holds config.json, metrics.jsonl, summary.json, checkpoints/ and tensorboard/.
Run again in the same directory to resume. SIGTERM and SIGINT finish the running rounds, write a
checkpoint and exit with 0; bad input exits with 2 before anything is compiled or written.
"""

from absl import app, flags

from experiments import binary

_CONFIG = binary.define_config()
_WORKDIR = binary.define_workdir()
_PROFILE_ROUNDS = flags.DEFINE_integer(
    "profile_rounds", 0, "Rounds to trace into DIR/profile, after the first of this start.", 0
)


def main(_):
    """Runs the experiment of the flags."""
    binary.require(config=_CONFIG.value, workdir=_WORKDIR.value)
    from experiments.build import build
    from fedlite.federated import training
    from fedlite.federated.workdir import Workdir

    binary.start_jax()
    workdir = Workdir(_WORKDIR.value)
    summary = training.train(build(_CONFIG.value), workdir, _PROFILE_ROUNDS.value)
    if summary is None:
        print(f"Stopped by a signal; the same command resumes the run in {workdir.path}.")
        return
    final = ", ".join(f"{k} {v:.4f}" for k, v in summary["final"].items() if isinstance(v, float))
    megabytes = summary["bytes"]["total"] / training.MEGABYTE
    print(
        f"{summary['method']} on {summary['dataset']}: {final}, {megabytes:.1f} MB, "
        f"summary in {workdir.summary}"
    )


if __name__ == "__main__":
    app.run(binary.guarded(main), flags_parser=binary.parse_flags)
