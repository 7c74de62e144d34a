"""The memory of a running service's processes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import psutil

from tests.service.load import processes

SAMPLE_EVERY_S = 0.5
TOLERANCE_MIB = 64.0
"""By which a process may have grown when an attack is over."""


def private_mib(root_pid: int) -> dict[str, float]:
    """Resident MiB of each process of the service by its name and pid: those of Ray Serve, and the processes that these
    started. Without what they share: the pages of Ray's object store, whose size is fixed, would count in each process
    that has read them, for good."""
    found = {}
    for title, process in processes(root_pid).items():
        name, _, pid = title.removeprefix("ServeReplica:camera-edit:").rpartition(" ")
        with contextlib.suppress(psutil.Error):
            found[f"{name} {pid}"] = _private_mib(process)
            for child in process.children(recursive=True):
                found[f"{name}'s child {child.pid}"] = _private_mib(child)
    return found


def _private_mib(process: psutil.Process) -> float:
    memory = process.memory_info()
    return float(memory.rss - memory.shared) / 2**20


@dataclass
class Footprint:
    """The memory of each process by its name and pid, in MiB."""

    root_pid: int
    start: dict[str, float] = field(default_factory=dict)
    peak: dict[str, float] = field(default_factory=dict)
    end: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.start = private_mib(self.root_pid)

    def sample(self) -> float:
        """Note the memory now; returns the sum of all processes."""
        self.end = private_mib(self.root_pid)
        for name, mib in self.end.items():
            self.peak[name] = max(mib, self.peak.get(name, 0.0))
        return sum(self.end.values())

    @contextlib.asynccontextmanager
    async def sampling(self, most_growth_mib: float) -> AsyncIterator[asyncio.Event]:
        """Sample in the background; the event is set when the sum of all processes has grown by `most_growth_mib`."""
        exceeded, most_mib = asyncio.Event(), sum(self.start.values()) + most_growth_mib

        async def repeat() -> None:
            while True:
                if await asyncio.to_thread(self.sample) > most_mib:
                    exceeded.set()
                await asyncio.sleep(SAMPLE_EVERY_S)

        task = asyncio.create_task(repeat())
        try:
            yield exceeded
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    @property
    def growth(self) -> dict[str, float]:
        """By how many MiB each process has grown. One that was started meanwhile is compared with the largest of its
        name that was there at the start."""
        largest: dict[str, float] = {}
        for name, mib in self.start.items():
            role = name.rpartition(" ")[0]
            largest[role] = max(mib, largest.get(role, 0.0))
        return {
            name: mib - self.start.get(name, largest.get(name.rpartition(" ")[0], mib))
            for name, mib in self.end.items()
        }

    @property
    def grown(self) -> dict[str, float]:
        """Those that have grown by more than `TOLERANCE_MIB`."""
        return {name: mib for name, mib in self.growth.items() if mib > TOLERANCE_MIB}

    async def settle(self, timeout_s: float, work: Callable[[], object]) -> None:
        """Wait until no process has grown by more than `TOLERANCE_MIB`, or the time is over.

        Args:
            work: sends a few ordinary requests. Python frees what refers to itself only as new objects are made.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        await asyncio.to_thread(self.sample)
        while self.grown and asyncio.get_running_loop().time() < deadline:
            await asyncio.to_thread(work)
            await asyncio.sleep(SAMPLE_EVERY_S)
            await asyncio.to_thread(self.sample)
