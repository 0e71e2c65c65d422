"""The cost meter: bytes of all clients and rounds, accumulated on the host in Python ints."""

import base64
from typing import Any

import numpy as np

from fedlite.federated.engine import RoundResult


class Meter:
    """Sums up what travelled.

    Attributes:
      down, up: bytes of all rounds in either direction, as encoded.
      side: how many of both are side information (norms, offsets, masks).
      once: bytes sent to clients once in their life.
      client_rounds, uploads: messages down and up; fewer are up where clients do not answer.
    """

    def __init__(self, population: int):
        self.down = self.up = self.side = self.once = self.client_rounds = self.uploads = 0
        self.once_per_client = 0
        self._seen = np.zeros(population, bool)

    def add(self, result: RoundResult):
        """Charges a round."""
        self.down += int(result.down.sum())
        self.up += int(result.up.sum())
        self.side += int(result.side.sum())
        self.client_rounds += len(result.ids)
        self.uploads += len(result.ids) - result.failed - result.stragglers
        self.once += result.once * int((~self._seen[result.ids]).sum())
        self.once_per_client = max(self.once_per_client, result.once)
        self._seen[result.ids] = True

    @property
    def total(self) -> int:
        """All bytes so far."""
        return self.down + self.up + self.once

    def summary(self) -> dict[str, Any]:
        """The "bytes" of summary.json.

        "total_paper_convention" is the count that the papers share (papers.md 6.8): the
        payload of every round both ways, without side information and without what is sent
        once.
        """
        return {
            "down_per_client_round": _exact(self.down, max(self.client_rounds, 1)),
            "up_per_client_round": _exact(self.up, max(self.uploads, 1)),
            "total": self.total,
            "total_paper_convention": self.down + self.up - self.side,
            "once_per_client": self.once_per_client,
        }

    def save(self) -> dict[str, Any]:
        """The meter as JSON values."""
        names = ("down", "up", "side", "once", "client_rounds", "uploads", "once_per_client")
        seen = base64.b64encode(np.packbits(self._seen).tobytes()).decode()
        return {**{name: getattr(self, name) for name in names}, "seen": seen}

    def load(self, saved: dict[str, Any]):
        """Restores what `save` returned."""
        for name, value in saved.items():
            if name != "seen":
                setattr(self, name, int(value))
        bits = np.frombuffer(base64.b64decode(saved["seen"]), np.uint8)
        self._seen = np.unpackbits(bits, count=len(self._seen)).astype(bool)


def _exact(total: int, count: int) -> int | float:
    """The mean, an int where it is whole."""
    return total // count if total % count == 0 else total / count
