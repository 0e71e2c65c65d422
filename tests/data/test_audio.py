"""Tests of log-mel features."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlite.data import audio
from fedlite.errors import UserError

FRONTEND = audio.Frontend(rate=8000, mels=12)


def noise(samples, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(-20000, 20000, samples).astype(np.int16)


def mel(hz):
    return 2595 * np.log10(1 + hz / 700)


def centres(frontend):
    """Of the triangles in Hz: evenly spaced in mel from 20 Hz to half the rate."""
    low, high = mel(20), mel(frontend.rate / 2)
    steps = (np.arange(frontend.mels) + 1) / (frontend.mels + 1)
    return 700 * (10 ** ((low + (high - low) * steps) / 2595) - 1)


def reference(pcm):
    """Log-mel at 8 kHz with 12 mels, one frame, one mel and one bin after another, in float64."""
    window, hop, size = 200, 80, 256
    edges = np.concatenate([[20], centres(FRONTEND), [4000]])
    found = []
    for begin in range(0, len(pcm) - window + 1, hop):
        frame = pcm[begin : begin + window] / 32768
        frame = frame * [0.5 - 0.5 * np.cos(2 * np.pi * n / window) for n in range(window)]
        power = np.abs(np.fft.fft(np.concatenate([frame, np.zeros(size - window)]))) ** 2
        energies = []
        for left, centre, right in zip(edges, edges[1:], edges[2:]):
            energy = 0.0
            for index in range(size // 2 + 1):
                hz = index * 8000 / size
                if left < hz <= centre:
                    energy += power[index] * (hz - left) / (centre - left)
                elif centre < hz < right:
                    energy += power[index] * (right - hz) / (right - centre)
            energies.append(np.log(max(energy, 1e-10)))
        found.append(energies)
    return np.array(found)


def test_log_mel_is_what_the_definition_says():
    pcm = noise(700)
    pcm[400:] //= 4000  # From loud to next to nothing.
    found = jax.jit(audio.log_mel, static_argnums=1)(pcm, FRONTEND)
    assert found.shape == (7, 12) and found.dtype == np.float32
    np.testing.assert_allclose(found, reference(pcm), atol=2e-4)


def test_silence_is_at_the_floor():
    found = audio.log_mel(np.zeros(200, np.int16), FRONTEND)
    np.testing.assert_allclose(found, np.log(1e-10), rtol=1e-6)


def test_floats_within_one_are_the_same_as_int16():
    pcm = noise(300)
    whole = audio.log_mel(pcm, FRONTEND)
    np.testing.assert_array_equal(whole, audio.log_mel(pcm / np.float32(32768), FRONTEND))


@pytest.mark.parametrize("frontend", [audio.Frontend(8000, 40), audio.Frontend(16000, 80)])
def test_a_tone_is_in_the_band_of_its_frequency(frontend):
    for band in (5, frontend.mels // 2, frontend.mels - 2):
        # Where triangles are narrower than a window's main lobe, a neighbour may have as much.
        hz, near = centres(frontend)[band], 1 if band == 5 else 0
        tone = np.sin(2 * np.pi * hz * np.arange(frontend.window) / frontend.rate)
        energies = np.asarray(audio.log_mel(tone, frontend))[0]
        assert abs(int(energies.argmax()) - band) <= near
        far = np.abs(np.arange(frontend.mels) - band) > 8
        assert energies[far].max() < energies[band] - np.log(1e3)


def test_triangles_sum_to_one_between_the_outer_centres():
    for frontend in (FRONTEND, audio.Frontend(16000, 80)):
        weights = audio.mel_filterbank(frontend)
        assert weights.shape == (frontend.fft_size // 2 + 1, frontend.mels)
        assert weights.min() == 0 and weights.max() <= 1
        hz = np.arange(len(weights)) * frontend.rate / frontend.fft_size
        middle = centres(frontend)
        inside = (hz >= middle[0]) & (hz <= middle[-1])
        np.testing.assert_allclose(weights[inside].sum(axis=1), 1, atol=1e-5)
        assert not weights[hz <= 20].any()


@pytest.mark.parametrize("mels", [0, -1, 128])
def test_a_filterbank_without_energy_is_refused(mels):
    with pytest.raises(UserError, match=r"^mels.*128 is too fine|^mels must be at least 1"):
        audio.mel_filterbank(audio.Frontend(8000, mels))


@given(st.integers(0, 2000))
def test_frames_are_the_windows_that_fit(samples):
    expected = len(range(0, samples - 200 + 1, 80)) if samples >= 200 else 0
    assert FRONTEND.frames(samples) == expected


def test_window_and_hop_by_hand():
    assert (FRONTEND.window, FRONTEND.hop, FRONTEND.fft_size) == (200, 80, 256)
    wide = audio.Frontend(16000, 80)
    assert (wide.window, wide.hop, wide.fft_size) == (400, 160, 512)


def test_normalization_by_hand():
    features = np.array([[[1.0, 7.0], [3.0, 7.0], [99.0, -5.0]]], np.float32)
    found = audio.normalize(features, np.array([2]))
    np.testing.assert_array_equal(found, [[[-1, 0], [1, 0], [0, 0]]])
    # Deviations of next to nothing are not blown up.
    tiny = np.array([[[1e-5], [-1e-5]]], np.float32)
    np.testing.assert_allclose(audio.normalize(tiny, np.array([2]))[0, :, 0], [0.01, -0.01], 1e-6)


def test_features_of_a_corpus_do_not_depend_on_the_batch():
    lengths = [300, 1000, 200, *range(400, 415)]
    recordings = [noise(length, seed) for seed, length in enumerate(lengths)]
    batches = list(audio.featurize(iter(recordings), FRONTEND, max_frames=13))
    assert [len(x) for x, _ in batches] == [16, 2]
    features, frames = (np.concatenate(parts) for parts in zip(*batches))
    assert features.shape == (18, 13, 12) and features.dtype == np.float16
    assert frames.dtype == np.int32
    assert frames.tolist() == [2, 11, 1, *[3] * 15]
    for x, count, pcm in zip(features, frames, recordings):
        alone = reference(pcm)
        expected = (alone - alone.mean(axis=0)) / np.maximum(alone.std(axis=0), 1e-3)
        np.testing.assert_allclose(x[:count], expected, atol=4e-3)
        assert not x[count:].any()


@pytest.mark.parametrize(
    ("pcm", "reason"),
    [
        (np.zeros(0, np.int16), "empty audio"),
        (np.full(500, -3, np.int16), "silent audio"),
        (np.r_[np.zeros(500), np.nan], "audio with NaN or infinite samples"),
        (np.r_[np.zeros(500), -np.inf], "audio with NaN or infinite samples"),
        (noise(199), "audio shorter than a frame"),
        (noise(200), ""),
    ],
)
def test_faults(pcm, reason):
    assert audio.fault(pcm, FRONTEND) == reason
