"""Caches: bounded, keyed by content, and without effect on any picture."""

import pytest
import torch

from serve_app.config import AppSettings
from serve_app.editor.loading.load import as_edit_model, load_pipeline
from serve_app.editor.model.cache import TensorCache
from serve_app.editor.model.edit_model import EditModel
from serve_app.edits.images import prepare
from serve_app.edits.request import EditRequest, Pictures, Pixels, Sampling
from serve_app.edits.sizes import OutputSize, Size
from tests.pictures import difference, photograph

ONE_KIB = torch.zeros(256)
SIZE = Size(128, 128)


def test_the_least_recently_used_goes_first() -> None:
    cache = TensorCache(max_bytes=2 * 1024)
    for name in "ab":
        cache.put((name,), ONE_KIB)
    assert cache.get(("a",)) is not None
    cache.put(("c",), ONE_KIB)
    assert [cache.get((name,)) is not None for name in "abc"] == [True, False, True]
    assert (cache.stats.hits, cache.stats.misses, cache.stats.entries, cache.stats.held_bytes) == (3, 1, 2, 2048)


def test_what_is_larger_than_the_budget_is_not_kept() -> None:
    cache = TensorCache(max_bytes=1000)
    cache.put(("a",), ONE_KIB)
    assert cache.get(("a",)) is None
    assert cache.stats.held_bytes == 0


@pytest.fixture(scope="module")
def caching(tiny_settings: AppSettings) -> EditModel:
    return as_edit_model(load_pipeline(tiny_settings.editor), tiny_settings.editor)


def draw(model: EditModel, prompt: str, pictures: Pictures, guidance: float = 1.0) -> Pixels:
    sampling = Sampling(true_cfg_scale=guidance)
    job = EditRequest(request_id="id", prompt=prompt, sampling=sampling, size=OutputSize(SIZE, SIZE))
    return model.draw(model.begin([model.prepare(job, pictures)]))[0]


def test_a_hit_gives_the_same_picture(caching: EditModel, model: EditModel, tiny_settings: AppSettings) -> None:
    astronaut, coffee = (prepare(photograph(name), tiny_settings.sizes) for name in ("astronaut", "coffee"))
    orders: list[tuple[str, Pictures, float]] = [
        ("front", (astronaut,), 1.0),
        ("left", (astronaut,), 1.0),  # its picture is cached
        ("front", (astronaut,), 1.0),  # picture and prompt are cached
        ("front", (coffee,), 1.0),  # the same words beside another picture are another prompt
        ("front", (coffee, astronaut), 1.0),
        ("front", (astronaut, coffee), 1.0),  # the same pictures in another order
        ("front", (astronaut,), 2.0),
    ]
    before = caching.cache_stats
    for prompt, pictures, guidance in orders:
        cached, fresh = (draw(each, prompt, pictures, guidance) for each in (caching, model))
        # With guidance two prompts are encoded. If neither is cached they form one batch, which rounds differently.
        assert difference(cached, fresh) <= (0 if guidance == 1.0 else 1), (prompt, len(pictures))
    latents, prompts = caching.cache_stats["latents"], caching.cache_stats["prompts"]
    assert latents.misses - before["latents"].misses == 2
    assert latents.hits - before["latents"].hits == 7
    assert prompts.hits - before["prompts"].hits == 2  # "front" of the astronaut, the second and the third time


def test_without_a_budget_nothing_is_kept(model: EditModel, tiny_settings: AppSettings) -> None:
    pictures = (prepare(photograph("coffee"), tiny_settings.sizes),)
    for _ in range(2):
        draw(model, "x", pictures)
    assert {stats.hits for stats in model.cache_stats.values()} == {0}
