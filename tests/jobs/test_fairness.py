"""Whose job is next: clients take turns, and the jobs of each keep their order, also in the engine."""

import asyncio
import threading
from dataclasses import replace
from typing import cast

import pytest

from serve_app.editor.engine.engine import Engine
from serve_app.editor.engine.ticket import ProgressChannel, Ticket
from serve_app.edits.fair_editor import FairEditor
from serve_app.edits.job import JobSpec
from serve_app.edits.request import EditRequest, EditResult, Pictures, SharedPictures
from serve_app.edits.service import OnProgress
from tests.editor.engine.harness import TOKENS_OF_64_PX, running
from tests.fakes import FakeEditor, FakeModel, picture
from tests.jobs.conftest import Stores, async_test
from tests.jobs.replicas import Replica, replica_on, spec
from tests.waiting import until_async


def job_of(client: str, number: int) -> JobSpec:
    job = spec(f"{client} {number}", client=client)
    return replace(job, edits=tuple(replace(edit, client=client) for edit in job.edits))


async def starts_until_all_of(client: str, number: int, editor: FakeEditor) -> list[str]:
    """The clients of the jobs in the order of their starts, until so many of one client's have started. One job ends
    after the other."""
    assert editor.gate is not None
    while (started := [job.prompt.split()[0] for job in editor.requests]).count(client) < number:
        editor.gate.release()
        await num_started(editor, len(started) + 1)
    return started


async def num_started(editor: FakeEditor, number: int) -> None:
    await until_async(lambda: len(editor.requests) >= number)


@async_test
@pytest.mark.parametrize("max_active", [1, 3, 8])
async def test_four_jobs_behind_a_hundred_of_another_client_start_before_its_twelfth(
    stores: Stores, max_active: int
) -> None:
    editor = FakeEditor(gate=asyncio.Semaphore(0))
    async with replica_on(stores.open(), editor, max_active_jobs=max_active) as service:
        for number in range(100):
            await service.submit(job_of("first", number), [(picture(),)])
        for number in range(4):
            await service.submit(job_of("second", number), [(picture(),)])
        await num_started(editor, max_active)
        started = await starts_until_all_of("second", 4, editor)
        assert started.count("first") < 12
        for client in ("first", "second"):
            numbers = [int(job.prompt.split()[1]) for job in editor.requests if job.prompt.startswith(client)]
            assert sorted(numbers) == list(range(len(numbers)))
            assert max_active > 1 or numbers == sorted(numbers)


@async_test
async def test_the_order_is_fair_after_a_takeover(stores: Stores) -> None:
    async with replica_on(stores.open(), FakeEditor(gate=asyncio.Semaphore(0)), max_active_jobs=1) as first:
        await submit_all(first, "first", 40)
        await submit_all(first, "second", 4)
    editor = FakeEditor(gate=asyncio.Semaphore(0))
    async with replica_on(stores.open(), editor, max_active_jobs=6):
        await stores.let_pass(1.5)
        await num_started(editor, 6)
        started = await starts_until_all_of("second", 4, editor)
        assert started.count("first") < 12


async def submit_all(service: Replica, client: str, number: int) -> None:
    for each in range(number):
        await service.submit(job_of(client, each), [(picture(),)])


class EngineEditor:
    """An EditorPort over an engine, as the Editor deployment is."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def edit(
        self, request: EditRequest, pictures: SharedPictures, on_progress: OnProgress, timeout_s: float | None = None
    ) -> EditResult:
        ticket = Ticket(request, cast(Pictures, pictures), timeout_s)
        channel = ProgressChannel(ticket)
        self._engine.submit(ticket)
        try:
            async for progress in channel.until_end():
                on_progress(progress)
            return ticket.future.result()
        finally:
            ticket.cancel()


@async_test
@pytest.mark.parametrize("num_at_once", [1, 3, 8])
async def test_four_jobs_behind_a_hundred_of_another_client_begin_before_its_twelfth_in_the_engine(
    stores: Stores, num_at_once: int
) -> None:
    model = FakeModel(gate=threading.Semaphore(0))
    with running(model, max_pack_tokens=num_at_once * TOKENS_OF_64_PX) as engine:
        async with replica_on(stores.open(), FairEditor(EngineEditor(engine))) as service:
            await submit_all(service, "first", 100)
            await submit_all(service, "second", 4)
            await until_async(lambda: engine.stats.waiting + engine.stats.running == 56 + 4)
            assert model.gate is not None
            model.gate.release(1000)
            await until_async(lambda: "second 3" in begun(model))
            before = begun(model)[: begun(model).index("second 3")]
            assert "second 0" in before
            assert sum(name.startswith("first") for name in before) < 12


def begun(model: FakeModel) -> list[str]:
    return [name for names in model.begun for name in names]
