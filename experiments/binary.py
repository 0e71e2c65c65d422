"""What the binaries share: one clear line and exit code 2 for bad input."""

import functools
import os
import pathlib
import sys

from absl import flags, logging

from fedlite.errors import UserError


def fail(message: str):
    """Prints one line and exits with code 2."""
    print("error: " + " ".join(str(message).split()), file=sys.stderr)
    sys.exit(2)


def parse_flags(argv: list[str]) -> list[str]:
    """Parses flags; whatever is wrong with them or the config file becomes one line."""
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        fail(_first(error))
    except FileNotFoundError as error:
        fail(f"--config: {error.filename or error} is not there; see configs/")
    except UserError as error:
        fail(error)
    except SyntaxError as error:
        fail(f"--config: {error.filename}:{error.lineno}: {error.msg}")
    except (AttributeError, KeyError, TypeError, ValueError, ImportError, OSError) as error:
        # ml_collections raises these for an unknown key or a value of another type.
        fail(f"--config: {_first(error)}")
    if not flags.FLAGS["verbosity"].using_default_value:
        logging.set_verbosity(flags.FLAGS.verbosity)
    else:
        # Orbax tells twenty lines about every checkpoint.
        logging.set_verbosity(logging.WARNING)
    if len(rest) > 1:
        fail(f"unexpected argument {rest[1]!r}; options begin with --")
    return rest


def guarded(main):
    """A `main` whose `UserError` becomes one line and exit code 2."""

    @functools.wraps(main)
    def run(argv):
        try:
            return main(argv)
        except UserError as error:
            fail(error)

    return run


def require(**values):
    """Refuses flags that were not given."""
    for name, value in values.items():
        if not value:
            fail(f"--{name} is needed; see --help")


def enable_compilation_cache():
    """Keeps compiled programs between runs, so that a second start is fast."""
    import jax

    default = pathlib.Path(os.environ.get("FEDLITE_CACHE", "~/.cache/fedlite")).expanduser()
    jax.config.update("jax_compilation_cache_dir", str(default / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _first(error: Exception) -> str:
    text = str(error.args[0]) if error.args else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
