"""A Slurm cluster of this machine alone, for tests: munge, slurmctld and slurmd.

    python -m tests.slurm.cluster -- sinfo
    python -m tests.slurm.cluster -- python -m scripts.submit --config=... --workdir=...

brings a cluster up, runs the command with SLURM_CONF set, and tears the cluster down again. All
files (key, sockets, state, logs) lie in one temporary directory, and nothing of the system's own
Slurm or munge is touched. Needs the packages slurm-wlm and munge (Debian's names), neither
systemd nor an accounting database, and no root: jobs run as whoever starts it.
"""

import contextlib
import ctypes
import os
import pathlib
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "sinfo")
# Daemons are not always in the PATH of people.
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])
INSTALL = "apt-get install --no-install-recommends slurm-wlm munge"
START_SECONDS = 30.0
# How long a step may take to start; Slurm lets a requeued job wait as long (by default 120 s).
CREDENTIAL_SECONDS = 10

_CONF = """\
ClusterName=fedlite
SlurmctldHost={host}(127.0.0.1)
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket,cred_expire={credential}
CredType=cred/munge
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
JobRequeue=1
KillWait=3
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0
SchedulerTimeSlice=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


class ClusterError(Exception):
    """The cluster cannot be brought up; the message says why."""


def missing() -> list[str]:
    """Programs that are not installed."""
    return [program for program in PROGRAMS if not shutil.which(program, path=PATH)]


@contextlib.contextmanager
def running(cpus: int = 2) -> Iterator[Mapping[str, str]]:
    """A cluster of one node; its value is the environment for Slurm's commands.

    Args:
      cpus: that the node says it has; jobs are not bound to them.

    Raises:
      ClusterError: a program is missing, or a daemon does not come up.
    """
    if absent := missing():
        raise ClusterError(f"{', '.join(absent)} not installed: {INSTALL}")
    # Short: the path of a socket has at most 107 letters.
    directory = pathlib.Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "SRUN"))},
        "PATH": PATH,
        "SLURM_CONF": str(directory / "slurm.conf"),
    }
    daemons: list[subprocess.Popen] = []
    try:
        _prepare(directory, cpus)
        for name, command in _daemons(directory).items():
            log = open(directory / f"{name}.out", "wb")
            daemons.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # A terminal's Ctrl-C must not end the daemons before the jobs.
                    start_new_session=True,
                    preexec_fn=_end_with_parent,
                )
            )
            log.close()
            _await(name, directory, environment, daemons)
        yield environment
    finally:
        _stop(daemons, environment)
        shutil.rmtree(directory, ignore_errors=True)


def _prepare(directory: pathlib.Path, cpus: int):
    directory.chmod(0o755)  # munged refuses a socket where others could not reach it
    for name in ("state", "spool"):
        (directory / name).mkdir()
    key = directory / "munge.key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(1024))
    text = _CONF.format(
        host=socket.gethostname().split(".")[0],
        user=pwd.getpwuid(os.getuid()).pw_name,
        directory=directory,
        ports=_free_ports(2),
        credential=CREDENTIAL_SECONDS,
        cpus=cpus,
    )
    (directory / "slurm.conf").write_text(text)
    # No control groups: there may be none here.
    (directory / "cgroup.conf").write_text("CgroupAutomount=no\n")


def _daemons(directory: pathlib.Path) -> dict[str, list[str]]:
    """Commands by name, in the order in which they start; none of them goes to the background."""
    program = {name: shutil.which(name, path=PATH) for name in PROGRAMS}
    conf = str(directory / "slurm.conf")
    return {
        "munged": [
            program["munged"],
            "--foreground",
            "--num-threads=2",
            f"--key-file={directory}/munge.key",
            f"--socket={directory}/munge.socket",
            f"--pid-file={directory}/munge.pid",
            f"--log-file={directory}/munge.log",
            f"--seed-file={directory}/munge.seed",
        ],
        "slurmctld": [program["slurmctld"], "-D", "-f", conf],
        "slurmd": [program["slurmd"], "-D", "-f", conf, "-N", socket.gethostname().split(".")[0]],
    }


def _end_with_parent():
    """Has Linux end this process when the one that started it is gone, however it ended."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _await(name: str, directory: pathlib.Path, environment, daemons: list[subprocess.Popen]):
    """Waits until a daemon answers."""
    ready = {
        "munged": lambda: (directory / "munge.socket").exists(),
        "slurmctld": lambda: "UP" in _ask(environment, "scontrol", "ping"),
        "slurmd": lambda: "idle" in _ask(environment, "sinfo", "--noheader", "--format=%t"),
    }
    end = time.monotonic() + START_SECONDS
    while not ready[name]():
        if daemons[-1].poll() is not None or time.monotonic() > end:
            lines = (directory / f"{name}.out").read_text(errors="replace").split("\n")
            words = " / ".join(line for line in lines if line)[-500:] or "no output"
            raise ClusterError(f"{name} does not come up: {words}")
        time.sleep(0.1)


def _ask(environment: Mapping[str, str], *command: str) -> str:
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=10, check=False
        )
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout


def _stop(daemons: list[subprocess.Popen], environment: Mapping[str, str]):
    """Ends all jobs, then the daemons."""
    if len(daemons) == 3:
        _ask(environment, "scancel", "--full", "--signal=KILL", f"--user={os.getuid()}")
        _ask(environment, "scancel", f"--user={os.getuid()}")
        end = time.monotonic() + 10
        while _ask(environment, "squeue", "--noheader").strip() and time.monotonic() < end:
            time.sleep(0.2)
    for daemon in reversed(daemons):
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def main(arguments: list[str]) -> int:
    """Runs a command on a cluster of its own."""
    if arguments[:1] == ["--"]:
        arguments = arguments[1:]
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        with running() as environment:
            return subprocess.run(arguments, env=environment, check=False).returncode
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
