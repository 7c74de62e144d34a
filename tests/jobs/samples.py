"""Jobs for the tests of the stores."""

from collections.abc import Sequence

import numpy as np

from serve_app.edits.camera import CameraPose
from serve_app.edits.job import JobRecord, JobSpec, JobState, Policy, RepeatKey
from serve_app.edits.request import (
    EditOutcome,
    EditRequest,
    EditResult,
    OutputFormat,
    Pictures,
    Pixels,
    PreparedPicture,
    Rewrite,
    Sampling,
)
from serve_app.edits.sizes import OutputSize, Size
from serve_app.jobs.stores.codec import dump_pictures, dump_spec
from serve_app.jobs.stores.store import UNLIMITED, ByteLimits, Store
from tests.fakes import TIMINGS, TOKENS

KEY = RepeatKey("order-17", "fingerprint")
SHORT_S = 0.2
FINAL = [state for state in JobState if state.final]


def noise(seed: int, width: int = 64, height: int = 32) -> PreparedPicture:
    """A picture of random pixels; its two sizes differ in shape and content."""
    dice = np.random.default_rng(seed)

    def draw(*shape: int) -> Pixels:
        return dice.integers(0, 256, shape, np.uint8)

    return PreparedPicture(draw(height, width, 3), draw(height // 2, width // 2, 3))


SETS: tuple[Pictures, ...] = ((noise(1), noise(2, 32, 96)), (noise(3),))


def same_pictures(some: tuple[Pictures, ...], others: tuple[Pictures, ...]) -> bool:
    """Equal in number, order, shape and every pixel."""
    return [[_parts(picture) for picture in each] for each in some] == [
        [_parts(picture) for picture in each] for each in others
    ]


def _parts(picture: PreparedPicture) -> list[tuple[tuple[int, ...], bytes]]:
    return [(pixels.shape, pixels.tobytes()) for pixels in (picture.vae_pixels, picture.condition_pixels)]


def edit(request_id: str, prompt: str = "make it snow") -> EditRequest:
    size = OutputSize(made=Size(64, 48), final=Size(60, 40))
    pose = CameraPose(azimuth=45, elevation=-30, distance=0.6)
    sampling = Sampling(seed=2**63 + 1, num_inference_steps=8, true_cfg_scale=4.1, negative_prompt="blur")
    return EditRequest(
        request_id=request_id,
        prompt=prompt,
        camera=pose,
        rewrite_prompt=True,
        sampling=sampling,
        size=size,
        output=OutputFormat("webp", 80),
        low_priority=True,
        num_previews=2,
    )


def spec(
    job_id: str = "job",
    *,
    key: RepeatKey | None = None,
    retention_s: float = 60.0,
    webhook: str | None = None,
    client: str = "",
) -> JobSpec:
    return JobSpec(
        id=job_id,
        edits=(edit(f"{job_id}/0"), edit(f"{job_id}/1", "ünïcödé 雪 ❄")),
        pictures_of=(0, 1),
        seed=7,
        policy=Policy(execution_timeout_s=12.5, ttl_s=0.1 + 0.2),
        retention_s=retention_s,
        webhook=webhook,
        input_without_pictures={"prompt": "make it snow", "seed": 7, "nested": {"list": [1, 2.5, None, True]}},
        repeat_key=key,
        client=client,
    )


def num_bytes(job: JobSpec, sets: Sequence[Pictures] = SETS) -> int:
    """What a job without outcomes counts in a store."""
    return len(dump_spec(job)) + len(dump_pictures(sets))


def record(state: JobState = JobState.IN_QUEUE, *, webhook: bool = False, ended_at: float | None = None) -> JobRecord:
    return JobRecord(state, 1_699_999_999.7654321, ended_at=ended_at, webhook_pending=webhook)


def outcome(data: bytes = b"\x89PNG\x00picture") -> EditOutcome:
    result = EditResult(data, "image/png", TIMINGS, TOKENS, worker_id="worker-1")
    return EditOutcome(result, "snow", "<sks> front view snow", 2**63 + 1, Rewrite(None, "timeout"))


async def add(
    store: Store,
    job_id: str = "job",
    *,
    owner: str = "me",
    key: RepeatKey | None = None,
    retention_s: float = 60.0,
    webhook: bool = False,
    sets: Sequence[Pictures] = SETS,
    client: str = "",
    limits: ByteLimits = UNLIMITED,
) -> str:
    job = spec(job_id, key=key, retention_s=retention_s, client=client)
    return await store.add(job, sets, record(webhook=webhook), owner, limits)


async def end(store: Store, ended_at: float, job_id: str = "job", state: JobState = JobState.COMPLETED) -> None:
    assert await store.update(job_id, "me", record(state, ended_at=ended_at))


async def is_kept(store: Store, job_id: str = "job") -> bool:
    """Whether the job is kept; fails if only a part of it is, or if its pictures are and are not needed."""
    stored = await store.record(job_id)
    is_kept = stored is not None
    assert (await store.spec(job_id) is not None) is is_kept
    assert (await store.pictures(job_id) != ()) is (stored is not None and stored.state.needs_pictures)
    return is_kept
