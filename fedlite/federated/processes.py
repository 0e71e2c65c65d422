"""Several processes that train one model: how they find each other, and what they agree on.

All processes run the same program on the same config, each with the devices that it sees, and do
the same bookkeeping; process 0 alone writes and speaks. What could differ between them (the clock,
a signal, a file) is agreed on here, by small collective operations that every process must come to
in the same order. With one process all of this does nothing.
"""

import contextlib
import hashlib
import json
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from fedlite.errors import UserError

COORDINATOR, PROCESSES, PROCESS = "FEDLITE_COORDINATOR", "FEDLITE_PROCESSES", "FEDLITE_PROCESS"
TIMEOUT = "FEDLITE_TIMEOUT"
# Seconds; a node that boots needs minutes, a process that hangs should not cost more.
DEFAULT_TIMEOUT = 120
_TEXT_BYTES = 1024
_PIECE_BYTES = 1 << 22


class AgreedError(UserError):
    """A `UserError` of one process that all of them raise."""


def launch(environ: Mapping[str, str]) -> dict[str, Any] | None:
    """How this process was started, as the arguments of `jax.distributed.initialize`.

    Args:
      environ: FEDLITE_COORDINATOR (HOST:PORT of process 0, the same in all), FEDLITE_PROCESSES (how
        many) and FEDLITE_PROCESS (which one, from 0); or FEDLITE_COORDINATOR=auto where JAX knows
        the cluster (TPU pods, GKE, Open MPI); or the variables of a Slurm step.

    Returns:
      None for a process of its own; what JAX finds by itself is left out.

    Raises:
      UserError: the variables are incomplete or make no sense.
    """
    given = {name: environ[name] for name in (COORDINATOR, PROCESSES, PROCESS) if name in environ}
    if given == {COORDINATOR: "auto"}:
        return {}
    if given:
        return _launched_by_hand(given)
    # srun sets it for its step; a batch script and a step of one task are on their own.
    if _number(environ, "SLURM_STEP_NUM_TASKS", 1) > 1:
        return _launched_by_slurm(environ)
    return None


def _launched_by_hand(given: Mapping[str, str]) -> dict[str, Any] | None:
    missing = [name for name in (COORDINATOR, PROCESSES, PROCESS) if name not in given]
    if missing:
        raise UserError(
            f"{', '.join(given)} is set but {', '.join(missing)} is not: several processes need "
            f"all three, or {COORDINATOR}=auto alone; one process needs none"
        )
    processes, index = _number(given, PROCESSES), _number(given, PROCESS)
    if not re.fullmatch(r".+:\d+", given[COORDINATOR]):
        raise UserError(f"{COORDINATOR}={given[COORDINATOR]} is not HOST:PORT of process 0")
    if not 0 <= index < processes:
        raise UserError(
            f"{PROCESS}={index} is not one of {PROCESSES}={processes}, which are numbered from 0"
        )
    if processes == 1:
        return None
    return {
        "coordinator_address": given[COORDINATOR],
        "num_processes": processes,
        "process_id": index,
    }


def _launched_by_slurm(environ: Mapping[str, str]) -> dict[str, Any]:
    gpus = _number(environ, "SLURM_GPUS_ON_NODE", 0)
    tasks, nodes = (_number(environ, f"SLURM_STEP_NUM_{what}", 1) for what in ("TASKS", "NODES"))
    if gpus and tasks == nodes and "JAX_LOCAL_DEVICE_IDS" not in environ:
        # Left to itself, JAX takes one device a task, also where a task has the whole node.
        return {"local_device_ids": list(range(gpus))}
    return {}


def _number(environ: Mapping[str, str], name: str, default: int = 0) -> int:
    text = environ.get(name, str(default))
    if not text.isdecimal():
        raise UserError(f"{name}={text} is no number")
    return int(text)


def start(environ: Mapping[str, str] = os.environ):
    """Joins the other processes, if there are any; before anything asks JAX for its devices.

    Where they don't come within FEDLITE_TIMEOUT seconds, this process ends with code 1.

    Raises:
      UserError: as `launch`, or JAX finds nothing to join.
    """
    arguments = launch(environ)
    if arguments is None or jax.distributed.is_initialized():
        return
    timeout = _number(environ, TIMEOUT, DEFAULT_TIMEOUT)
    # JAX would take SIGTERM for itself, which means here: write a checkpoint and stop.
    jax.config.update("jax_enable_preemption_service", False)
    # At its own time limit JAX aborts with a stack trace.
    patience = threading.Timer(timeout, _give_up, [timeout])
    patience.daemon = True
    patience.start()
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=timeout + 60,
            heartbeat_timeout_seconds=timeout,
            shutdown_timeout_seconds=timeout,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"several processes were asked for, but JAX cannot join them ({_one_line(error)}): see "
            "docs/clusters.md"
        ) from error
    finally:
        patience.cancel()


