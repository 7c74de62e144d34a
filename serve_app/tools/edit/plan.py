"""What to make: one output picture for each input picture and camera pose, with its file name and its request."""

import base64
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from serve_app.edits.camera import orbit_azimuths
from serve_app.errors import UsageError
from serve_app.tools.edit.arguments import EditArguments
from serve_app.tools.edit.inputs import Source, find_sources

KEY_VERSION = "camera-edit/1"
"""Part of each Idempotency-Key. Change it when equal fields come to mean another picture."""

_LABELS = {"azimuth": "az", "elevation": "el", "distance": "d"}


@dataclass(frozen=True)
class Planned:
    """An output picture.

    Attributes:
        pose: the camera fields that were given.
        file: where it is written.
        animation: the file of the orbit that it is a frame of, or None.
    """

    source: Source
    pose: Mapping[str, float]
    file: Path
    animation: Path | None


@dataclass(frozen=True)
class Request:
    """The body of `/run` and its Idempotency-Key."""

    body: Mapping[str, object]
    key: str


@dataclass(frozen=True)
class Plan:
    """The pictures to make, in order, and what their requests share.

    Attributes:
        references: files that each request sends besides its own picture.
        fields: of the `input` of each request.
    """

    pictures: Sequence[Planned]
    references: Sequence[Path]
    fields: Mapping[str, object]

    @property
    def is_random(self) -> bool:
        """Whether each request draws another seed."""
        return self.fields.get("seed") == -1

    def files(self, planned: Planned) -> Sequence[Path]:
        """The files of a request, in the order in which it sends them."""
        return [planned.source.path, *self.references]

    def request(self, planned: Planned) -> Request:
        """Read the files and make the request. Its key is a hash of all that decides what the picture shows.

        Raises:
            OSError: a file cannot be read.
        """
        files = [planned.source.read(), *(file.read_bytes() for file in self.references)]
        fields = {**self.fields, **planned.pose, "prompt": planned.source.prompt}
        hashed = [KEY_VERSION, fields, [hashlib.sha256(file).hexdigest() for file in files]]
        key = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()
        encoded = [base64.b64encode(file).decode("ascii") for file in files]
        pictures = {"image": encoded[0]} if len(encoded) == 1 else {"images": encoded}
        return Request({"input": {**fields, **pictures}}, key)


def make_plan(arguments: EditArguments) -> Plan:
    """Find the pictures and name their outputs.

    Raises:
        UsageError: the arguments contradict each other or do not say what to make.
    """
    found, poses = find_sources(arguments.pictures, arguments.list_file, arguments.prompt), _poses(arguments)
    sources = list(dict.fromkeys(found))
    for source in sources:
        if not source.prompt.strip() and poses == [{}]:
            raise UsageError(f"{source.path}: nothing to do: give --prompt, or a camera option, or both.")
        if source.data is None and source.path.resolve().parent == arguments.out.resolve():
            raise UsageError(f"{source.path} is in the output folder. Choose another one with --out.")
    for file in arguments.references:
        if not file.is_file():
            raise UsageError(f"--with {file}: no such file.")
    pictures = [_planned(arguments, source, pose, index) for index, source in enumerate(sources, 1) for pose in poses]
    _check_names(pictures)
    return Plan(pictures, arguments.references, _fields(arguments))


def _poses(arguments: EditArguments) -> list[dict[str, float]]:
    """All combinations of the camera options; one empty pose without any."""
    azimuths = arguments.azimuth
    if arguments.orbit is None and arguments.animate is not None:
        raise UsageError("--animate needs --orbit.")
    if arguments.orbit is not None:
        if azimuths:
            raise UsageError("--azimuth cannot be combined with --orbit: each view has its own.")
        azimuths = orbit_azimuths(arguments.orbit)
    given = {"elevation": arguments.elevation, "distance": arguments.distance, "azimuth": azimuths}
    axes = [[(name, value) for value in dict.fromkeys(values)] for name, values in given.items() if values]
    return [dict(combination) for combination in itertools.product(*axes)]


def _fields(arguments: EditArguments) -> dict[str, object]:
    fields = {
        "loras": arguments.loras or None,
        "rewrite_prompt": arguments.rewrite or None,
        "seed": arguments.seed,
        "num_inference_steps": arguments.steps,
        "size": arguments.size,
        "output_format": arguments.output_format,
        "output_quality": arguments.quality,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _planned(arguments: EditArguments, source: Source, pose: dict[str, float], index: int) -> Planned:
    texts = {name: f"{value:g}" for name, value in pose.items()}
    file = arguments.out / f"{_name(arguments.name, source, texts, index)}.{arguments.output_format}"
    animation = None
    if arguments.animate is not None:
        name = _name(arguments.name, source, {**texts, "azimuth": "orbit"}, index)
        animation = arguments.out / f"{name}.{arguments.animate}"
    return Planned(source, pose, file, animation)


def _name(pattern: str, source: Source, pose: Mapping[str, str], index: int) -> str:
    label = "".join(f"-{_LABELS[name]}{pose[name]}" for name in _LABELS if name in pose).replace("azorbit", "orbit")
    camera = {name: pose.get(name, "") for name in _LABELS}
    known = {"stem": source.path.stem, "name": source.path.name, "index": index, "pose": label, **camera}
    try:
        name = pattern.format_map(known)
    except (KeyError, ValueError, IndexError, AttributeError, TypeError) as problem:
        raise UsageError(f"--name {pattern}: {problem}. It may hold {{{'}, {'.join(known)}}}.") from problem
    if not name or Path(name).name != name or name.startswith("."):
        raise UsageError(f"--name {pattern}: {name!r} is not the name of a visible file.")
    return name


def _check_names(pictures: Sequence[Planned]) -> None:
    """Check that each file is the output of one picture. An animation has as many frames as its orbit has views."""
    owners: dict[Path, object] = {}
    for planned in pictures:
        without_azimuth = {name: value for name, value in planned.pose.items() if name != "azimuth"}
        files = {planned.file: (planned.source, planned.pose)}
        if planned.animation is not None:
            files[planned.animation] = (planned.source, without_azimuth)
        for file, owner in files.items():
            if owners.setdefault(file, owner) != owner:
                raise UsageError(
                    f"{file} would be written for more than one picture, of which one is {planned.source.path}. "
                    "Use {index}, {name} or {pose} in --name."
                )
