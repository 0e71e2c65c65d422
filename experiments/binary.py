"""What the binaries share: flags, the config's file, and one clear line for bad input."""

import contextlib
import difflib
import errno
import functools
import importlib.machinery
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from fedlite.errors import UserError


def fail(message: object):
    """Prints one line and exits with code 2."""
    print("error: " + " ".join(str(message).split()), file=sys.stderr)
    sys.exit(2)


@functools.cache
def define_config() -> flags.FlagHolder:
    """Defines --config=FILE, with overrides --config.KEY=VALUE; its value is a `ConfigDict`."""
    holder = config_flags.DEFINE_config_file("config", None, "The config's file.")
    # ml_collections' own parser hides why a file cannot be loaded until the config is used.
    flags.FLAGS["config"].parser = _ConfigFile()
    return holder


@functools.cache
def define_workdir() -> flags.FlagHolder:
    """Defines --workdir=DIR."""
    return flags.DEFINE_string("workdir", None, "Where the run's files go.")


@functools.cache
def define_widths() -> flags.FlagHolder:
    """Defines --widths=PATTERN, which chooses a model's widths; all by default."""
    return flags.DEFINE_string("widths", ".*", "Pattern on the whole names of widths.")


def check_new_file(name: str, flag: str, taken: tuple[str, ...] = ()):
    """Refuses a name in a run's directory that is another program's.

    Args:
      name: of a JSON file, without its suffix.
      flag: that gave it, for the message.
      taken: names that are refused besides those of all runs.

    Raises:
      UserError: names it.
    """
    taken = ("summary", "config", "row", "metrics", "importance", *taken)
    if not name.isidentifier() or name in taken or name.startswith("clients_"):
        raise UserError(f"{flag}={name!r} cannot name a file of a run: use another word")


def parse_flags(argv: list[str]) -> list[str]:
    """Parses flags; whatever is wrong with them or the config's file becomes one line."""
    try:
        rest = flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        if error.flagname.startswith("config."):
            fail(f"--{error.flagname} needs a --config=FILE before it; see configs/")
        hint = suggestion(error.flagname, flags.FLAGS)
        if "config" in flags.FLAGS:
            hint += "keys of the config are set by --config.KEY=VALUE; "
        fail(f"unknown option --{error.flagname}: {hint}see --help")
    except flags.IllegalFlagValueError as error:
        cause = error.__context__
        fail(cause if isinstance(cause, UserError) else _illegal_value(_text(error)))
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        # ml_collections raises other kinds than absl where an override cannot be applied.
        fail(_text(error))
    if flags.FLAGS["verbosity"].using_default_value:
        # Orbax tells twenty lines about every checkpoint.
        logging.set_verbosity(logging.WARNING)
    else:
        logging.set_verbosity(flags.FLAGS.verbosity)
    if len(rest) > 1:
        fail(f"unexpected argument {rest[1]!r}; options begin with --, see --help")
    return rest


def guarded(main: Callable[[list[str]], Any]) -> Callable[[list[str]], Any]:
    """A `main` that ends with one line: code 2 for a `UserError`, 130 for an interruption."""

    @functools.wraps(main)
    def run(argv):
        try:
            return main(argv)
        except UserError as error:
            _fail_together(error)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            fail(f"{error}: make room and run the same command again, which resumes")
        except KeyboardInterrupt:
            print("interrupted; the same command resumes or begins again", file=sys.stderr)
            sys.exit(130)
        except Exception as error:
            from fedlite.federated import processes

            if not (message := processes.lost(error)):
                raise
            print(f"error: {message}", file=sys.stderr, flush=True)
            # An exit in good order would wait for the process that is gone.
            os._exit(1)

    return run


def _fail_together(error: UserError):
    """Exits with code 2: in all processes where one failed before training, which one tells."""
    from fedlite.federated import processes

    try:
        if not processes.settled():
            processes.settle(error)
    except processes.AgreedError as agreed:
        error = agreed
    agreed = isinstance(error, processes.AgreedError)
    if agreed and processes.index():
        sys.exit(2)
    fail(error if agreed or processes.count() == 1 else f"process {processes.index()}: {error}")


def require(**values):
    """Refuses flags that were not given."""
    for name, value in values.items():
        if value is None or value == "":
            fail(f"--{name} is needed; see --help")


