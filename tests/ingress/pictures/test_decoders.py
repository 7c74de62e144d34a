"""Decoder processes: what they import and hold, how they end, and whose pictures are next."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from PIL import Image

from serve_app.config import AppSettings, LimitSettings, SizeSettings
from serve_app.edits.images import prepare, read_picture
from serve_app.edits.sizes import Size
from serve_app.errors import InvalidInput, ServiceUnavailable
from serve_app.ingress.app import build_app
from serve_app.ingress.pictures.decode_worker import Decoded, StoredPicture
from serve_app.ingress.pictures.decoders import Decoder, DecoderPool
from serve_app.ingress.pictures.prepare import Preparer
from tests.ingress.openai_harness import DATA_URL, PNG, Call, error_of, harness
from tests.pictures import progressive_jpeg, to_png
from tests.waiting import until, until_async

LIMITS, SIZES = LimitSettings(), SizeSettings(vae_area_px=64 * 64, condition_area_px=32 * 32)
HANG_S = 60.0


def stored(field: str = "image", content: bytes = PNG) -> StoredPicture:
    return StoredPicture(field, content)


@pytest.fixture
def pool() -> Iterator[DecoderPool]:
    with opened(1) as pool:
        yield pool


@contextmanager
def opened(num_decoders: int, start: Callable[[], Decoder] = Decoder) -> Iterator[DecoderPool]:
    pool = DecoderPool(num_decoders, start)
    try:
        yield pool
    finally:
        pool.close()


def decode(pool: DecoderPool, *pictures: StoredPicture, limits: LimitSettings = LIMITS) -> list[Decoded]:
    return asyncio.run(asyncio.wait_for(pool.decode("anna", pictures, limits, SIZES), HANG_S))


def warm_up(pool: DecoderPool) -> list[int]:
    """Wait until all processes are ready and idle; their ids."""
    until(lambda: pool.num_idle == len(pool.decoders))
    return [decoder.pid for decoder in pool.decoders]


def test_the_same_pixels_as_in_this_process(pool: DecoderPool) -> None:
    ((prepared, size),) = decode(pool, stored())
    picture = read_picture(PNG, "image", LIMITS)
    expected = prepare(picture, SIZES)
    assert size == Size(*picture.size)
    assert (prepared.vae_pixels == expected.vae_pixels).all()
    assert (prepared.condition_pixels == expected.condition_pixels).all()
    assert prepared.vae_pixels.flags.writeable


def test_a_process_imports_neither_ray_nor_the_application_nor_models() -> None:
    code = "import sys, serve_app.ingress.pictures.decode_worker; print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert "serve_app.edits.images" in modules
    assert not {"ray", "fastapi", "starlette", "httpx2", "torch", "diffusers", "transformers"} & set(modules)


def test_processes_start_with_the_pool_and_end_with_it() -> None:
    with opened(2) as pool:
        processes = [psutil.Process(pid) for pid in warm_up(pool)]
        assert len(processes) == 3
    assert not any(process.is_running() for process in processes)
    with pytest.raises(ServiceUnavailable):
        decode(pool, stored())


def test_processes_end_with_their_parent_however_it_ends() -> None:
    code = (
        "import time; from serve_app.ingress.pictures.decoders import DecoderPool; pool = DecoderPool(1);"
        "print(*[decoder.pid for decoder in pool.decoders], flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.kill()
    until(lambda: not any(psutil.pid_exists(pid) for pid in pids))


def test_an_interrupt_from_the_terminal_does_not_end_a_process(pool: DecoderPool) -> None:
    pids = warm_up(pool)
    for pid in pids:
        os.kill(pid, signal.SIGINT)
    assert decode(pool, stored())
    assert warm_up(pool) == pids


def test_a_picture_that_takes_too_long_ends_its_process_and_no_other_request(pool: DecoderPool) -> None:
    slow = stored("images[1]", progressive_jpeg(1500, 100))
    pids = warm_up(pool)
    with pytest.raises(InvalidInput) as caught:
        decode(pool, stored("images[0]"), slow, limits=LimitSettings(decode_timeout_s=0.01))
    assert caught.value.field == "images[1]"
    assert "images[1] takes more than 0.01 s to decode" in caught.value.message
    assert decode(pool, slow)
    assert len(set(warm_up(pool)) - set(pids)) == 1


def test_a_crash_is_an_error_of_its_own_picture_and_the_process_is_replaced(pool: DecoderPool) -> None:
    pids = warm_up(pool)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)

    async def scenario() -> None:
        decoding = asyncio.create_task(pool.decode("anna", [stored("url[0]")], LIMITS, SIZES))
        await until_async(lambda: len(pool.busy) == 1)
        os.kill(pool.busy[0].pid, signal.SIGSEGV)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        with pytest.raises(InvalidInput, match="cannot be decoded") as caught:
            await asyncio.wait_for(decoding, HANG_S)
        assert caught.value.field == "url[0]"
        assert await asyncio.wait_for(pool.decode("anna", [stored()], LIMITS, SIZES), HANG_S)

    asyncio.run(scenario())
    assert len(set(warm_up(pool)) - set(pids)) == 1


def test_a_process_that_cannot_start_is_no_fault_of_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    start = subprocess.Popen

    def no_memory(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    decoder = Decoder()
    decoder.kill()  # as for a client that left
    monkeypatch.setattr(subprocess, "Popen", no_memory)
    with pytest.raises(BlockingIOError):
        decoder.revive()
    for _ in range(2):
        with pytest.raises(ServiceUnavailable):
            decoder.decode([stored()], LIMITS, SIZES)
    monkeypatch.setattr(subprocess, "Popen", start)
    assert len(decoder.decode([stored()], LIMITS, SIZES)) == 1
    decoder.close()


def test_a_client_that_leaves_frees_its_process_at_once(pool: DecoderPool) -> None:
    """Its process is stopped, so that it would never answer; the neighbour's waiting set is decoded all the same."""
    pids = warm_up(pool)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)

    async def scenario() -> None:
        both = [asyncio.create_task(pool.decode(client, [stored()], LIMITS, SIZES)) for client in ("anna", "otto")]
        await until_async(lambda: len(pool.busy) == 2)
        neighbour = asyncio.create_task(pool.decode("vera", [stored()], LIMITS, SIZES))
        leaves_the_queue = asyncio.create_task(pool.decode("anna", [stored()], LIMITS, SIZES))
        await asyncio.sleep(0)
        for task in (leaves_the_queue, *both):
            task.cancel()
        assert await asyncio.wait_for(neighbour, HANG_S)
        done, _ = await asyncio.wait(both)
        assert all(task.cancelled() for task in done)

    asyncio.run(scenario())
    assert set(warm_up(pool)).isdisjoint(pids)


