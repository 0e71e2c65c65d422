"""Log-mel features of speech: frames, power spectrum, mel filterbank, logarithm, normalisation.

A frame is 25 ms of the signal under a Hann window, and a frame begins every 10 ms; there is no
padding at the ends, so a signal of n samples has 1 + (n - window) // hop frames. The filterbank is
triangular with centres that are evenly spaced on HTK's mel scale,

  mel(f) = 2595 log10(1 + f / 700),

between 20 Hz and half the sampling rate; each triangle rises and falls linearly in Hz, has height 1
and ends at its neighbours' centres. Energies are floored before the logarithm. At last every
utterance is normalised: each mel has mean 0 and variance 1 over the utterance's own frames.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from fedlite.errors import UserError

# Raised when features change, so that caches of older ones are not believed.
VERSION = 1

_WINDOW_SECONDS, _HOP_SECONDS = 0.025, 0.010
_LOWEST_HZ = 20.0
# Of an energy; a full-scale 16-bit tone has about 1e3, its quantisation noise about 1e-8.
_FLOOR = 1e-10
_INT16 = 32768.0
# A mel that does not vary, such as one above what the recording holds, becomes 0 and not noise.
_LEAST_DEVIATION = 1e-3

# Recordings are padded to a multiple of so many seconds, and their number to a whole batch, so that
# a corpus needs few compiled programs.
_PADDING_SECONDS = 4
_BATCH = 16


@dataclasses.dataclass(frozen=True)
class Frontend:
    """What the features of a recording are computed with; lengths are in samples.

    Attributes:
      rate: samples a second.
      mels: channels of the filterbank.
    """

    rate: int
    mels: int

    @property
    def window(self) -> int:
        """Samples of a frame."""
        return round(_WINDOW_SECONDS * self.rate)

    @property
    def hop(self) -> int:
        """Samples between the beginnings of two frames."""
        return round(_HOP_SECONDS * self.rate)

    @property
    def fft_size(self) -> int:
        """The power of two that holds a window."""
        return 1 << (self.window - 1).bit_length()

    def frames(self, samples):
        """Frames of a recording of so many samples (an int or an integer array)."""
        return np.maximum(0, 1 + (samples - self.window) // self.hop)


@functools.cache
def mel_filterbank(frontend: Frontend) -> np.ndarray:
    """The filterbank, float32 [fft_size // 2 + 1, mels]; see the module's text for its formula.

    Raises:
      UserError: `mels` is out of range, or so large that a triangle falls between two bins.
    """
    if frontend.mels < 1:
        raise UserError(f"mels must be at least 1, got {frontend.mels}")
    low, high = (2595 * np.log10(1 + hz / 700) for hz in (_LOWEST_HZ, frontend.rate / 2))
    edges = 700 * (10 ** (np.linspace(low, high, frontend.mels + 2) / 2595) - 1)
    bins = np.arange(frontend.fft_size // 2 + 1)[:, None] * frontend.rate / frontend.fft_size
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
    weights = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    if not weights.any(axis=0).all():
        raise UserError(
            f"mels={frontend.mels} is too fine for {frontend.rate} Hz, where a spectrum has "
            f"{len(bins)} bins: take fewer (80 at 16000 Hz, 40 at 8000 Hz)"
        )
    return weights


def log_mel(pcm: jax.Array, frontend: Frontend) -> jax.Array:
    """Log-mel energies: log(max(power spectrum x filterbank, 1e-10)).

    Args:
      pcm: [..., samples], int16, or floats within -1 and 1; at least one window long.
      frontend: how; static under jit.

    Returns:
      float32 [..., frames, mels], natural logarithms.
    """
    signal = pcm.astype(jnp.float32)
    if jnp.issubdtype(pcm.dtype, jnp.integer):
        signal = signal / _INT16
    begins = frontend.hop * np.arange(frontend.frames(pcm.shape[-1]))
    framed = signal[..., begins[:, None] + np.arange(frontend.window)]
    spectrum = jnp.fft.rfft(framed * _hann(frontend.window), n=frontend.fft_size)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    # The default precision of accelerators keeps 8 to 10 bits of a factor.
    energies = jnp.matmul(power, mel_filterbank(frontend), precision=jax.lax.Precision.HIGHEST)
    return jnp.log(jnp.maximum(energies, _FLOOR))


def normalize(features: jax.Array, frames: jax.Array) -> jax.Array:
    """Gives every mel mean 0 and variance 1 over the real frames of its utterance.

    Args:
      features: float [batch, frames, mels].
      frames: int [batch], the number of real frames, at least 1; what lies beyond counts nowhere.

    Returns:
      As `features`, 0 beyond the real frames. A mel whose deviation is below 0.001 is divided by
      0.001.
    """
    real = jnp.arange(features.shape[1]) < frames[:, None]
    real = real[..., None]
    count = frames[:, None, None]
    mean = jnp.sum(features, axis=1, keepdims=True, where=real) / count
    centred = jnp.where(real, features - mean, 0)
    deviation = jnp.sqrt(jnp.sum(jnp.square(centred), axis=1, keepdims=True) / count)
    return centred / jnp.maximum(deviation, _LEAST_DEVIATION)


def fault(pcm: np.ndarray, frontend: Frontend) -> str:
    """Why a recording has no features: a few words, or "" if it has."""
    if not len(pcm):
        return "empty audio"
    if not np.isfinite(pcm).all():
        return "audio with NaN or infinite samples"
    if pcm.min() == pcm.max():
        return "silent audio"
    if len(pcm) < frontend.window:
        return "audio shorter than a frame"
    return ""


def featurize(
    recordings: Iterable[np.ndarray], frontend: Frontend, max_frames: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Normalised features of recordings, a batch at a time, computed by JAX.

    Args:
      recordings: each int16 [samples] without a `fault` and of at most `max_frames` frames; read
        as they are needed.
      frontend: how.
      max_frames: to which features are padded.

    Yields:
      Features, float16 [examples, max_frames, mels], 0 beyond the real frames; and the number of
      real frames, int32 [examples]. In the order of the recordings.
    """
    recordings = iter(recordings)
    quantum = _PADDING_SECONDS * frontend.rate
    while group := list(itertools.islice(recordings, _BATCH)):
        lengths = np.array([len(pcm) for pcm in group])
        frames = frontend.frames(lengths).astype(np.int32)
        batch = np.zeros((_BATCH, -(-lengths.max() // quantum) * quantum), np.int16)
        for row, pcm in zip(batch, group):
            row[: len(pcm)] = pcm
        # The rows that fill the batch have a frame too: nothing is divided by 0.
        padded = np.pad(frames, (0, _BATCH - len(group)), constant_values=1)
        features = np.asarray(_features(batch, padded, frontend))[: len(group)]
        found = np.zeros((len(group), max_frames, frontend.mels), np.float16)
        found[:, : frames.max()] = features[:, : frames.max()]
        yield found, frames


@functools.partial(jax.jit, static_argnames="frontend")
def _features(pcm: jax.Array, frames: jax.Array, frontend: Frontend) -> jax.Array:
    return normalize(log_mel(pcm, frontend), frames).astype(jnp.float16)


def _hann(window: int) -> np.ndarray:
    """The periodic Hann window, float32 [window]."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)).astype(np.float32)
