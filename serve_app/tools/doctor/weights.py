"""Checks that the weights of a Serve file are on this machine, complete and the right ones."""

import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from serve_app.config import RANDOM_PREFIX, TOY_PREFIX, AppSettings, WeightsSource
from serve_app.tools.check.plan import GB
from serve_app.tools.doctor.finding import Finding
from serve_app.tools.doctor.hub import access_problem, cached_folder
from serve_app.tools.doctor.machine import Hub
from serve_app.tools.doctor.safetensors_file import read_contents, recorded_sha256, size_problem
from serve_app.tools.doctor.shipped import Shipped, find_shipped
from serve_app.weights.files import sha256_of
from serve_app.weights.locate import locate

EDIT_MODEL_PARTS = ("transformer", "vae", "text_encoder")
EDIT_MODEL_FILES = (
    "model_index.json",
    *(f"{part}/config.json" for part in EDIT_MODEL_PARTS),
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
)
REWRITER_FILES = ("config.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Weights:
    """The weights that one setting names.

    Attributes:
        files: files that its folder must have.
        parts: folders in it that must have safetensors files; "." is itself.
        sha256: of its only file, a LoRA's; None: unknown, or a model.
    """

    setting: str
    source: WeightsSource
    files: tuple[str, ...]
    parts: tuple[str, ...] = ()
    sha256: str | None = None

    @property
    def shipped(self) -> Shipped | None:
        return find_shipped(self.source.path, self.source.revision)

    @property
    def is_repository(self) -> bool:
        return is_repository(self.source.path)


def is_repository(path: str) -> bool:
    return not path.startswith(("/", ".", "~"))


@dataclass(frozen=True)
class Fault:
    file: str
    problem: str


def weights_of(settings: AppSettings) -> Iterator[Weights]:
    """The weights of a Serve file's application; those that are made at their first use are left out."""
    editor, rewriter = settings.editor, settings.rewriter
    yield Weights("editor.base", editor.base, EDIT_MODEL_FILES, EDIT_MODEL_PARTS)
    for lora in editor.loras:
        yield Weights(f"adapter {lora.name}", lora.source, (lora.file,), sha256=lora.sha256)
    if rewriter is not None and rewriter.source is not None:
        yield Weights("rewriter.source", rewriter.source, REWRITER_FILES, (".",))


def find_folder(weights: Weights, hub: Hub) -> Path | None:
    """Where the weights are on this machine; None: nowhere."""
    if weights.source.path.startswith(TOY_PREFIX):
        return locate(weights.source)
    folder = Path(weights.source.path).expanduser()
    if folder.is_dir():
        return folder
    return cached_folder(hub, weights.source) if weights.is_repository else None


def check_weights(settings: AppSettings, hub: Hub, deep: bool = False) -> tuple[list[Finding], float | None]:
    """Findings, and how many bytes remain to be downloaded; None: nothing.

    Args:
        deep: compare the checksums of all safetensors files, not of the LoRAs alone.
    """
    every = [each for each in weights_of(settings) if not each.source.path.startswith(RANDOM_PREFIX)]
    folders = [(each, find_folder(each, hub)) for each in every]
    absent = [each for each, folder in folders if folder is None]
    findings = [_check_folder(each, folder, deep) for each, folder in folders if folder is not None]
    findings += _check_absent(absent, hub)
    if not every:
        findings.append(Finding("weights", "tiny random ones, made at the first start"))
    to_download = [each for each in absent if each.is_repository]
    if not to_download:
        return findings, None
    return findings, sum(each.shipped.download_bytes for each in to_download if each.shipped is not None)


def _check_absent(absent: Sequence[Weights], hub: Hub) -> Iterator[Finding]:
    repository = next((each for each in absent if each.is_repository), None)
    problem = None if repository is None or hub.is_offline else access_problem(hub, repository.source)
    for weights in absent:
        check, path = f"weights of {weights.setting}", weights.source.path
        if not weights.is_repository:
            yield Finding(check, f"{path} does not exist on this machine", download_command(weights, Path(path)))
        elif hub.is_offline:
            message = f"{path} is not in {hub.cache}, and HF_HUB_OFFLINE forbids to download it"
            yield Finding(check, message, f"HF_HUB_OFFLINE=0 {download_command(weights)}")
        elif problem is not None:
            message = f"{path} is not in {hub.cache}, and {hub.url} cannot be used: {problem}"
            elsewhere = f"{download_command(weights)} on a machine that reaches the hub, and copy its cache here"
            yield Finding(check, message, elsewhere)
        else:
            yield Finding(check, f"{path}: {_size(weights)} will be downloaded at the first start")


def _size(weights: Weights) -> str:
    known = 0 if weights.shipped is None else weights.shipped.download_bytes
    return f"{known / GB:.1f} GB" if known else "an unknown size"


def _check_folder(weights: Weights, folder: Path, deep: bool) -> Finding:
    check = f"weights of {weights.setting}"
    faults = [*_missing(weights, folder), *_incomplete(weights, folder)]
    present = [each for each in safetensors_of(weights, folder) if (folder / each).is_file()]
    sums = {} if faults else dict(_checksums(weights, folder, present, deep))
    faults = faults or [*_differing(weights, folder, present), *_mismatched(folder, sums)]
    if faults:
        problems = "; ".join(f"{each.file} {each.problem}" for each in faults)
        fix = download_command(weights, folder, [each.file for each in faults])
        return Finding(check, f"{folder}: {problems}", fix)
    size = sum((folder / each).stat().st_size for each in present) / GB
    return Finding(check, f"{folder}: {len(present)} complete files, {size:.2f} GB; checksums compared: {len(sums)}")


def safetensors_of(weights: Weights, folder: Path) -> list[str]:
    """The safetensors files that the folder has or, by its indexes, should have."""
    if not weights.parts:
        return list(weights.files)
    found = (path.relative_to(folder) for part in weights.parts for path in (folder / part).glob("*.safetensors"))
    named = (file for part in weights.parts for file in _indexed(folder, part))
    return sorted({str(each) for each in found} | set(named))


def _indexed(folder: Path, part: str) -> Iterator[str]:
    """The shards that the indexes of a part name. An index that cannot be read names none: it is reported apart."""
    for index in (folder / part).glob("*.safetensors.index.json"):
        for shard in _shards(index) or ():
            yield str(Path(part) / shard)


def _shards(index: Path) -> set[str] | None:
    """The file names in an index; None if it cannot be read."""
    try:
        return set(json.loads(index.read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _missing(weights: Weights, folder: Path) -> Iterator[Fault]:
    safetensors = safetensors_of(weights, folder)
    for file in dict.fromkeys((*weights.files, *safetensors)):
        if not (folder / file).is_file():
            yield Fault(file, "is missing")
    for part in weights.parts:
        if not any(Path(file).parent == Path(part) for file in safetensors):
            yield Fault(str(Path(part) / "*.safetensors"), "is missing")
        for index in (folder / part).glob("*.safetensors.index.json"):
            if _shards(index) is None:
                yield Fault(str(index.relative_to(folder)), "is damaged")


def _incomplete(weights: Weights, folder: Path) -> Iterator[Fault]:
    for file in safetensors_of(weights, folder):
        problem = size_problem(folder / file) if (folder / file).is_file() else None
        if problem is not None:
            yield Fault(file, problem)


def _differing(weights: Weights, folder: Path, present: Iterable[str]) -> Iterator[Fault]:
    """Complete files whose sizes are not those of the shipped revision."""
    if weights.shipped is None:
        return
    sizes: dict[str, int] = {}
    for file in present:
        contents = read_contents(folder / file)
        part = str(Path(file).parent)
        sizes[part] = sizes.get(part, 0) + (0 if contents is None else contents.tensor_bytes)
        wanted, actual = weights.shipped.file_bytes.get(file), (folder / file).stat().st_size
        if wanted not in (None, actual):
            yield Fault(file, f"has {actual} bytes instead of {wanted}")
    for part, wanted in weights.shipped.tensor_bytes.items():
        if sizes.get(part) != wanted:
            yield Fault(f"{part}/*.safetensors", f"hold {sizes.get(part)} bytes of tensors instead of {wanted}")


def _checksums(weights: Weights, folder: Path, present: Iterable[str], deep: bool) -> Iterator[tuple[str, str]]:
    """File and expected checksum, for the files to hash."""
    for file in present:
        known = weights.sha256 or (weights.shipped.sha256.get(file) if weights.shipped is not None else None)
        if known is None and deep:
            known = recorded_sha256(folder, file)
        if known is not None:
            yield file, known


def _mismatched(folder: Path, sums: dict[str, str]) -> Iterator[Fault]:
    for file, wanted in sums.items():
        actual = sha256_of(folder / file)
        if actual != wanted:
            yield Fault(file, f"has the SHA-256 {actual} instead of {wanted}")


def download_command(weights: Weights, folder: Path | None = None, files: Sequence[str] = ()) -> str:
    """The command that downloads weights again, or some of their files.

    Args:
        folder: where to; None, or a folder in the client's cache: its cache.
        files: none: those that are used.
    """
    shipped, source = weights.shipped, weights.source
    repo = shipped.repo if shipped is not None else source.path
    if source.path.startswith(TOY_PREFIX):
        return "git checkout serve_app/tiny/toy"
    if shipped is None and not weights.is_repository:
        return f"copy the weights to {source.path} again, or set path to another folder or a Hugging Face repository"
    revision = shipped.commit if shipped is not None else source.revision
    words = ["hf", "download", repo, *(files or (() if weights.parts else weights.files))]
    words = [*words[:3], *(word for file in words[3:] for word in (["--include", file] if "*" in file else [file]))]
    words += ["--revision", revision] if revision is not None else []
    words += ["--force-download"] if files else []
    is_local = folder is not None and Path(source.path).expanduser() == folder.expanduser()
    words += ["--local-dir", str(folder)] if is_local else []
    return shlex.join(words)