class Scripted(Decoder):
    """Decodes nothing: records the fields, and ends each set when the gate is released."""

    def __init__(self, started: list[str], gate: threading.Semaphore) -> None:
        self._started, self._gate = started, gate

    def decode(self, pictures: Sequence[StoredPicture], limits: LimitSettings, sizes: SizeSettings) -> list[Decoded]:
        self._started.append(pictures[0].field)
        assert self._gate.acquire(timeout=HANG_S)
        return []

    def kill(self) -> None:
        self._gate.release()

    def revive(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.mark.parametrize("num_decoders", [1, 2])
def test_one_process_is_kept_for_clients_that_have_none_and_clients_take_turns(num_decoders: int) -> None:
    started: list[str] = []
    gate = threading.Semaphore(0)

    async def scenario(pool: DecoderPool) -> None:
        def begin(*fields: str) -> list[asyncio.Task[list[Decoded]]]:
            return [asyncio.create_task(pool.decode(each[0], [stored(each)], LIMITS, SIZES)) for each in fields]

        sets = begin("a0", "a1", "a2", "a3")
        await until_async(lambda: len(started) == num_decoders)
        sets += begin("b0", "b1", "c0")
        await until_async(lambda: len(started) == num_decoders + 1)
        assert sorted(started[:num_decoders]) == ["a0", "a1"][:num_decoders]
        assert started[num_decoders:] == ["b0"]
        gate.release()
        await until_async(lambda: len(started) == num_decoders + 2)
        assert started[-1] == "c0"
        gate.release(len(sets))
        await asyncio.wait_for(asyncio.gather(*sets), HANG_S)
        assert sorted(started) == ["a0", "a1", "a2", "a3", "b0", "b1", "c0"]

    with opened(num_decoders, lambda: Scripted(started, gate)) as pool:
        asyncio.run(scenario(pool))


def test_pictures_that_wait_when_the_pool_closes_are_not_lost_without_an_answer() -> None:
    gate = threading.Semaphore(0)
    started: list[str] = []

    async def scenario(pool: DecoderPool) -> None:
        sets = [asyncio.create_task(pool.decode("a", [stored()], LIMITS, SIZES)) for _ in range(2)]
        await until_async(lambda: len(started) == 1)
        await asyncio.to_thread(pool.close)
        outcomes = await asyncio.gather(*sets, return_exceptions=True)
        assert outcomes[0] == []
        assert isinstance(outcomes[1], ServiceUnavailable)

    with opened(1, lambda: Scripted(started, gate)) as pool:
        asyncio.run(scenario(pool))


def peak_bytes(pid: int) -> int:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def test_references_are_decoded_one_after_the_other() -> None:
    """Four take no more memory than one, but for a plane of what the allocator keeps."""
    side_px = 2000
    large = to_png(Image.new("RGB", (side_px, side_px)))
    decoder = Decoder()
    try:
        decoder.decode([stored("image", large)], LIMITS, SIZES)
        one = peak_bytes(decoder.pid)
        decoder.decode([stored(f"image[{number}]", large) for number in range(4)], LIMITS, SIZES)
        assert peak_bytes(decoder.pid) < one + 4 * side_px**2
    finally:
        decoder.close()


def test_pictures_of_clients_that_left_do_not_delay_a_neighbour(tiny_settings: AppSettings, pool: DecoderPool) -> None:
    """The processes are stopped, so the two pictures would never be decoded."""
    pids = warm_up(pool)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    scene = harness(tiny_settings, api_keys=("anna:k-1", "otto:k-2", "vera:k-3"))
    app = build_app(replace(scene.backend, prepare=Preparer(tiny_settings, pool)))

    def edit(key: str) -> Call:
        return Call(app, {"prompt": "x", "image": DATA_URL}, authorization=f"Bearer {key}")

    async def scenario() -> None:
        slow = [edit("k-1"), edit("k-2")]
        await until_async(lambda: len(pool.busy) == 2)
        neighbour = edit("k-3")
        for call in slow:
            call.task.cancel()  # as Serve does when a client disconnects
        await asyncio.wait_for(neighbour.task, HANG_S)
        assert neighbour.status == 200

    asyncio.run(scenario())
    assert set(warm_up(pool)).isdisjoint(pids)


def test_a_progressive_jpeg_of_thousands_of_scans_is_a_400(tiny_settings: AppSettings) -> None:
    response = harness(tiny_settings).form(("image", progressive_jpeg(512, 4000)), ("prompt", "x"))
    assert error_of(response, 400)["message"].startswith("image has more than 100 scans.")
