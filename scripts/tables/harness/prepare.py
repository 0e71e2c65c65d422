"""The backbones that a table's rows begin with, each trained once in the table's directory."""

import pathlib
import subprocess
import sys

from fedlite.errors import UserError
from scripts.tables.harness import plan, tiny
from scripts.tables.harness.spec import Backbone, Scale


def prepare(scale: Scale, out: pathlib.Path, *, small: bool = False):
    """Trains the backbones of a scale that are not there yet.

    Args:
      scale: of the table.
      out: the table's directory; a backbone lies in BACKBONES/NAME below it.
      small: whether they are trained at the size of `tiny`.

    Raises:
      UserError: one cannot be trained.
    """
    for backbone in scale.backbones:
        directory = plan.backbone_directory(out, backbone.name)
        if (directory / "backbone.json").exists():
            continue
        print(f"Training the backbone {backbone.name!r}.", flush=True)
        done = subprocess.run(
            [sys.executable, *_arguments(backbone, small), f"--workdir={directory}"],
            cwd=plan.ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            reason = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
            raise UserError(f"the backbone {backbone.name!r} cannot be trained: {reason[-1]}")


def _arguments(backbone: Backbone, small: bool) -> list[str]:
    given, epochs = dict(backbone.overrides), backbone.epochs
    if small:
        given |= tiny.overrides(plan.load_config(backbone.config))
        epochs = 1
    return [
        "-m",
        "experiments.pretrain",
        f"--config={backbone.config}",
        *(f"--config.{key}={value}" for key, value in given.items()),
        f"--epochs={epochs}",
        f"--learning_rate={backbone.learning_rate}",
        f"--batch_size={backbone.batch_size}",
    ]
