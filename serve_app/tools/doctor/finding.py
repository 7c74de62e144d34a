"""The result of one check."""

from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        check: what was checked.
        message: what was found.
        fix: the command or the setting that solves the problem; None: there is no problem.
    """

    check: str
    message: str
    # Optional, as this file and installed.py also have to run in a Python that is too old for the service.
    fix: Optional[str] = None  # noqa: UP045

    @property
    def ok(self) -> bool:
        return self.fix is None
