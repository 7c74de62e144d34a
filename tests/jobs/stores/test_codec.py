"""What is read back is what was written, bit by bit."""

import json
import math
import random
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from serve_app.edits.job import JobRecord, JobState, RepeatKey
from serve_app.edits.request import PreparedPicture
from serve_app.errors import JobUnreadable
from serve_app.jobs.stores.codec import (
    dump_outcome,
    dump_pictures,
    dump_record,
    dump_spec,
    load_outcome,
    load_pictures,
    load_record,
    load_spec,
)
from tests.jobs.samples import SETS, noise, outcome, same_pictures, spec


@pytest.mark.parametrize(
    "client_input",
    [
        None,
        {},
        {"numbers": [1e22, -0.0, 5e-324, 0.1 + 0.2, 10**30, True, None], "ключ": {"deep": ["❄", "\x00"]}},
        {"infinite": math.inf},
        {"lone surrogate": "\ud800"},
        MappingProxyType({"read": "only"}),
    ],
)
def test_specs_come_back_as_they_were(client_input: Any) -> None:
    full = spec(key=RepeatKey("key", "fingerprint"), webhook="https://example.org/hook")
    written = replace(full, input_without_pictures=client_input)
    assert load_spec(dump_spec(written)) == written


def test_a_spec_without_what_is_optional_comes_back_as_it_was() -> None:
    full = spec()
    written = replace(full, input_without_pictures=None, edits=(replace(full.edits[0], camera=None),))
    assert load_spec(dump_spec(written)) == written


def test_not_a_number_is_kept() -> None:
    written = replace(spec(), input_without_pictures={"nan": math.nan})
    read = load_spec(dump_spec(written)).input_without_pictures
    assert read is not None
    assert math.isnan(read["nan"])


def test_the_keys_of_a_stored_spec_stay_the_same() -> None:
    """Other versions read and write them, too."""
    fields = "id edits pictures_of seed policy retention_s webhook asked repeat_key client"
    assert set(json.loads(dump_spec(spec()))) == set(fields.split())


def test_a_spec_of_an_earlier_version_names_no_client() -> None:
    fields = json.loads(dump_spec(spec(client="anna")))
    assert load_spec(json.dumps(fields).encode()) == spec(client="anna")
    del fields["client"]
    assert load_spec(json.dumps(fields).encode()) == spec()


@pytest.mark.parametrize("state", JobState)
def test_records_come_back_as_they_were(state: JobState) -> None:
    dice = random.Random(state)
    for _ in range(200):
        created, started, ended = (dice.random() * 10 ** dice.randint(-3, 10) for _ in range(3))
        written = JobRecord(state, created, started, ended, "nö", num_retries=3, webhook_pending=True)
        assert load_record(dump_record(written)) == written


def test_a_field_of_a_newer_version_is_ignored() -> None:
    data = dump_record(JobRecord(JobState.FAILED, 1.0)).replace(b"{", b'{"mood": "fine", ', 1)
    assert load_record(data) == JobRecord(JobState.FAILED, 1.0)


def test_what_is_not_a_record_is_refused() -> None:
    with pytest.raises(JobUnreadable, match="record cannot be read"):
        load_record(b'{"state": "SLEEPING", "created_at": 1.0}')


def test_an_outcome_is_parted_from_its_picture() -> None:
    data = bytes(range(256)) * 100
    rest, picture = dump_outcome(outcome(data))
    assert picture == data
    assert len(rest) < 1000
    assert load_outcome(rest, picture) == outcome(data)


def test_an_outcome_without_rewriting_comes_back_as_it_was() -> None:
    written = replace(outcome(), rewrite=None)
    assert load_outcome(*dump_outcome(written)) == written


@pytest.mark.parametrize("num_sets", [0, 1, 2, 12])
def test_sets_of_pictures_come_back_as_they_were(num_sets: int) -> None:
    sets = tuple(tuple(noise(10 * index + place) for place in range(index % 4 + 1)) for index in range(num_sets))
    assert same_pictures(load_pictures(dump_pictures(sets)), sets)


def test_views_of_an_array_are_stored_as_they_look() -> None:
    whole = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    sets = ((PreparedPicture(whole[::2, ::-1], whole.transpose(1, 0, 2)),),)
    assert same_pictures(load_pictures(dump_pictures(sets)), sets)


def test_arrays_read_back_can_be_written() -> None:
    ((first, _), _) = load_pictures(dump_pictures(SETS))
    first.vae_pixels[:] = 0
    first.condition_pixels[:] = 0


def test_bytes_of_another_kind_are_no_pictures() -> None:
    with pytest.raises(JobUnreadable):
        load_pictures(b"\x80\x04\x95 a pickle, perhaps")
