"""The memory plan of a deployment on a GPU: what it keeps there, beside its share of the card."""

from dataclasses import dataclass
from functools import cached_property

from serve_app.config import CardSettings

GB = 1e9
_NAMED_IN_COMPLAINT = 3


@dataclass(frozen=True)
class Row:
    """One thing on the card. `num_bytes` is None where the weights' architecture is not known."""

    name: str
    num_bytes: float | None


@dataclass(frozen=True)
class GpuPlan:
    """What one replica keeps on its card.

    Attributes:
        share: the part of the card that the replica may use, by its `num_gpus`; at most one card.
        levers: settings that would make it smaller, and that the file has not used yet.
    """

    deployment: str
    rows: tuple[Row, ...]
    card: CardSettings | None
    share: float
    levers: tuple[str, ...]

    @property
    def known_bytes(self) -> float:
        return sum(row.num_bytes for row in self.rows if row.num_bytes is not None)

    @property
    def spare_bytes(self) -> float | None:
        """What the known rows leave of the share, negative where they exceed it; None where no card is named."""
        return None if self.card is None else self.share * self.card.memory_gb * GB - self.known_bytes

    @property
    def fits(self) -> bool | None:
        """None: cannot be told, since no card is named, or since an unknown row may fill what the others leave."""
        if self.spare_bytes is None or self.spare_bytes < 0:
            return None if self.spare_bytes is None else False
        return None if any(row.num_bytes is None for row in self.rows) else True

    @cached_property
    def verdict(self) -> str:
        if self.spare_bytes is None:
            return "whether it fits is unknown: args.card is not set"
        if self.fits is None:
            return "whether it fits is unknown: so is a part of it"
        return (
            f"fits, with {_gb(self.spare_bytes)} to spare" if self.fits else f"does not fit by {_gb(-self.spare_bytes)}"
        )

    @property
    def table(self) -> list[str]:
        """The plan in lines: a title, the rows with their figures right-aligned, the sum, the share and the verdict."""
        figures = [(row.name, row.num_bytes) for row in self.rows]
        figures.append(
            ("sum" if self.fits is not None or self.card is None else "sum of what is known", self.known_bytes)
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
        """For a plan that does not fit: by how much, what is largest, what to do."""
        known = [row for row in self.rows if row.num_bytes is not None]
        largest = sorted(known, key=lambda row: row.num_bytes or 0, reverse=True)[:_NAMED_IN_COMPLAINT]
        named = ", ".join(f"{row.name} {_gb(row.num_bytes or 0)}" for row in largest)
        where = "the card" if self.card is None else self.card.name
        return (
            f"{self.deployment} needs {_gb(self.known_bytes)} and {self.verdict} in its share ({self.share:g}) of "
            f"{where}. Largest: {named}. Set {', '.join(self.levers)}, or use a larger card."
        )


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / GB:.1f} GB"
