"""EditService with ports that answer at once."""

import asyncio
import weakref

import pytest

from serve_app.edits.camera import CameraPose
from serve_app.edits.request import EditOutcome, EditRequest, Rewrite, Sampling, SharedPictures
from serve_app.edits.service import EditService, all_or_none
from serve_app.edits.sizes import OutputSize, Size
from serve_app.errors import EditFailed, InvalidInput, ServiceUnavailable
from tests.fakes import FakeEditor, FakeRewriter, picture
from tests.garbage import freed_at_once

SIZE = Size(64, 64)
POSE = CameraPose(90, 0, 1.0)
WORDS = "<sks> right side view eye-level shot medium shot"


def request(prompt: str = "a wish", *, camera: CameraPose | None = POSE, rewrite: bool = True) -> EditRequest:
    return EditRequest(
        request_id="id",
        prompt=prompt,
        camera=camera,
        rewrite_prompt=rewrite,
        sampling=Sampling(seed=5),
        size=OutputSize(SIZE, SIZE),
    )


def run(request: EditRequest, editor: FakeEditor, rewriter: FakeRewriter | None) -> EditOutcome:
    return asyncio.run(EditService(editor, rewriter).run(request, SharedPictures((picture(),))))


def test_the_rewritten_prompt_follows_the_camera_words() -> None:
    editor, rewriter = FakeEditor(), FakeRewriter()
    outcome = run(request(), editor, rewriter)
    assert outcome.final_prompt == editor.requests[0].prompt == f"{WORDS} a precise wish"
    assert outcome.prompt == "a wish"
    assert outcome.rewrite == Rewrite("a precise wish")
    # The rewriter never sees the camera's words.
    assert rewriter.jobs[0].prompt == "a wish"


def test_without_the_wish_nothing_is_rewritten() -> None:
    editor, rewriter = FakeEditor(), FakeRewriter()
    outcome = run(request(rewrite=False, camera=None), editor, rewriter)
    assert (outcome.final_prompt, outcome.rewrite, rewriter.jobs) == ("a wish", None, [])


@pytest.mark.parametrize(
    ("rewriter", "reason"),
    [
        (FakeRewriter(Rewrite(None, "no JSON")), "no JSON"),
        (FakeRewriter(problem=ServiceUnavailable("it died")), "the rewriter is not available: it died"),
        (None, "this server has no rewriter"),
    ],
)
def test_an_edit_goes_on_without_its_rewriter_and_says_why(rewriter: FakeRewriter | None, reason: str) -> None:
    editor = FakeEditor()
    outcome = run(request(), editor, rewriter)
    assert editor.requests[0].prompt == f"{WORDS} a wish"
    assert outcome.rewrite == Rewrite(None, reason)


def test_an_empty_prompt_is_not_rewritten() -> None:
    rewriter = FakeRewriter()
    outcome = run(request(""), FakeEditor(), rewriter)
    assert outcome.final_prompt == WORDS
    assert outcome.rewrite == Rewrite(None, "there is no prompt to rewrite")
    assert rewriter.jobs == []


def test_an_editors_error_is_the_edits_end() -> None:
    with pytest.raises(EditFailed, match="broken"):
        run(request(), FakeEditor(problem=EditFailed("broken")), FakeRewriter())


class Pictures:
    """What a part of a request holds."""


@pytest.mark.parametrize("num_parts", [1, 2])
def test_a_part_that_fails_leaves_nothing_to_the_garbage_collector(num_parts: int) -> None:
    async def fail(pictures: Pictures) -> None:
        raise InvalidInput("not a picture")

    async def story(references: "list[weakref.ref[Pictures]]") -> None:
        pictures = Pictures()
        references.append(weakref.ref(pictures))
        with pytest.raises(InvalidInput):
            await all_or_none(fail(pictures) for _ in range(num_parts))

    with freed_at_once() as references:
        asyncio.run(story(references))


def test_when_one_part_fails_the_others_are_cancelled_before_it_is_reported() -> None:
    async def story() -> None:
        ends = []

        async def last(end: str) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                ends.append(end)

        async def fail() -> None:
            await asyncio.sleep(0)
            raise EditFailed("broken")

        with pytest.raises(EditFailed, match="broken"):
            await all_or_none([last("first"), fail(), last("third")])
        assert ends == ["first", "third"]
        assert await all_or_none([]) == []

    asyncio.run(story())
