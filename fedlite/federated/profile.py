"""A trace of some rounds for TensorBoard or Perfetto, of what the host and the devices do."""

import contextlib
import pathlib
from collections.abc import Iterator

import jax


class Profiler:
    """Traces the rounds that follow the first dispatch, which compiles.

    The trace lies in `plugins/profile/TIME/` of its directory, as TensorBoard's profile plugin
    expects it (`tensorboard --logdir=DIRECTORY`, with the package xprof), and as
    `perfetto_trace.json.gz`, which ui.perfetto.dev opens.
    """

    def __init__(self, directory: pathlib.Path, rounds: int):
        """Traces `rounds` rounds, none for 0."""
        self._directory, self._left = directory, rounds
        self._warm = self._tracing = False
        self._dispatches = 0

    def limit(self, rounds: int) -> int:
        """How many of the coming `rounds` may be one dispatch, so that the trace ends on time."""
        return min(rounds, self._left) if self._warm and self._left else rounds

    @contextlib.contextmanager
    def dispatch(self, rounds: int) -> Iterator[None]:
        """Around a dispatch of so many rounds."""
        if self._warm and self._left and not self._tracing:
            jax.profiler.start_trace(self._directory, create_perfetto_trace=True)
            self._tracing = True
        if not self._tracing:
            yield
            self._warm = True
            return
        # TensorBoard takes it for a step, and tells what its time was spent on.
        with jax.profiler.StepTraceAnnotation("dispatch", step_num=self._dispatches):
            yield
        self._dispatches += 1
        self._left -= rounds
        if self._left <= 0:
            self.close()

    def close(self):
        """Ends the trace, also of fewer rounds."""
        if self._tracing:
            self._tracing, self._left = False, 0
            jax.profiler.stop_trace()
