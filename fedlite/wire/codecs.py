"""Codecs: how the values of one array become codes of a few bits, and back.

A codec is a frozen dataclass, so it can be part of a static jit argument. Its fields on the
wire are what `encode` returns: scalars (`side`), then one code of `bits` bits a sent value.
"""

import dataclasses
import re
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from fedlite.errors import UserError


class Encoded(NamedTuple):
    """One encoded array.

    Attributes:
      codes: uint32, of the value's shape.
      bits: bits that a code takes, 0 to 32; a Python int or an int32 scalar.
      side: scalars of 4 bytes each that the decoder needs besides the codes.
      uncharged: how many of `bits` the papers' convention leaves out (sign bits).
    """

    codes: Any
    bits: Any
    side: tuple = ()
    uncharged: Any = 0


class Codec(Protocol):
    """A pair of pure functions, and the number of bits that they spend."""

    side_dtypes: tuple[str, ...]

    def encode(self, value, key) -> Encoded:
        """Encodes float32 `value` of any shape; `key` is for stochastic rounding."""

    def decode(self, encoded: Encoded):
        """The float32 array that the other end sees."""

    def bits(self, side: tuple) -> int:
        """Bits a code, from the side information alone: what a reader of the wire knows."""


@dataclasses.dataclass(frozen=True)
class Float32:
    """The values as they are: 32 bits."""

    side_dtypes = ()

    def encode(self, value, key=None) -> Encoded:
        """Reinterprets the floats as integers."""
        return Encoded(jax.lax.bitcast_convert_type(jnp.float32(value), jnp.uint32), 32)

    def decode(self, encoded: Encoded):
        """Bit-equal to what was encoded."""
        return jax.lax.bitcast_convert_type(encoded.codes, jnp.float32)

    def bits(self, side: tuple) -> int:
        """32."""
        return 32


@dataclasses.dataclass(frozen=True)
class HalfPrecision:
    """Rounds to a 16-bit float: "bfloat16" (8 bits of exponent) or "float16" (5)."""

    dtype: str = "bfloat16"
    side_dtypes = ()

    def encode(self, value, key=None) -> Encoded:
        """Rounds to nearest even, and to the largest finite value what is greater."""
        value = jnp.float32(value)
        if self.dtype == "float16":
            value = _saturated(value, 65504.0)
        else:
            # The greatest bfloat16, short of which a float32 would be rounded to infinity.
            value = _saturated(value, float(jnp.finfo(jnp.bfloat16).max))
        half = value.astype(self.dtype)
        return Encoded(jax.lax.bitcast_convert_type(half, jnp.uint16).astype(jnp.uint32), 16)

    def decode(self, encoded: Encoded):
        """The rounded values as float32."""
        half = jax.lax.bitcast_convert_type(encoded.codes.astype(jnp.uint16), self.dtype)
        return half.astype(jnp.float32)

    def bits(self, side: tuple) -> int:
        """16."""
        return 16


@dataclasses.dataclass(frozen=True)
class StochasticUniform:
    """Unbiased stochastic rounding to uniform levels of the largest magnitude.

    QSGD's quantiser with the maximum norm, as FedPAQ uses it (Reisizadeh et al. 2020,
    section 3): with n = max |x| and s = 2**(width - 1) - 1 levels, |x| s / n is rounded down
    or up at random so that its mean is exact; the error is at most n / s. A code is the sign
    bit and the level. Sends n besides.
    """

    width: int = 8
    side_dtypes = ("float32",)

    def __post_init__(self):
        if not 2 <= self.width <= 16:
            raise UserError(f"a uniform codec takes 2 to 16 bits a value, not {self.width}")

    def encode(self, value, key) -> Encoded:
        """Draws the rounding of every value from `key`."""
        value = _saturated(jnp.float32(value), LARGEST)
        levels = 2 ** (self.width - 1) - 1
        norm = jnp.max(jnp.abs(value), initial=0.0)
        scaled = jnp.abs(value) / jnp.where(norm > 0, norm, 1) * levels
        # A scaled value may exceed `levels` by a rounding error, hence the minimum.
        level = jnp.minimum(jnp.floor(scaled + jax.random.uniform(key, value.shape)), levels)
        sign = (value < 0).astype(jnp.uint32) << (self.width - 1)
        return Encoded(sign | level.astype(jnp.uint32), self.width, (norm,))

    def decode(self, encoded: Encoded):
        """sign * level * n / s."""
        levels = 2 ** (self.width - 1) - 1
        level = (encoded.codes & levels).astype(jnp.float32)
        negative = (encoded.codes >> (self.width - 1)) & 1
        # In this order a tiny norm is not flushed to zero before it is multiplied.
        return jnp.where(negative == 1, -level, level) / levels * encoded.side[0]

    def bits(self, side: tuple) -> int:
        """`width`."""
        return self.width


# Up to here a float32 has a reciprocal that is no denormal number, which XLA would take for 0.
LARGEST = 2.0**125


def _saturated(value, largest: float):
    """What is finite within [-largest, largest]; NaN and infinity stay, to be seen to be bad."""
    return jnp.where(jnp.isfinite(value), jnp.clip(value, -largest, largest), value)


def parse_codec(name: str) -> Codec | None:
    """The codec of a config's name: "", "float32", "bfloat16", "float16", "uniform8" and so on.

    The names of `fedlite.wire.quantisers.parse_quantiser` are known, too. Returns None for "" and
    "float32" (values travel as they are).
    """
    # That module builds on this one.
    from fedlite.wire.quantisers import parse_quantiser

    if name in ("", "float32"):
        return None
    if name in ("bfloat16", "float16"):
        return HalfPrecision(name)
    if match := re.fullmatch(r"uniform(\d{1,2})", name):
        return StochasticUniform(int(match.group(1)))
    if codec := parse_quantiser(name):
        return codec
    raise UserError(
        f"unknown codec {name!r}: use float32, bfloat16, float16, uniformB with B from 2 to 16, "
        "nnadqBETA as in nnadq0.001 (nnadq0.001s rounds stochastically), fedpaq, qsgdLEVELS as in "
        "qsgd15, or sign"
    )
