"""The Jobs deployment: every method of the port reaches the JobService, once that has started."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from serve_app.config import JobSettings, SqliteStoreSettings
from serve_app.edits.job import JOBS_METHODS, JobCounts, JobsPort, JobState, RepeatKey
from serve_app.edits.request import SharedPictures
from serve_app.errors import JobNotFound
from serve_app.jobs import deployment
from serve_app.jobs.service import JobService
from serve_app.serving import handles
from serve_app.serving.handles import jobs_port
from tests.fakes import FakeEditor, picture
from tests.jobs.replicas import body, spec


class Jobs(deployment.Jobs):
    """In this process; the test closes it. Serve would await `__del__`."""

    def __del__(self) -> None:  # type: ignore[override]
        pass


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobSettings:
    monkeypatch.setattr(deployment, "join_serve_logs", lambda: None)
    monkeypatch.setattr(deployment, "EditorHandle", lambda handle: handle)
    monkeypatch.setattr(deployment, "share", SharedPictures)
    monkeypatch.setattr(handles, "put", SharedPictures)
    return JobSettings(store=SqliteStoreSettings(path=str(tmp_path / "jobs.sqlite3")))


def port_of(jobs: Jobs) -> JobsPort:
    """The port to a deployment in this process: calls go by their method's name, as Serve makes them."""

    class Handle:
        def __getattr__(self, name: str) -> SimpleNamespace:
            return SimpleNamespace(remote=getattr(jobs, name))

    return jobs_port(cast(Any, Handle()))


def test_every_method_reaches_the_service(settings: JobSettings) -> None:
    async def scenario() -> None:
        jobs = Jobs(settings, cast(Any, FakeEditor()), None, body, lambda handle: None)
        port, key = port_of(jobs), RepeatKey("key", "fingerprint")
        await port.reserve("another", "client")
        job = spec("job", repeat_key=key)
        assert await port.submit(job, [(picture(),)]) == "job"
        assert (await port.wait("job", 20)).state is JobState.COMPLETED
        assert len((await port.read("job")).outcomes) == 1
        assert list((await port.news("job", 0)).outcomes) == [0]
        assert await port.find(key) == job
        assert (await port.cancel("job")).state is JobState.COMPLETED
        with pytest.raises(JobNotFound):
            await port.retry("another", "call")
        assert await port.purge() == 0
        assert await port.counts() == JobCounts(completed=1)
        assert await port.fault() is None
        await jobs.check_health()
        await jobs._jobs.close()

    asyncio.run(scenario())


def test_a_deployment_whose_constructor_failed_ends_without_an_error() -> None:
    asyncio.run(deployment.Jobs.__del__(Jobs.__new__(Jobs)))


def test_the_service_has_the_methods_of_the_port() -> None:
    assert all(hasattr(JobService, name) for name in JOBS_METHODS)


def test_what_is_no_method_of_the_port_is_no_method_of_the_deployment() -> None:
    jobs = Jobs.__new__(Jobs)
    assert not hasattr(jobs, "start")
    assert not hasattr(jobs, "reconfigure")  # Serve would call it
