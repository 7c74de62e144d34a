"""The Editor deployment in this process: its adapters change while edits run."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ray import serve

from serve_app.config import AppSettings, LoraSettings
from serve_app.editor import deployment
from serve_app.editor.engine.ticket import Ticket
from serve_app.edits.images import prepare
from serve_app.edits.request import EditRequest, EditResult, LoraUse, Pixels, Sampling
from serve_app.edits.sizes import OutputSize, Size
from serve_app.errors import LoraAuditError, ServiceError, ServiceUnavailable
from tests.pictures import difference, photograph


class Editor(deployment.Editor):
    """Without Serve's batches, which need a replica. The test closes it."""

    async def _submit_batch(self, ticket: Ticket) -> ServiceError | None:
        return self._submit(ticket)

    _submit_batch.set_max_batch_size = lambda size: None  # type: ignore[attr-defined]
    _submit_batch.set_batch_wait_timeout_s = lambda seconds: None  # type: ignore[attr-defined]

    def close(self) -> None:
        self._engine.close()

    def __del__(self) -> None:
        pass


@pytest.fixture
def lora(tiny_settings: AppSettings) -> LoraSettings:
    return tiny_settings.editor.loras[1].model_copy(update={"apply": "request", "weight": 1.0})


@asynccontextmanager
async def editor_of(settings: AppSettings, *loras: LoraSettings) -> AsyncIterator[Editor]:
    editor = Editor(settings.editor.model_copy(update={"loras": (settings.editor.loras[0], *loras)}))
    try:
        yield editor
    finally:
        editor.close()


@pytest.fixture(autouse=True)
def replica(monkeypatch: pytest.MonkeyPatch) -> None:
    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="worker"))
    metrics = SimpleNamespace(finished=lambda timings: None, update=lambda engine: None)
    monkeypatch.setattr(deployment, "join_serve_logs", lambda: None)
    monkeypatch.setattr(deployment, "assigned_gpu_share", lambda: 0.0)
    monkeypatch.setattr(deployment, "EngineMetrics", lambda: metrics)
    monkeypatch.setattr(serve, "get_replica_context", lambda: context)


def config(*loras: LoraSettings) -> dict[str, Any]:
    return {"loras": [lora.model_dump() for lora in loras]}


async def draw(editor: Editor, settings: AppSettings, *loras: LoraUse, steps: int = 2) -> Pixels:
    side = Size(64, 64)
    request = EditRequest(
        request_id="id",
        prompt="x",
        size=OutputSize(side, side),
        loras=loras,
        sampling=Sampling(num_inference_steps=steps),
    )
    pictures = (prepare(photograph("astronaut", 64, 64), settings.sizes),)
    *_, result = [each async for each in editor.edit(request, pictures, None)]
    assert isinstance(result, EditResult)
    return np.asarray(Image.open(BytesIO(result.data)))


@pytest.mark.timeout(300)
def test_adapters_change_while_edits_run(tiny_settings: AppSettings, lora: LoraSettings) -> None:
    async def scenario() -> None:
        use = LoraUse("angles", 1.0)
        async with editor_of(tiny_settings) as editor:
            await editor.check_health()
            plain = await draw(editor, tiny_settings)
            with pytest.raises(ServiceUnavailable, match="no adapter angles now"):
                await draw(editor, tiny_settings, use)
            long = asyncio.create_task(draw(editor, tiny_settings, steps=12))
            await editor.reconfigure(config(lora))
            used = await draw(editor, tiny_settings, use)
            assert difference(used, plain) > 5
            running = asyncio.create_task(draw(editor, tiny_settings, use, steps=12))
            await asyncio.sleep(0)
            await editor.reconfigure(config())
            # Edits that were accepted before may still come.
            assert difference(await draw(editor, tiny_settings, use), used) <= 1
            assert difference(await long, await running) > 5
            await editor.reconfigure(config())
            with pytest.raises(ServiceUnavailable, match="no adapter angles now"):
                await draw(editor, tiny_settings, use)
            assert difference(await draw(editor, tiny_settings), plain) <= 1

    asyncio.run(scenario())


@pytest.mark.timeout(300)
def test_a_camera_adapters_weight_changes(tiny_settings: AppSettings, lora: LoraSettings) -> None:
    """The engine has the named adapter's weight; the settings' one is for edits that name none."""

    async def scenario() -> None:
        async with editor_of(tiny_settings, lora.model_copy(update={"apply": "camera"})) as editor:
            half = lora.model_copy(update={"apply": "camera", "weight": 0.5})
            loaded = editor._adapters.library.current[0][1]
            await editor.reconfigure(config(half))
            ((settings, adapter),) = editor._adapters.library.current
            assert settings.weight == 0.5
            assert adapter is loaded, "the file is the same, so it is not read again"

    asyncio.run(scenario())


@pytest.mark.timeout(300)
def test_the_first_adapter_of_a_starting_replica_is_warmed_up(tiny_settings: AppSettings, lora: LoraSettings) -> None:
    async def scenario() -> None:
        async with editor_of(tiny_settings) as editor:
            await editor.reconfigure(config())
            assert (await editor.stats()).num_steps == 0
            await editor.reconfigure(config(lora))
            assert (await editor.stats()).num_steps == 1
            await editor.check_health()
            await editor.reconfigure(config())
            await editor.reconfigure(config(lora))
            assert (await editor.stats()).num_steps == 1, "a running replica has edits to run"

    asyncio.run(scenario())


@pytest.mark.timeout(300)
def test_a_wrong_user_config_changes_nothing_in_a_running_replica(
    tiny_settings: AppSettings, lora: LoraSettings, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with editor_of(tiny_settings, lora) as editor:
            wrong = lora.model_copy(update={"name": "other", "expected_modules": 1})
            with pytest.raises(LoraAuditError):  # Serve reports a replica that does not start
                await editor.reconfigure(config(wrong))
            await editor.check_health()
            fused = lora.model_copy(update={"apply": "fused"})
            others: list[dict[str, Any]] = [config(wrong), {"lora": []}, config(fused)]
            for bad in others:
                with caplog.at_level(logging.ERROR):
                    await editor.reconfigure(bad)
                assert "the adapters stay as they were" in caplog.text
                caplog.clear()
                await draw(editor, tiny_settings, LoraUse("angles", 1.0))

    asyncio.run(scenario())
