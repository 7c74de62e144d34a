"""A short, repeatable run of the fuzzer, and tests that it detects faults."""

import base64
import random
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from serve_app.edits.images import read_picture
from serve_app.errors import InvalidInput
from tests.fuzz import bodies, body_case, boxes, containers, extremes, picture_case, worker
from tests.fuzz.limits import MAX_GROWTH_BYTES, SETTINGS
from tests.fuzz.run import fuzz, problems
from tests.fuzz.seeds import bulky_pictures, pictures
from tests.fuzz.worker import Tally


def test_mutated_pictures_end_as_a_picture_or_a_refusal(tmp_path: Path) -> None:
    tally = fuzz("pictures", 2000, 1, 2, Console(file=StringIO()))
    check(tally, 2000, tmp_path)


def test_mutated_heic_and_avif_files_end_as_a_picture_or_a_refusal(tmp_path: Path) -> None:
    check(fuzz("heif", 600, 1, 2, Console(file=StringIO())), 600, tmp_path)


def test_pictures_of_many_parts_end_as_a_picture_or_a_refusal(tmp_path: Path) -> None:
    check(worker.run_cases("parts", 1, range(200)), 200, tmp_path)


def test_mutated_bodies_end_as_an_answer_or_a_refusal(tmp_path: Path) -> None:
    """In this process: another one would take longer to import the app than to run the cases."""
    check(worker.run_cases("bodies", 1, range(1000)), 1000, tmp_path)


@pytest.mark.parametrize("kind", extremes.KINDS)
def test_extreme_requests_end_as_an_answer_or_a_refusal(tmp_path: Path, kind: extremes.Extreme) -> None:
    tally = worker.run_cases(kind, 1, range(200))
    assert problems(kind, tally, 1, tmp_path) == []
    assert tally.accepted + tally.refused == 200


def check(tally: Tally, num_cases: int, folder: Path) -> None:
    assert problems("bodies", tally, 1, folder) == []
    assert tally.accepted + tally.refused == num_cases
    assert min(tally.accepted, tally.refused) > num_cases // 20


@pytest.mark.parametrize("name", pictures())
def test_every_seed_is_a_picture_and_survives_split_and_join(name: str) -> None:
    data = pictures()[name]
    assert picture_case.run(base64.b64encode(data))
    if data[4:8] == b"ftyp":
        assert boxes.joined(boxes.split(data)) == data
    else:
        assert not containers.split(data) or containers.joined(data, containers.split(data)) == data


def test_a_palette_picture_without_its_palette_is_refused() -> None:
    """A finding of the fuzzer: Pillow opens and loads such a file, and then fails an assertion."""
    data = pictures()["PNG P"]
    kept = [chunk for chunk in containers.split(data) if chunk.name != b"PLTE"]
    with pytest.raises(InvalidInput, match="image is damaged"):
        read_picture(containers.joined(data, kept), "image", SETTINGS.limits)


@pytest.mark.parametrize("name", bulky_pictures())
def test_bulky_pictures_are_accepted(name: str) -> None:
    assert picture_case.run(base64.b64encode(bulky_pictures()[name]))


def test_every_seed_body_is_accepted() -> None:
    application = body_case.Application.of_this_process()
    rng = random.Random(0)
    for fields in bodies.runpod_seeds():
        assert application.run(bodies.as_json("/runsync", fields))
    for fields in bodies.openai_seeds():
        assert application.run(bodies.as_json("/v1/images/edits", fields))
        assert application.run(bodies.as_form(rng, "/v1/images/edits", fields))


def test_a_case_is_the_same_each_time() -> None:
    assert worker.make("pictures", 1, 17) == worker.make("pictures", 1, 17) != worker.make("pictures", 2, 17)
    assert worker.make("bodies", 1, 17) == worker.make("bodies", 1, 17) != worker.make("bodies", 1, 18)


def test_an_error_that_is_no_refusal_is_found_and_saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def read(data: bytes, field: str, limits: object) -> None:
        if len(data) % 2:
            raise InvalidInput("odd", field)
        raise KeyError("even")

    monkeypatch.setattr(picture_case, "read_picture", read)
    tally = worker.run_cases("pictures", 1, range(20))
    assert {finding.what.splitlines()[-1] for finding in tally.findings} == {"KeyError: 'even'"}
    first = tally.findings[0].number
    assert f"--replay pictures:{first} --seed 1" in problems("pictures", tally, 1, tmp_path)[0]
    assert (tmp_path / f"pictures-1-{first}.input").read_bytes() == worker.make("pictures", 1, first)


@pytest.mark.parametrize(("status", "text"), [(500, b'{"error": "x"}'), (400, b'{"detail": "x"}'), (204, b"")])
def test_an_answer_that_is_no_refusal_is_found(status: int, text: bytes) -> None:
    exchange = body_case.Exchange(bodies.as_json("/run", {}))
    exchange.status, exchange.text = status, text
    with pytest.raises(AssertionError):
        exchange.check()


def test_too_much_memory_or_a_one_sided_outcome_is_reported(tmp_path: Path) -> None:
    greedy = Tally(accepted=1, refused=1, growth_bytes=MAX_GROWTH_BYTES + 1)
    assert "more than" in problems("pictures", greedy, 1, tmp_path)[0]
    assert "prove nothing" in problems("pictures", Tally(accepted=9), 1, tmp_path)[0]
    assert problems("pictures", Tally(accepted=1, refused=1), 1, tmp_path) == []
