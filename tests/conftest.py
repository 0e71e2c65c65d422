"""Shared by all tests: what is compiled is compiled quickly, and kept for the session.

Most of the suite's time is compilation, of programs that then run for milliseconds.
`JAX_DISABLE_MOST_OPTIMIZATIONS=0 make test` compiles as users do, which takes longer.
"""

import gc
import os
import shutil
import tempfile

import pytest

# A round of many arrays takes most of its compilation in these two passes of XLA, which move
# constants into loops and what does not change out of them. Neither touches a number.
_SLOW_PASSES = "while-loop-constant-sinking,while-loop-invariant-code-motion"

# Workers of pytest-xdist share the directory of the process that started them.
_OWNER = "FEDLITE_TEST_CACHE" not in os.environ
if _OWNER:
    os.environ["FEDLITE_TEST_CACHE"] = tempfile.mkdtemp(prefix="fedlite-tests-")
    # JAX reads these when it is imported, which the tests do, in processes of their own as well.
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] != "0":
        given = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{given} --xla_disable_hlo_passes={_SLOW_PASSES}".strip()
# One device, whichever test starts JAX, and a core for each worker of pytest-xdist.
os.environ.setdefault("NPROC", "1")
os.environ["FEDLITE_CACHE"] = os.environ["FEDLITE_TEST_CACHE"]
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(os.environ["FEDLITE_CACHE"], "xla")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

# Traces are many small objects that live: with Python's 700, looking among them for garbage takes 5
# to 8 % of the time.
gc.set_threshold(50_000)


def pytest_make_parametrize_id(val, argname):
    """Bytes are no names: gzip's hold the time, and the workers of pytest-xdist must agree."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture
def optimized():
    """Compiles as users do: for tests that read a cost or a speed."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def pytest_unconfigure():
    if _OWNER:
        shutil.rmtree(os.environ["FEDLITE_TEST_CACHE"], ignore_errors=True)
