"""The memory plan of a deployment on a GPU: what it holds in GPU memory, compared with its share of the card."""

from dataclasses import dataclass
from functools import cached_property

from serve_app.config import CardSettings

GB = 1e9
_NUM_LARGEST = 3


@dataclass(frozen=True)
class Row:
    """One item in GPU memory. `num_bytes` is None where the weights' architecture is not known."""

    name: str
    num_bytes: float | None


@dataclass(frozen=True)
class GpuPlan:
    """What one replica holds on its card.

    Attributes:
        share: the fraction of the card that the replica may use, from its `num_gpus`; at most 1.
        savings: settings that would need less memory, and that the file does not use yet.
    """

    deployment: str
    rows: tuple[Row, ...]
    card: CardSettings | None
    share: float
    savings: tuple[str, ...]

    @property
    def known_bytes(self) -> float:
        return sum(row.num_bytes for row in self.rows if row.num_bytes is not None)

    @property
    def spare_bytes(self) -> float | None:
        """The share minus the known rows, negative where these exceed it; None where no card is configured."""
        return None if self.card is None else self.share * self.card.memory_gb * GB - self.known_bytes

    @property
    def fits(self) -> bool | None:
        """None if unknown: no card is configured, or the known rows fit and others have an unknown size."""
        if self.spare_bytes is None or self.spare_bytes < 0:
            return None if self.spare_bytes is None else False
        return None if any(row.num_bytes is None for row in self.rows) else True

    @cached_property
    def verdict(self) -> str:
        if self.spare_bytes is None:
            return "whether it fits is unknown: args.card is not set"
        if self.fits is None:
            return "whether it fits is unknown: a part has an unknown size"
        return (
            f"fits, with {_gb(self.spare_bytes)} to spare" if self.fits else f"does not fit by {_gb(-self.spare_bytes)}"
        )

    @property
    def table(self) -> list[str]:
        """The plan as lines: a title, the rows with sizes right-aligned, the sum, the share and the verdict."""
        figures = [(row.name, row.num_bytes) for row in self.rows]
        figures.append(
            ("sum" if self.fits is not None or self.card is None else "sum of the known rows", self.known_bytes)
        )
        if self.card is not None:
            figures.append((f"share of the card ({self.share:g})", self.share * self.card.memory_gb * GB))
        texts = [(name, "unknown" if number is None else _gb(number)) for name, number in figures]
        width, right = (max(map(len, column)) for column in zip(*texts, strict=True))
        lines = [f"  {name:<{width}}  {text:>{right}}" for name, text in texts]
        where = "a GPU" if self.card is None else self.card.name
        return [f"{self.deployment} on {where}, memory of one replica:", *lines, f"  {self.verdict}"]

    @property
    def complaint(self) -> str:
        """The error message of a plan that does not fit: by how much, the largest rows, what to do."""
        known = [row for row in self.rows if row.num_bytes is not None]
        largest = sorted(known, key=lambda row: row.num_bytes or 0, reverse=True)[:_NUM_LARGEST]
        named = ", ".join(f"{row.name} {_gb(row.num_bytes or 0)}" for row in largest)
        where = "the card" if self.card is None else self.card.name
        return (
            f"{self.deployment} needs {_gb(self.known_bytes)} and {self.verdict} in its share ({self.share:g}) of "
            f"{where}. Largest: {named}. Set {', '.join(self.savings)}, or use a larger card."
        )


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / GB:.1f} GB"
