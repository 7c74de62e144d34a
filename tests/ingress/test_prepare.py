"""Preparing the pictures of a request."""

import asyncio
from dataclasses import replace

import pytest

from serve_app.config import AppSettings
from serve_app.edits.request import EditOptions
from serve_app.errors import InvalidInput
from serve_app.ingress.asked import ParsedRequest, PictureSource
from serve_app.ingress.prepare import Preparer

SLOW, BROKEN = PictureSource("slow", "https://slow/picture"), PictureSource("broken", "https://broken/picture")
ONE_SET = ParsedRequest(((SLOW, BROKEN),), (EditOptions(prompt="x"),), (0,), None, None)
TWO_SETS = replace(
    ONE_SET,
    picture_sets=((SLOW,), (BROKEN,)),
    edits=(EditOptions(prompt="x"), EditOptions(prompt="y")),
    pictures_of=(0, 1),
)


@pytest.mark.parametrize("asked", [ONE_SET, TWO_SETS], ids=["references", "batch"])
def test_a_picture_that_cannot_be_fetched_ends_the_fetches_beside_it(
    tiny_settings: AppSettings, asked: ParsedRequest
) -> None:
    begun, ended = [], []

    async def fetch(url: str, field: str) -> bytes:
        begun.append(field)
        try:
            if field == "slow":
                await asyncio.Event().wait()
            raise InvalidInput(f"{field} could not be fetched", field)
        finally:
            ended.append(field)

    async def scenario() -> None:
        preparer = Preparer(tiny_settings)
        vars(preparer)["_fetcher"] = fetch
        with pytest.raises(InvalidInput, match="broken could not be fetched"):
            await preparer("request", asked)
        assert sorted(begun) == sorted(ended) == ["broken", "slow"]

    asyncio.run(scenario())
