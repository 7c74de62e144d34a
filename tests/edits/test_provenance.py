"""What pictures say of their making, read back from the files; and what they must not say."""

import asyncio
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from serve_app.config import EditorSettings, LimitSettings, LoraSettings, ProvenanceKind, SizeSettings, WeightsSource
from serve_app.edits.camera import CameraPose
from serve_app.edits.images import ENCODERS, encode_picture, prepare, read_picture
from serve_app.edits.provenance import Provenance
from serve_app.edits.request import EditRequest, OutputFormat, Pixels, SharedPictures
from serve_app.edits.service import EditService
from tests.fakes import FakeEditor, edit_request, picture
from tests.pictures import photograph

FORMATS = tuple(ENCODERS)
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"
OURS = "{urn:uuid:18683af0-98cc-40de-b83d-2f74e05fcc2f#}"
MARK = {
    f"{IPTC}DigitalSourceType": "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
}
SECRET = "a word of the user's"
ANGLES = LoraSettings(
    name="angles", source=WeightsSource(path="fal/Angles", revision="abc1"), file="a.safetensors", weight=0.9
)


def edited(kind: ProvenanceKind, edit: EditRequest | None = None, base: WeightsSource | None = None) -> bytes:
    source = WeightsSource(path="Qwen/Edit", revision="main") if base is None else base
    settings = EditorSettings(base=source, loras=(ANGLES,), provenance=kind)
    return Provenance(settings).packet(edit_request() if edit is None else edit)


def posed() -> EditRequest:
    edit = edit_request(SECRET, guidance=2.5)
    return replace(
        edit,
        sampling=replace(edit.sampling, seed=7, num_inference_steps=8, negative_prompt=SECRET),
        camera=CameraPose(315, -30, 1.4),
    )


def described(packet: bytes) -> dict[str, object]:
    """The packet's properties; structures of sequences as dictionaries."""
    description = ElementTree.fromstring(packet).find(f"{RDF}RDF/{RDF}Description")
    assert description is not None
    assert description.get(f"{RDF}about") == ""
    return {each.tag: list(items(each)) or each.text for each in description}


def items(element: ElementTree.Element) -> Iterator[dict[str, str | None]]:
    for item in element.iterfind(f"{RDF}Seq/{RDF}li"):
        yield {each.tag: each.text for each in item}


def pixels() -> Pixels:
    return np.array(photograph("astronaut", 48, 32))


def read(data: bytes) -> Pixels:
    return np.asarray(Image.open(BytesIO(data)))


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """A file's chunks or segments as the format's own standard has them, apart from Pillow; JPEG's up to its scan."""
    if data.startswith(b"\x89PNG"):
        place = 8
        while place < len(data):
            (size,) = struct.unpack(">I", data[place : place + 4])
            yield data[place + 4 : place + 8], data[place + 8 : place + 8 + size]
            place += 12 + size
    elif data.startswith(b"RIFF"):
        place = 12
        while place < len(data):
            (size,) = struct.unpack("<I", data[place + 4 : place + 8])
            yield data[place : place + 4], data[place + 8 : place + 8 + size]
            place += 8 + size + size % 2
    else:
        place = 2
        while data[place + 1] != 0xDA:
            (size,) = struct.unpack(">H", data[place + 2 : place + 4])
            yield data[place : place + 2], data[place + 4 : place + 2 + size]
            place += 2 + size


# The chunk and what comes before the packet in it: for PNG the keyword, no compression, no language, no translation.
PLACES: dict[str, tuple[bytes, bytes]] = {
    "png": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0"),
    "jpeg": (b"\xff\xe1", b"http://ns.adobe.com/xap/1.0/\0"),
    "webp": (b"XMP ", b""),
}


@pytest.mark.parametrize("name", FORMATS)
def test_the_packet_is_where_readers_look(name: str) -> None:
    data = encode_picture(pixels(), OutputFormat(name), edited("full", posed()))
    kind, head = PLACES[name]
    bodies = [body for each, body in chunks(data) if each == kind]
    assert bodies == [head + edited("full", posed())]
    assert Image.open(BytesIO(data)).info["xmp"] == edited("full", posed())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", ["mark", "full"])
def test_every_format_carries_the_digital_source_type(name: str, kind: ProvenanceKind) -> None:
    data = encode_picture(pixels(), OutputFormat(name), edited(kind))
    assert MARK.items() <= described(Image.open(BytesIO(data)).info["xmp"]).items()


@pytest.mark.parametrize("name", FORMATS)
def test_no_provenance_leaves_no_packet(name: str) -> None:
    data = encode_picture(pixels(), OutputFormat(name), edited("none", posed()))
    assert data == encode_picture(pixels(), OutputFormat(name))
    assert "xmp" not in Image.open(BytesIO(data)).info


def test_the_mark_says_nothing_else_and_is_the_default() -> None:
    assert described(edited("mark", posed())) == MARK
    assert EditorSettings(base=WeightsSource(path="x")).provenance == "mark"


def test_a_full_packet_has_the_edit_and_its_weights() -> None:
    lora = {"name": "angles", "path": "fal/Angles", "revision": "abc1", "file": "a.safetensors", "weight": "0.9"}
    parameters = {"seed": "7", "num_inference_steps": "8", "true_cfg_scale": "2.5"}
    pose = {"azimuth": "315", "elevation": "-30", "distance": "1.4"}
    assert described(edited("full", posed())) == {
        **MARK,
        f"{IPTC}AISystemUsed": "Qwen/Edit",
        f"{IPTC}AISystemVersionUsed": "main",
        f"{OURS}loras": [{OURS + name: value for name, value in lora.items()}],
        **{OURS + name: value for name, value in {**parameters, **pose}.items()},
    }