def _give_up(timeout: int):
    print(
        f"error: the processes did not find each other within {TIMEOUT}={timeout} s: start all of "
        "them, with the same coordinator, or give them more time; see docs/clusters.md",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def count() -> int:
    """How many processes train together."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def index() -> int:
    """Which of them this is, from 0."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def gather(values: Any) -> np.ndarray:
    """An array of every process, [processes, ...]; of the same shape and type in all."""
    return np.asarray(multihost_utils.process_allgather(np.asarray(values)))


def broadcast(data: bytes) -> bytes:
    """The bytes of process 0, in all processes; those of the others do not matter."""
    if count() == 1:
        return data
    size = int(gather(np.frombuffer(np.int64(len(data)).tobytes(), np.uint8))[0].view(np.int64)[0])
    pieces = []
    for begin in range(0, size, _PIECE_BYTES):
        length = min(_PIECE_BYTES, size - begin)
        # A power of two, so that few programs are compiled.
        piece = np.zeros(1 << (length - 1).bit_length(), np.uint8)
        if index() == 0:
            piece[:length] = np.frombuffer(data, np.uint8, length, begin)
        piece = multihost_utils.broadcast_one_to_all(piece)
        pieces.append(np.asarray(piece)[:length].tobytes())
    return b"".join(pieces)


def broadcast_json(value: Any) -> Any:
    """The JSON value of process 0, in all processes."""
    return json.loads(broadcast(json.dumps(value).encode())) if count() > 1 else value


def broadcast_array(array: np.ndarray) -> np.ndarray:
    """The array of process 0, bit for bit; of the same shape and type in all processes."""
    array = np.asarray(array)
    if count() == 1:
        return array
    # As bytes: a sum with zeros would turn -0.0 into 0.0.
    return np.frombuffer(broadcast(array.tobytes()), array.dtype).reshape(array.shape)


def agree(rounds: int, stop: bool) -> tuple[int, bool]:
    """What to do next: as many rounds as process 0 says; to stop as soon as one was told to."""
    if count() == 1:
        return rounds, stop
    everyone = gather(np.array([rounds, stop], np.int32))
    return int(everyone[0, 0]), bool(everyone[:, 1].any())


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A part of the work, without collective operations, that succeeds in all processes or in none.

    Raises:
      AgreedError: in all processes, where any of them raised a `UserError`.
    """
    try:
        yield
    except UserError as error:
        if count() == 1:
            raise
        settle(error)
    else:
        settle(None)


def settle(error: UserError | None):
    """Waits for all processes, and raises the first one's error in all."""
    global _settled
    if count() == 1:
        return
    _settled = True
    text = "" if error is None else _one_line(error)
    padded = np.zeros(_TEXT_BYTES, np.uint8)
    encoded = np.frombuffer(text.encode()[:_TEXT_BYTES], np.uint8)
    padded[: len(encoded)] = encoded
    for number, row in enumerate(gather(padded)):
        found = row.tobytes().rstrip(b"\0").decode(errors="replace")
        if found:
            # What is wrong for process 0 is most often wrong for all.
            raise AgreedError(f"process {number}: {found}" if number else found) from error


# Whether `settle` was called: until then an error of one process is unknown to the others.
_settled = False


def settled() -> bool:
    """Whether the processes have heard of each other's errors at least once."""
    return _settled


def check_alike(**parts: Any):
    """Refuses processes that were started for different things.

    Args:
      **parts: JSON values by the name that the message calls them.

    Raises:
      AgreedError: in all processes, where one of them differs from process 0.
    """
    if count() == 1:
        return
    for name, value in parts.items():
        text = json.dumps(value, sort_keys=True).encode()
        digests = gather(np.frombuffer(hashlib.sha256(text).digest(), np.uint8))
        with together():
            if (digests[index()] != digests[0]).any():
                raise UserError(
                    f"{name} differs from that of process 0: give all processes the same command "
                    "and the same data"
                )


def lost(error: BaseException) -> str:
    """What to say of an error of JAX's in the middle of a run of several processes, else ""."""
    if count() == 1 or not isinstance(error, jax.errors.JaxRuntimeError):
        return ""
    return (
        f"process {index()} of {count()}: a computation over all processes failed, most likely "
        "since another process ended; its own output says why. The same command, given to all "
        f"of them, resumes ({_one_line(error)[:300]})"
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
