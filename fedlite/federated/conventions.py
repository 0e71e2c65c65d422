"""What FedOBD's comparison costs, in closed form: by the authors' count and as encoded.

FedOBD (arXiv 2208.05174) reports megabytes that its authors compute from logs. These are the
formulas of their script of May 2023, and of a later one for FedDropoutAvg, whose downloads the
first left out. With P parameters, W clients of which K take part in a round, R rounds, E
rounds of all clients in the second stage, a dropout rate d, and quantised values of b bits:

    FedAvg           4 P (2 R W + W)               all clients take part
    FedPAQ           P (R K + 4 R K + 4 W)         8 bits up, 32 bits down
    FedDropoutAvg    4 P ((1 - d) R K + R K + W)   values sent, without their places
    SMAFD            4 P ((1 - d) (R K + R) + W)   one broadcast a round, not K
    FedOBD-SQ        P ((1 - d) R K + R K + 2 E W + 4 W)   8 bits both ways
    FedOBD           P b / 8 ((1 - d) R K + R K + 2 E W) + 4 P W

4 P W is a broadcast to all clients before the first round. Signs, norms, offsets, levels and
which blocks were sent are not charged. `Count.as_encoded` is what fedlite's codecs write in the
same runs: signs and all side information count, and so does every client's download, but
nothing is sent before a client takes part. Both charge block dropout its whole budget of
(1 - d) P values, of which a client's blocks leave a little; SMAFD's tensors exceed it a little.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from fedlite import wire

MEGABYTE = 2**20  # The authors' megabyte.
_FLOAT = 32
_FEDPAQ = 8  # Bits of a value without its sign.


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One data set of the comparison.

    Attributes:
      tensors: the number of entries of each tensor of the model.
      blocks: the number of its semantic blocks.
      clients: W.
      cohort: K.
      rounds: R.
      stage2_rounds: E.
      dropout_rate: d.
    """

    tensors: tuple[int, ...]
    blocks: int
    clients: int
    cohort: int
    rounds: int
    stage2_rounds: int
    dropout_rate: float

    @property
    def params(self) -> int:
        """P."""
        return sum(self.tensors)


class Count(NamedTuple):
    """What a method costs in a comparison: all clients, all rounds, both ways.

    Attributes:
      method: its name.
      cohort: clients of a round (FedOBD: of the first stage).
      messages: as the authors count them.
      authors: bytes by the authors' count.
      with_signs: these, and one bit for the sign of each quantised value.
      as_encoded: bytes as fedlite encodes them.
    """

    method: str
    cohort: int
    messages: int
    authors: float
    with_signs: float
    as_encoded: float


class _Transfer(NamedTuple):
    """Messages of one kind.

    Attributes:
      messages: how many there are.
      authors: how many of them the authors charge.
      share: of the model's values that each holds.
      bits: of a value, without a sign that is coded apart.
      signs: bits of that sign.
      scalars: side information of each tensor, in scalars of 4 bytes.
      extra: further bytes of each message.
    """

    messages: int
    authors: int
    share: float = 1.0
    bits: int = _FLOAT
    signs: int = 0
    scalars: int = 0
    extra: int = 0


def counts(comparison: Comparison, bits: Sequence[int] = (5, 6, 7, 8)) -> list[Count]:
    """FedAvg and FedOBD's other baselines, FedOBD-SQ, and FedOBD at each number of bits.

    Args:
      comparison: the data set.
      bits: of FedOBD's quantised values without their sign, ceil(log2(q + 1)) for q levels; a
        mean over tensors and rounds in the paper, the same everywhere here.
    """
    everyone, cohort, rounds = comparison.clients, comparison.cohort, comparison.rounds
    keep = 1 - comparison.dropout_rate
    all_turns, turns = rounds * everyone, rounds * cohort
    start = _Transfer(messages=0, authors=everyone)
    fedpaq = {"bits": _FEDPAQ, "signs": 1, "scalars": len(wire.Levels255.side_dtypes)}
    tensor_ids = -(-len(comparison.tensors) // 8)

    def count(method, transfers, cohort=cohort):
        # The authors' number of messages is that of their count of bytes but for SMAFD, where
        # a round's broadcast is charged once and yet K messages are counted.
        messages = sum(max(t.messages, t.authors) for t in transfers)
        return Count(
            method,
            cohort,
            messages,
            sum(_authors_bytes(t, comparison.params, signs=False) for t in transfers),
            sum(_authors_bytes(t, comparison.params, signs=True) for t in transfers),
            sum(_encoded_bytes(t, comparison.tensors) for t in transfers),
        )

    def two_stages(method, quantised):
        late = 2 * comparison.stage2_rounds * everyone
        block_ids = -(-comparison.blocks // 8)
        transfers = (
            start,
            _Transfer(turns, turns, **quantised),
            _Transfer(turns, turns, keep, **quantised, extra=block_ids),
            _Transfer(late, late, **quantised),
        )
        return count(method, transfers)

    plain, dropped = _Transfer(turns, turns), _Transfer(turns, turns, keep)
    return [
        count("FedAvg, all clients", (start, _Transfer(2 * all_turns, 2 * all_turns)), everyone),
        count("FedAvg, same cohort", (start, plain, plain)),
        count("FedPAQ", (start, plain, _Transfer(turns, turns, **fedpaq))),
        count("FedDropoutAvg", (start, plain, dropped)),
        count("SMAFD", (start, _Transfer(turns, rounds, keep, extra=tensor_ids), dropped)),
        two_stages("FedOBD-SQ", fedpaq),
        *(
            two_stages(
                f"FedOBD, {b} bits",
                {"bits": b, "signs": 1, "scalars": len(wire.NNADQ.side_dtypes)},
            )
            for b in bits
        ),
    ]


def _authors_bytes(transfer: _Transfer, params: int, *, signs: bool) -> float:
    bits = transfer.bits + (transfer.signs if signs else 0)
    return transfer.authors * transfer.share * params * bits / 8


def _encoded_bytes(transfer: _Transfer, tensors: Sequence[int]) -> float:
    bits = transfer.bits + transfer.signs
    model = sum(-(-size * bits // 8) + 4 * transfer.scalars for size in tensors)
    return transfer.messages * (transfer.share * model + transfer.extra)
