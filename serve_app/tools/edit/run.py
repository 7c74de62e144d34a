"""Makes the planned pictures, a few at once, and each of them once, however often the command is stopped."""

import asyncio
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from serve_app.errors import EditFailed, ServiceError
from serve_app.tools.connection import find_connection
from serve_app.tools.edit.animation import animate
from serve_app.tools.edit.arguments import EditArguments
from serve_app.tools.edit.client import FATAL, Answer, EditClient
from serve_app.tools.edit.plan import Plan, Planned, make_plan
from serve_app.tools.edit.record import Record, open_record
from serve_app.tools.edit.report import Report, Result

_PICTURE_FIELD = re.compile(r"input\.(image|images\[(?P<index>[0-9]{1,3})\])(?= )")

EXISTS = "exists, but was not made with these settings: --overwrite replaces it, --out and --name put it elsewhere"


def run_edit(arguments: EditArguments) -> bool:
    """Make the pictures and print the summary. Returns whether none failed.

    Raises:
        UsageError: the arguments cannot be used.
        ServiceError: the service cannot be reached, or rejects all requests.
        OSError: the output cannot be written.
        KeyboardInterrupt: after Ctrl-C; jobs that the service has accepted continue there.
    """
    plan, connection = make_plan(arguments), find_connection(arguments.url, arguments.key)
    connection.check()
    report = Report(len(plan.pictures), arguments.out)
    with open_record(arguments.out) as record:
        try:
            with report:
                asyncio.run(_make_all(plan, arguments, EditClient(connection), record, report))
        except KeyboardInterrupt:
            report.ended_by = "interrupted"
            raise
        except (ServiceError, OSError) as problem:
            report.ended_by = str(problem)
            raise
        finally:
            print(report.document() if arguments.json else report.summary())
    return not report.failed


async def _make_all(plan: Plan, arguments: EditArguments, client: EditClient, record: Record, report: Report) -> None:
    run = EditRun(plan, arguments, client, record, report)
    async with client:
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(arguments.jobs):
                    workers.create_task(run.work())
        except ExceptionGroup as problems:
            raise problems.exceptions[0] from None
    run.animate()


class EditRun:
    """The pictures of a plan, taken by any number of workers."""

    def __init__(
        self, plan: Plan, arguments: EditArguments, client: EditClient, record: Record, report: Report
    ) -> None:
        self._plan = plan
        self._arguments = arguments
        self._client = client
        self._record = record
        self._report = report
        self._waiting = iter(plan.pictures)

    async def work(self) -> None:
        """Make pictures until none waits.

        Raises:
            ServiceError: other requests would fail as well.
            OSError: a picture cannot be written.
        """
        for planned in self._waiting:
            self._report.add(await self._make(planned))

    async def _make(self, planned: Planned) -> Result:
        result = Result(str(planned.source.path), str(planned.file), "failed")
        try:
            request = self._plan.request(planned)
        except OSError as problem:
            return replace(result, note=f"{problem.filename}: {problem.strerror}")
        is_redrawn = self._plan.is_random and self._arguments.overwrite
        if self._record.holds(planned.file, request.key) and not is_redrawn:
            return replace(result, status="skipped")
        if planned.file.exists() and not self._arguments.overwrite:
            return replace(result, note=f"{planned.file} {EXISTS}")
        try:
            answer = await self._answer(request.body, request.key)
        except FATAL:
            raise
        except ServiceError as problem:
            return replace(result, note=name_file(str(problem), self._plan.files(planned)))
        self._record.write(planned.file, request.key, answer.data)
        note = _note(answer)
        return replace(
            result, status="made", job=answer.job_id, seed=answer.seed, final_prompt=answer.final_prompt, note=note
        )

    async def _answer(self, body: Mapping[str, object], key: str) -> Answer:
        timeout_s = self._arguments.timeout
        try:
            async with asyncio.timeout(timeout_s):
                return await self._client.edit(body, self._record.key_to_send(key, is_random=self._plan.is_random))
        except TimeoutError:
            message = (
                f"not finished within {timeout_s:g} s. The same command waits for it again; --timeout waits longer."
            )
            raise ServiceError(message) from None
        except EditFailed:
            self._record.add_failure(key)
            raise

    def animate(self) -> None:
        """Write the animation of each orbit of which all views are there.

        Raises:
            OSError: it cannot be written.
        """
        absent = {result.file for result in self._report.results if result.status == "failed"}
        orbits: dict[Path, list[Planned]] = {}
        for planned in self._plan.pictures:
            if planned.animation is not None:
                orbits.setdefault(planned.animation, []).append(planned)
        for file, views in orbits.items():
            if not absent & {str(view.file) for view in views}:
                self._report.add_animation(self._animate(file, views))

    def _animate(self, file: Path, views: Sequence[Planned]) -> Result:
        result = Result(str(views[0].source.path), str(file), "failed")
        frames = [view.file for view in views]
        key = hashlib.sha256(b"".join(hashlib.sha256(frame.read_bytes()).digest() for frame in frames)).hexdigest()
        if self._record.holds(file, key):
            return replace(result, status="skipped")
        if file.exists() and not self._arguments.overwrite:
            return replace(result, note=f"{file} {EXISTS}")
        self._record.write(file, key, animate(frames, file.suffix.removeprefix(".")))
        return replace(result, status="made")


def name_file(message: str, files: Sequence[Path]) -> str:
    """The message, with the name of the file instead of the field in which it was sent, if it begins with this. The
    first file is "it", since the line of its failure begins with its name."""
    found = _PICTURE_FIELD.match(message)
    if found is None or (index := int(found["index"] or 0)) >= len(files):
        return message
    return f"{files[index] if index > 0 else 'it'}{message[found.end() :]}"


def _note(answer: Answer) -> str | None:
    """Why the prompt was not rewritten, if it should have been."""
    rewrite = answer.rewrite
    return (
        None if rewrite is None or rewrite.get("rewritten") is not None else f"not rewritten: {rewrite.get('reason')}"
    )
