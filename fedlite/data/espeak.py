"""espeak-ng 1.52 out of the package espeakng-loader (the extra "speech"): text to samples.

espeak-ng keeps hidden state, so that the same call twice gives other samples. Every script, a list
of requests, is therefore said in a process of its own, forked from the initialised state, which
makes its samples a function of the script alone. A fork takes longer than an utterance, so a script
had better be all that a speaker says. A process that has started JAX must not fork, so this happens
in workers: this module as a program, which imports no JAX, reads scripts as lines of JSON and
writes samples, of each request a length in bytes and then so many bytes.
"""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fedlite.errors import UserError

RATE = 22050

_INSTALL = "pip install -e '.[speech]'"
_HEADER = struct.Struct("<I")

# From espeak-ng's speak_lib.h.
_SYNCHRONOUS, _DO_NOT_EXIT = 2, 0x8000
_BY_CHARACTER, _UTF8 = 1, 1
_SPEAKING_RATE, _VOLUME, _PITCH, _PITCH_RANGE = 1, 2, 3, 4


class Request(NamedTuple):
    """One thing to say.

    Attributes:
      text: in the voice's language.
      voice: "ACCENT+VARIANT".
      pitch: 0 to 99.
      rate: words a minute.
      seed: of the noise in the voice, such as its breath.
    """

    text: str
    voice: str
    pitch: int
    rate: int
    seed: int


def version() -> str:
    """The version of espeakng-loader, and so of espeak-ng.

    Raises:
      UserError: it is not installed.
    """
    _data_path()
    return importlib.metadata.version("espeakng-loader")


def variants() -> list[str]:
    """The names of all voice variants, sorted.

    Raises:
      UserError: espeak-ng is not installed.
    """
    return sorted(path.name for path in (_data_path() / "voices" / "!v").iterdir())


def say(scripts: Sequence[Sequence[Request]], workers: int = 0) -> Iterator[list[np.ndarray]]:
    """What espeak-ng makes of each script, in their order.

    Args:
      scripts: requests to say one after another; of one what comes later depends on what came
        before, and no script on another one.
      workers: processes; 0 for one a core.

    Yields:
      Of each request of a script int16 [samples] at `RATE`.

    Raises:
      UserError: espeak-ng is not installed, or it fails.
    """
    _data_path()
    workers = min(workers or _cores(), len(scripts))
    with contextlib.ExitStack() as stack:
        # The scripts are dealt out in turn: a worker says its next while another is read.
        readers = [stack.enter_context(_worker(scripts[k::workers])) for k in range(workers)]
        for number, script in enumerate(scripts):
            yield [readers[number % workers](request) for request in script]


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def _worker(scripts: Sequence[Sequence[Request]]) -> Iterator[Callable[[Request], np.ndarray]]:
    """A process that says the scripts; a function that reads the samples of the next request."""
    root = str(pathlib.Path(__file__).parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    # A thread of NumPy's would not survive the forks.
    changed = {"PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as lines, tempfile.TemporaryFile() as errors:
        lines.write("".join(json.dumps(script) + "\n" for script in scripts).encode())
        lines.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name],
            stdin=lines,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **changed},
        )

        def read(request: Request) -> np.ndarray:
            header = process.stdout.read(_HEADER.size)
            size = _HEADER.unpack(header)[0] if len(header) == _HEADER.size else 0
            samples = process.stdout.read(size)
            if not size or len(samples) < size:
                process.wait()
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip().splitlines()
                reason = said[-1] if said else f"{request}: exit code {process.returncode}"
                raise UserError(
                    f"espeak-ng fails at {reason}; its package is installed anew by: "
                    f"{_INSTALL} --force-reinstall"
                )
            return np.frombuffer(samples, "<i2")

        try:
            yield read
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def _data_path() -> pathlib.Path:
    if importlib.util.find_spec("espeakng_loader") is None:
        raise UserError(f"espeak-ng (package espeakng-loader) is not installed: {_INSTALL}")
    import espeakng_loader

    return pathlib.Path(espeakng_loader.get_data_path())


# The worker.


class _Espeak:
    """The library, initialised once; see its speak_lib.h."""

    def __init__(self):
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._samples: list[bytes] = []
        receiver = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )
        # ctypes frees a callback that nothing in Python refers to.
        self._receiver = receiver(self._receive)
        path = str(_data_path()).encode()
        rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, path, _DO_NOT_EXIT)
        if rate != RATE:
            raise RuntimeError(f"espeak_Initialize returned {rate}, not {RATE}")
        self._library.espeak_SetSynthCallback(self._receiver)

    def _receive(self, samples, count: int, _) -> int:
        if samples and count > 0:
            self._samples.append(ctypes.string_at(samples, 2 * count))
        return 0

    def say(self, request: Request) -> bytes:
        """The samples of a request, little-endian int16."""
        library = self._library
        if library.espeak_SetVoiceByName(request.voice.encode()):
            raise RuntimeError(f"{request}: no such voice")
        for parameter, value in (
            (_SPEAKING_RATE, request.rate),
            (_VOLUME, 100),
            (_PITCH, request.pitch),
            (_PITCH_RANGE, 50),
        ):
            library.espeak_SetParameter(parameter, value, 0)
        library.espeak_ng_SetRandSeed(ctypes.c_long(request.seed))
        text = ctypes.create_string_buffer(request.text.encode())
        size = ctypes.c_size_t(len(text))
        if library.espeak_Synth(text, size, 0, _BY_CHARACTER, 0, _UTF8, None, None):
            raise RuntimeError(f"{request}: no synthesis")
        samples = np.frombuffer(b"".join(self._samples), np.int16)
        self._samples.clear()
        if not samples.any():
            raise RuntimeError(f"{request}: silence")
        return samples.astype("<i2").tobytes()


def main():
    """Says the scripts of standard input; ends with code 1 at the first that fails."""
    espeak = _Espeak()
    for line in sys.stdin:
        script = [Request(*request) for request in json.loads(line)]
        child = os.fork()
        if not child:
            _say_and_exit(espeak, script)
        _, status = os.waitpid(child, 0)
        if status:
            sys.exit(1)


def _say_and_exit(espeak: _Espeak, script: Sequence[Request]):
    code = 1
    try:
        said = [espeak.say(request) for request in script]
        # All at once: while another worker is read, the pipe holds no more than an utterance.
        sys.stdout.buffer.write(b"".join(_HEADER.pack(len(part)) + part for part in said))
        sys.stdout.buffer.flush()
        code = 0
    except Exception as error:
        print(error, file=sys.stderr, flush=True)
    finally:
        # Without the parent's clean-up, which is the parent's to do.
        os._exit(code)


if __name__ == "__main__":
    main()
