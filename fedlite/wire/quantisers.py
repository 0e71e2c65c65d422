"""Quantisers of the papers: NNADQ (FedOBD), FedPAQ's 255 levels, QSGD, and the scaled sign.

All work on one array at a time. What is not finite cannot be quantised: the engine leaves such a
client out before it encodes; elsewhere an array with NaN or infinity decodes to what is not
finite, and `fedlite.wire.write` refuses it. Magnitudes below 2**-100 count as zero and those above
2**120 as that, so that no product or reciprocal is denormal: XLA takes those for zero.
"""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp

from fedlite.errors import UserError
from fedlite.wire.codecs import Codec, Encoded

_SMALLEST, _LARGEST = 2.0**-100, 2.0**120
# float32 has 24 bits of precision, so finer levels would say nothing.
_MOST_LEVELS = 2**23


@dataclasses.dataclass(frozen=True)
class NNADQ:
    """FedOBD's adaptive deterministic quantiser (Chen et al. 2023, arXiv 2208.05174).

    The range is centred, x = t + o with o = -(max t + min t) / 2, and n = max |x|. Of q levels,

        q = floor(max(1, sqrt(n 32 ln 4 / beta))),

    the largest integer up to the minimum of n / q^2 + beta log2(q) / 32 over the reals, the
    precision against the size relative to float32. |x| q / n is rounded to the nearest integer u;
    the other end sees sign(x) u n / q - o. The error is at most n / (2 q) (stochastic: n / q),
    besides float32's own. q is at most 2**23.

    The authors' code moves the range of an array without a positive entry away from zero instead;
    here every range is centred.

    A code is u and, in its lowest bit, the sign: ceil(log2(q + 1)) + 1 bits; the paper's count
    leaves out the sign. A constant array (n = 0) has codes of no bits and is exact. o, n and q
    travel besides, so that a reader need not repeat a square root to the last bit.

    Attributes:
      beta: what a bit costs against precision, above 0; smaller is finer.
      stochastic: whether u is rounded up or down at random, so that its mean is exact.
    """

    beta: float
    stochastic: bool = False
    side_dtypes = ("float32", "float32", "uint32")

    def __post_init__(self):
        if not 0 < self.beta < math.inf:
            raise UserError(f"nnadq takes a beta above 0, as in nnadq0.001, not {self.beta}")

    def encode(self, value, key=None) -> Encoded:
        """Encodes a whole array; `key` is read for stochastic rounding alone."""
        value = _limited(value)
        high = jnp.max(value, initial=-jnp.inf) if value.size else jnp.float32(0)
        low = jnp.min(value, initial=jnp.inf) if value.size else jnp.float32(0)
        offset = -(high + low) / 2
        centred = value + offset
        norm = jnp.max(jnp.abs(centred), initial=0.0)
        norm = jnp.where(norm < _SMALLEST, 0, norm)
        finest = jnp.sqrt(norm) * math.sqrt(32 * math.log(4) / self.beta)
        levels = jnp.where(norm > 0, jnp.clip(finest, 1, _MOST_LEVELS), 1).astype(jnp.uint32)
        scaled = jnp.abs(centred) / jnp.where(norm > 0, norm, 1) * levels
        if self.stochastic:
            level = jnp.floor(scaled + jax.random.uniform(key, value.shape))
        else:
            level = jnp.round(scaled)
        level = jnp.minimum(level, levels).astype(jnp.uint32)
        codes = jnp.where(norm > 0, level << 1 | (centred < 0), 0)
        level_bits = 32 - jax.lax.clz(levels).astype(jnp.int32)
        bits = jnp.where(norm > 0, level_bits + 1, 0)
        return Encoded(codes, bits, (offset, norm, levels), (norm > 0).astype(jnp.int32))

    def decode(self, encoded: Encoded):
        """sign * u * n / q - o."""
        offset, norm, levels = encoded.side
        level = (encoded.codes >> 1).astype(jnp.float32)
        signed = jnp.where(encoded.codes & 1 == 1, -level, level)
        return signed * (norm / levels) - offset

    def bits(self, side: tuple) -> int:
        """The bits of q and one for the sign, or 0 for a constant array."""
        _, norm, levels = side
        return int(levels).bit_length() + 1 if norm > 0 else 0