def start_jax():
    """Finds the devices and other processes, and keeps compiled programs for a fast second start.

    Programs lie in JAX_COMPILATION_CACHE_DIR, else in xla/ in fedlite's cache. Of several processes
    (see `fedlite.federated.processes`) only process 0 writes to stdout.

    Raises:
      UserError: JAX finds no device, or not the other processes.
    """
    import jax

    from fedlite.data import cache
    from fedlite.federated import processes

    processes.start()
    use_all_cores()
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(cache.directory() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    try:
        jax.devices()
    except RuntimeError as error:
        platforms = os.environ.get("JAX_PLATFORMS", "unset")
        raise UserError(
            f"JAX finds no device with JAX_PLATFORMS {platforms} ({_text(error)}): set it to cpu, "
            "or to what this machine has"
        ) from error
    if processes.index():
        sys.stdout = open(os.devnull, "w")


def use_all_cores():
    """Makes a device of every core, where JAX runs on a CPU and has not started yet.

    Clients side by side, each on a core, finish sooner than one after another on all cores, which
    wait for each other after every operation. A number that was asked for by JAX_NUM_CPU_DEVICES or
    XLA_FLAGS stands, as does that of several processes, which must have the same.
    """
    import jax

    from experiments import provenance
    from fedlite.federated import processes

    asked = "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if asked or jax.config.jax_num_cpu_devices >= 0 or processes.count() > 1:
        return
    # NPROC is what XLA takes for the number of cores.
    told = os.environ.get("NPROC", "")
    count = int(told) if told.isdecimal() and int(told) else provenance.cores()
    # JAX may have started already, within a larger program.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)


def suggestion(name: str, known: Iterable[str]) -> str:
    """ "did you mean X? ", or nothing where no known name is near."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean {near[0]}? " if near else ""


def unknown_key(path: str, known: Iterable[str]) -> str:
    """What to say of a config key that does not exist in its section, which has `known`."""
    section, _, key = path.rpartition(".")
    has = f"{section or 'a config'} has {', '.join(sorted(known))}"
    return f"unknown config key {path}: {suggestion(key, known)}{has}"


def wrong_type(path: str, value: object, default: object) -> str:
    """What to say of a value that is not of its default's type."""
    return f"{path} must be of type {type(default).__name__}, as {default!r} is, not {value!r}"


def value_like(default: bool | int | float | str, text: str) -> bool | int | float | str:
    """The value that a text stands for, of the type of `default`.

    Raises:
      ValueError: it stands for none.
    """
    if not isinstance(default, bool):
        return type(default)(text)
    # bool("false") is true.
    if text.lower() not in ("true", "false"):
        raise ValueError("use true or false")
    return text.lower() == "true"


class _ConfigFile(flags.ArgumentParser):
    """Loads FILE or FILE:ARGUMENT and checks the names of the overrides that follow it."""

    syntactic_help = "a Python file with get_config()"

    def __init__(self):
        self.config: ConfigDict | None = None

    def parse(self, argument: str) -> ConfigDict:
        file, *rest = argument.split(":", 1)
        self.config = _load(file, rest)
        self.config.lock()
        for override in sys.argv[1:]:
            # As in ml_collections, `--noconfig.KEY` makes a bool false.
            if match := re.match(r"--?(?:no)?config\.([^=]*)", override):
                _check_override(self.config, match.group(1))
        return self.config


def _load(file: str, arguments: list[str]) -> ConfigDict:
    if os.path.isdir(file):
        raise UserError(f"--config={file} is a directory; name a file in it")
    if not os.path.exists(file):
        raise UserError(f"--config={file} is not there; see configs/ for those that are shipped")
    loader = importlib.machinery.SourceFileLoader("fedlite_config", file)
    module = importlib.util.module_from_spec(
        importlib.util.spec_from_loader(loader.name, loader, origin=file)
    )
    try:
        loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        config = get_config(*arguments) if callable(get_config) else None
    except UserError as error:
        raise UserError(f"{_place(file, error)}: {error}") from error
    except SyntaxError as error:
        raise UserError(f"{error.filename}:{error.lineno}: {error.msg}; mend the file") from error
    except Exception as error:  # The file is the user's: it may raise anything.
        raise UserError(
            f"{_place(file, error)}: {type(error).__name__}: {_text(error)}; mend the file"
        ) from error
    if not callable(get_config):
        raise UserError(f"{file} has no function get_config(); see configs/fedavg/mnist5k_cnn.py")
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"{file}: get_config() returns {type(config).__name__} and no ConfigDict; return what "
            "configs.common.base() made"
        )
    return config


def _place(file: str, error: Exception) -> str:
    """The file and its line at which an exception passed through it."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if os.path.abspath(frame.filename) == os.path.abspath(file)
    ]
    return f"{file}:{lines[-1]}" if lines else file


def _check_override(config: ConfigDict, path: str):
    section, at = config, ""
    for key in path.split("."):
        if not isinstance(section, ConfigDict):
            raise UserError(f"unknown config key {path}: {at} is a value and no section")
        at = f"{at}.{key}" if at else key
        if key not in section:
            raise UserError(unknown_key(at, section))
        section = section[key]


def _illegal_value(message: str) -> str:
    match = re.fullmatch(r"flag --config\.([^=]*)=(.*?): .*", message)
    if not match:
        return message
    path, value = match.groups()
    default = flags.FLAGS["config"].parser.config
    for key in path.split("."):
        default = default[key]
    if isinstance(default, ConfigDict):
        return f"{path} is a section, not {value}: set its keys, as in --config.{path}.KEY=VALUE"
    return wrong_type(path, value, default)


def _text(error: Exception) -> str:
    """What an exception says, in one line; ml_collections wraps one exception in another."""
    if len(error.args) == 1 and isinstance(error.args[0], Exception):
        return _text(error.args[0])
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(text).split())[:300] or type(error).__name__
