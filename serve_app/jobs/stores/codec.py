"""Jobs as bytes, for the stores: records as JSON, pictures as safetensors. Decoding them cannot run code.

All load functions raise JobUnreadable where the bytes do not decode: other versions may have written them, and disks
fail.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count, takewhile
from typing import Any

import numpy as np
import safetensors.numpy
from pydantic import TypeAdapter
from safetensors import SafetensorError

from serve_app.edits.job import JobRecord, JobSpec, JobState
from serve_app.edits.request import EditOutcome, Pictures, Pixels, PreparedPicture
from serve_app.errors import JobUnreadable

_SPECS = TypeAdapter(JobSpec)
_RECORDS = TypeAdapter(JobRecord)
_OUTCOMES = TypeAdapter(EditOutcome)

_INPUT_KEY = "asked"
"""The key of `JobSpec.input_without_pictures` in stored jobs, the same in all versions."""


def dump_spec(spec: JobSpec) -> bytes:
    fields = dict(vars(spec))
    fields[_INPUT_KEY] = fields.pop("input_without_pictures")
    return _dump(fields)


def load_spec(data: bytes) -> JobSpec:
    with reading("specification"):
        fields = {**json.loads(data)}
        fields["input_without_pictures"] = fields.pop(_INPUT_KEY, None)
        return _SPECS.validate_python(fields)


def dump_record(record: JobRecord) -> bytes:
    return _dump(record)


def load_record(data: bytes) -> JobRecord:
    with reading("record"):
        return _RECORDS.validate_python(json.loads(data))


def dump_outcome(outcome: EditOutcome) -> tuple[bytes, bytes]:
    """The outcome without its picture as JSON, and the picture's file."""
    rest = {**vars(outcome), "result": {**vars(outcome.result), "data": ""}}
    return _dump(rest), outcome.result.data


def load_outcome(rest: bytes, picture: bytes) -> EditOutcome:
    with reading("outcome"):
        outcome = _OUTCOMES.validate_python(json.loads(rest))
    return replace(outcome, result=replace(outcome.result, data=picture))


def dump_pictures(sets: Sequence[Pictures]) -> bytes:
    """Sets of at least one picture each."""
    # safetensors writes an array's memory and ignores its strides.
    return safetensors.numpy.save(
        {
            name: np.ascontiguousarray(pixels)
            for set_index, pictures in enumerate(sets)
            for index, picture in enumerate(pictures)
            for name, pixels in zip(_names(set_index, index), _parts(picture), strict=True)
        }
    )


def load_pictures(data: bytes) -> tuple[Pictures, ...]:
    """The sets as they were; the arrays are writable."""
    with reading("pictures"):
        arrays = safetensors.numpy.load(data)
        sets = (_pictures(arrays, set_index) for set_index in count())
        return tuple(takewhile(bool, sets))


def load_state(text: str) -> JobState:
    """The state in a store's index of jobs. An unknown one reads as IN_QUEUE: the replica that takes the job up then
    finds that its record is unreadable."""
    try:
        return JobState(text)
    except ValueError:
        return JobState.IN_QUEUE


@contextmanager
def reading(part: str) -> Iterator[None]:
    """
    Raises:
        JobUnreadable: in place of the errors that damaged bytes cause.
    """
    try:
        yield
    except (ValueError, TypeError, KeyError, RecursionError, SafetensorError) as problem:
        raise JobUnreadable(f"The job's stored {part} cannot be read; send the job again.") from problem


def _pictures(arrays: Mapping[str, Pixels], set_index: int) -> Pictures:
    names = takewhile(lambda pair: pair[0] in arrays, (_names(set_index, index) for index in count()))
    return tuple(PreparedPicture(*(arrays[name] for name in pair)) for pair in names)


def _names(set_index: int, index: int) -> tuple[str, str]:
    return f"{set_index}.{index}.vae", f"{set_index}.{index}.condition"


def _parts(picture: PreparedPicture) -> tuple[Pixels, Pixels]:
    return picture.vae_pixels, picture.condition_pixels


def _dump(record: object) -> bytes:
    # Not by pydantic, which loses NaN and refuses lone surrogates, both possible in a client's JSON.
    return json.dumps(record, default=_plain).encode()


def _plain(value: Any) -> dict[str, Any]:
    """Converts what records hold beside JSON's own types: dataclasses and mappings."""
    return dict(value) if isinstance(value, Mapping) else vars(value)