@dataclasses.dataclass(frozen=True)
class QSGD:
    """Unbiased stochastic rounding to uniform levels (Alistarh et al. 2017, arXiv 1610.02132).

    With s levels and n = ||x||, |x| s / n is rounded down or up at random so that its mean is
    exact; the other end sees sign(x) level n / s. The error is at most n / s. A code is the sign
    and the level, 1 + ceil(log2(s + 1)) bits; n travels besides.

    Attributes:
      levels: s, 1 to 32767.
      norm: "l2" or "max", of the whole array.
      uncharged: bits a value that the papers' convention leaves out.
    """

    levels: int
    norm: str = "l2"
    uncharged: int = 0
    side_dtypes = ("float32",)

    def __post_init__(self):
        if not 1 <= self.levels < 2**15:
            raise UserError(f"qsgd takes 1 to 32767 levels, as in qsgd15, not {self.levels}")
        if self.norm not in ("l2", "max"):
            raise ValueError(f"the norm is l2 or max, not {self.norm!r}")

    def encode(self, value, key) -> Encoded:
        """Draws the rounding of every value from `key`."""
        value = _limited(value)
        norm = largest = jnp.max(jnp.abs(value), initial=0.0)
        if self.norm == "l2":
            # Relative to the largest, squares neither overflow nor vanish.
            squares = jnp.square(value / jnp.where(largest > 0, largest, 1))
            # Any bound of the largest value is unbiased; this one has a normal reciprocal.
            norm = jnp.minimum(largest * jnp.sqrt(jnp.sum(squares)), 64 * _LARGEST)
        scaled = jnp.abs(value) / jnp.where(norm > 0, norm, 1) * self.levels
        level = jnp.floor(scaled + jax.random.uniform(key, value.shape))
        # A scaled value may exceed `levels` by a rounding error, hence the minimum.
        level = jnp.minimum(level, self.levels).astype(jnp.uint32)
        return Encoded(level << 1 | (value < 0), self.bits(()), (norm,), self.uncharged)

    def decode(self, encoded: Encoded):
        """sign * level * n / s."""
        level = (encoded.codes >> 1).astype(jnp.float32)
        signed = jnp.where(encoded.codes & 1 == 1, -level, level)
        return signed * (encoded.side[0] / self.levels)

    def bits(self, side: tuple) -> int:
        """1 + ceil(log2(s + 1))."""
        return 1 + self.levels.bit_length()


@dataclasses.dataclass(frozen=True)
class Levels255(QSGD):
    """FedPAQ's quantiser (Reisizadeh et al. 2020, arXiv 1909.13014) as FedOBD's authors run it.

    255 levels of the largest magnitude: 9 bits a value on the wire, of which the papers' convention
    counts 8. The authors quantise a message as one vector; here each array has its own norm, which
    is finer by 4 bytes an array.
    """

    levels: int = 255
    norm: str = "max"
    uncharged: int = 1


@dataclasses.dataclass(frozen=True)
class Sign:
    """The scaled sign (Karimireddy et al. 2019, arXiv 1901.09847): 1 bit a value.

    The other end sees the mean magnitude of the array with the sign of the value, + for 0.
    """

    side_dtypes = ("float32",)

    def encode(self, value, key=None) -> Encoded:
        """The signs; nothing is random."""
        value = _limited(value)
        largest = jnp.max(jnp.abs(value), initial=0.0)
        relative = jnp.abs(value) / jnp.where(largest > 0, largest, 1)
        scale = jnp.sum(relative) / max(value.size, 1) * largest
        return Encoded((value < 0).astype(jnp.uint32), 1, (scale,))

    def decode(self, encoded: Encoded):
        """sign * mean magnitude."""
        return jnp.where(encoded.codes == 1, -encoded.side[0], encoded.side[0])

    def bits(self, side: tuple) -> int:
        """1."""
        return 1


def parse_quantiser(name: str) -> Codec | None:
    """The quantiser of a config's name, None where it is the name of none.

    "nnadq0.001" is NNADQ with that beta and "nnadq0.001s" its stochastic form, "fedpaq" the 255
    levels, "qsgd15" QSGD with 15 levels, "sign" the scaled sign.
    """
    if match := re.fullmatch(r"nnadq(\d+(?:\.\d+)?(?:e-?\d+)?)(s?)", name):
        return NNADQ(float(match[1]), bool(match[2]))
    if match := re.fullmatch(r"qsgd(\d{1,5})", name):
        return QSGD(int(match[1]))
    return {"fedpaq": Levels255(), "sign": Sign()}.get(name)


def _limited(value):
    value = jnp.float32(value)
    limited = jnp.clip(value, -_LARGEST, _LARGEST)
    return jnp.where(
        jnp.isfinite(value), jnp.where(jnp.abs(value) < _SMALLEST, 0, limited), jnp.nan
    )