def test_an_edit_without_a_pose_names_none() -> None:
    names = described(edited("full"))
    assert f"{OURS}seed" in names
    assert not {f"{OURS}azimuth", f"{OURS}elevation", f"{OURS}distance"} & set(names)


@pytest.mark.parametrize("pose", [CameraPose(90, 0, 1.0), None])
def test_the_pose_reaches_the_editor(pose: CameraPose | None) -> None:
    edit, editor = edit_request(), FakeEditor()
    request = replace(edit, prompt="a wish", camera=pose)
    asyncio.run(EditService(editor, None).run(request, SharedPictures((picture(),))))
    assert editor.requests[0].camera == pose


def test_no_prompt_and_no_id_is_written() -> None:
    packet = edited("full", replace(posed(), request_id="request-17")).decode()
    assert SECRET not in packet
    assert "request-17" not in packet
    assert edited("full", replace(posed(), prompt="other words", request_id="request-18")).decode() == packet


@pytest.mark.parametrize(
    ("path", "name"),
    [("/home/ann/weights/edit-2511", "edit-2511"), ("~/models/edit", "edit"), ("./edit", "edit"), ("tiny:edit",) * 2],
)
def test_a_folder_is_described_by_its_name_alone(path: str, name: str) -> None:
    properties = described(edited("full", base=WeightsSource(path=path)))
    assert properties[f"{IPTC}AISystemUsed"] == name
    assert f"{IPTC}AISystemVersionUsed" not in properties


def test_a_folder_that_looks_like_a_repository_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ann" / "edit").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    # Its revision was not used.
    properties = described(edited("full", base=WeightsSource(path="ann/edit", revision="main")))
    assert properties[f"{IPTC}AISystemUsed"] == "edit"
    assert f"{IPTC}AISystemVersionUsed" not in properties


@pytest.mark.parametrize("path", ["a<b>&amp;\"c'", "]]><x/>", "{properties}", "Überkamera 相机 🎥", "</rdf:RDF>"])
def test_values_are_escaped(path: str) -> None:
    assert described(edited("full", base=WeightsSource(path=path)))[f"{IPTC}AISystemUsed"] == path


def test_what_xml_cannot_hold_is_replaced() -> None:
    system = described(edited("full", base=WeightsSource(path="a\0b\x1fc\ufffed")))[f"{IPTC}AISystemUsed"]
    assert system == "a\ufffdb\ufffdc\ufffdd"


@pytest.mark.parametrize("name", FORMATS)
def test_the_pixels_are_those_of_an_unmarked_picture(name: str) -> None:
    marked, plain = (encode_picture(pixels(), OutputFormat(name), xmp) for xmp in (edited("full"), b""))
    assert marked != plain
    np.testing.assert_array_equal(read(marked), read(plain))


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_edit_is_the_same_file(name: str) -> None:
    first, second = (encode_picture(pixels(), OutputFormat(name), edited("full", posed())) for _ in range(2))
    assert first == second


def test_a_whole_scale_is_written_one_way() -> None:
    # A client's 2 and its 2.0 are the same edit.
    assert edited("full", edit_request(guidance=2)) == edited("full", edit_request(guidance=2.0))


def tagged(kind: str) -> bytes:
    """An input full of metadata, each with a word by which it can be found."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "leak-exif"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSMapDatum] = "leak-gps"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    text = PngInfo()
    text.add_text("Comment", "leak-text")
    text.add_itxt("XML:com.adobe.xmp", "<leak-xmp/>")
    options = {"pnginfo": text} if kind == "PNG" else {"xmp": b"<leak-xmp/>", "comment": "leak-text"}
    buffer = BytesIO()
    photograph("coffee", 48, 32).save(buffer, kind, exif=exif, icc_profile=profile, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("name", FORMATS)
def test_no_metadata_of_the_input_gets_out(kind: str, name: str) -> None:
    source = tagged(kind)
    assert b"leak-gps" in source
    assert b"leak-xmp" in source
    sizes = SizeSettings(vae_area_px=32 * 32, condition_area_px=32 * 32)
    prepared = prepare(read_picture(source, "image", LimitSettings()), sizes)
    data = encode_picture(prepared.vae_pixels, OutputFormat(name), edited("mark"))
    opened = Image.open(BytesIO(data))
    assert not {"exif", "icc_profile", "comment", "Comment", "photoshop"} & set(opened.info)
    assert not opened.getexif()
    assert described(opened.info["xmp"]) == MARK
    assert b"leak" not in data


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
@pytest.mark.parametrize("name", FORMATS)
def test_exiftool_reads_it(name: str, tmp_path: Path) -> None:
    file = tmp_path / f"picture.{name}"
    file.write_bytes(encode_picture(pixels(), OutputFormat(name), edited("full", posed())))
    lines = subprocess.run(
        ["exiftool", "-n", "-s", "-G1", "-XMP:all", file], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    found = dict(line.split(": ", 1) for line in lines)
    tags = {" ".join(tag.split()): value for tag, value in found.items()}
    assert tags["[XMP-iptcExt] DigitalSourceType"] == next(iter(MARK.values()))
    assert tags["[XMP-cameraEdit] Seed"] == "7"
    assert tags["[XMP-cameraEdit] LorasName"] == "angles"
