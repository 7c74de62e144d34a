"""The whole command against the application: what it writes, prints and makes once, and how it ends."""

import json
import shlex
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from serve_app.cli import main
from serve_app.config import AppSettings
from serve_app.edits.request import LoraUse
from serve_app.errors import EditFailed, InvalidInput
from serve_app.tools.edit.animation import GIF_MARK
from serve_app.tools.edit.arguments import EXAMPLES
from serve_app.tools.edit.run import name_file
from tests.fakes import FakeRewriter
from tests.pictures import photograph
from tests.tools.edit.running import RunningService, running_service, start_command
from tests.waiting import until

POSES = ("--azimuth", "45", "--azimuth", "315")


def save_photographs(folder: Path, number: int) -> None:
    folder.mkdir()
    picture = photograph("coffee")
    for index in range(number):
        picture.crop((8 * index, 0, 8 * index + 96, 64)).save(folder / f"photo-{index:02}.jpg")


def made(folder: Path) -> list[str]:
    """The names of the visible files, each of which must be a whole picture."""
    files = sorted(file for file in folder.glob("*") if not file.name.startswith("."))
    for file in files:
        with Image.open(file) as picture:
            picture.load()
    return [file.name for file in files]


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_each_picture_gets_each_pose(service: RunningService, user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_photographs(user / "in", 2)
    assert main(["edit", "in", *POSES, "--elevation", "-30", "--prompt", "Make it sunset"]) == 0
    assert made(user / "edited") == [
        "photo-00-az315-el-30.png",
        "photo-00-az45-el-30.png",
        "photo-01-az315-el-30.png",
        "photo-01-az45-el-30.png",
    ]
    output = capsys.readouterr()
    assert output.out == "4 pictures: 4 made. They are in edited.\n"
    assert sorted(output.err.splitlines()) == [f"made: edited/{name}" for name in made(user / "edited")]
    assert sorted({request.prompt for request in service.editor.requests}) == [
        "<sks> front-left quarter view low-angle shot medium shot Make it sunset",
        "<sks> front-right quarter view low-angle shot medium shot Make it sunset",
    ]


@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_command_continues_and_makes_each_picture_once(
    blow: signal.Signals, service: RunningService, user: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_photographs(user / "in", 12)
    (user / "in" / "photo-03.jpg").write_bytes(b"\xff\xd8\xff broken")
    service.hold()
    command = start_command(user, "in", *POSES, "--url", service.url)
    until(lambda: len(service.editor.requests) >= 4)
    service.release(9)
    until(lambda: (user / "edited").exists() and len(made(user / "edited")) >= 9)
    command.send_signal(blow)
    out, err = command.communicate(timeout=60)
    assert "Traceback" not in err
    if blow is signal.SIGINT:
        assert command.returncode == 130
        assert out.splitlines()[0].startswith("24 pictures: 9 made, 2 failed, 13 left. ")
        assert out.splitlines()[-1] == "Interrupted. The same command continues."
    else:
        assert command.returncode == -signal.SIGKILL
    service.release(100)

    assert main(["edit", "in", *POSES]) == 1
    output = capsys.readouterr()
    assert output.out.splitlines()[0] == "24 pictures: 13 made, 9 skipped, 2 failed. They are in edited."
    failed = output.out.splitlines()[1:]
    assert [line.startswith("  failed: in/photo-03.jpg: it ") for line in failed] == [True, True]
    assert len(made(user / "edited")) == 22
    assert len(service.editor.painted) == 22
    assert set(service.editor.painted.values()) == {1}


def test_a_repeated_command_sends_nothing(service: RunningService, user: Path) -> None:
    save_photographs(user / "in", 2)
    assert main(["edit", "in", *POSES]) == 0
    before = {file: file.stat().st_mtime_ns for file in (user / "edited").glob("*.png")}
    assert main(["edit", "in", *POSES]) == 0
    assert len(service.editor.requests) == 4
    assert {file: file.stat().st_mtime_ns for file in (user / "edited").glob("*.png")} == before


def test_a_file_with_other_settings_is_replaced_only_on_request(
    service: RunningService, user: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_photographs(user / "in", 1)
    output = user / "edited" / "photo-00.png"
    assert main(["edit", "in", "--prompt", "Make it day"]) == 0
    day = output.read_bytes()
    assert main(["edit", "in", "--prompt", "Make it night"]) == 1
    assert output.read_bytes() == day
    assert "failed: in/photo-00.jpg: edited/photo-00.png exists, but was not made with these" in capsys.readouterr().err
    assert main(["edit", "in", "--prompt", "Make it night", "--overwrite"]) == 0
    assert output.read_bytes() != day
    assert main(["edit", "in", "--prompt", "Make it night"]) == 0
    assert len(service.editor.requests) == 2


def test_a_missing_or_changed_output_is_made_again_from_the_same_job(service: RunningService, user: Path) -> None:
    save_photographs(user / "in", 1)
    output = user / "edited" / "photo-00.png"
    assert main(["edit", "in", "--prompt", "x"]) == 0
    whole = output.read_bytes()
    output.unlink()
    assert main(["edit", "in", "--prompt", "x"]) == 0
    assert output.read_bytes() == whole
    output.write_bytes(whole[:-1])
    assert main(["edit", "in", "--prompt", "x"]) == 1
    assert main(["edit", "in", "--prompt", "x", "--overwrite"]) == 0
    assert output.read_bytes() == whole
    assert len(service.editor.requests) == 1


def test_a_failed_picture_is_named_and_tried_again_by_the_next_command(
    service: RunningService, user: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_photographs(user / "in", 1)
    service.editor.problem = EditFailed("The model broke.")
    assert main(["edit", "in", "--prompt", "x", "--json"]) == 1
    found = document(capsys)
    assert found["counts"] == {"made": 0, "skipped": 0, "failed": 1, "left": 0}
    assert found["pictures"][0]["note"] == "The job ended as FAILED: The model broke."
    service.editor.problem = None
    assert main(["edit", "in", "--prompt", "x"]) == 0
    assert made(user / "edited") == ["photo-00.png"]


def test_an_unusable_reference_is_named(
    service: RunningService, user: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_photographs(user / "in", 1)
    (user / "good.jpg").write_bytes((user / "in" / "photo-00.jpg").read_bytes())
    (user / "bad.png").write_text("no picture")
    assert main(["edit", "in", "--with", "good.jpg", "--with", "bad.png", "--prompt", "x"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("failed: in/photo-00.jpg: bad.png is not a picture")
    assert "input.images" not in error


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("input.image is empty.", "it is empty."),
        ("input.images[0] is empty.", "it is empty."),
        ("input.images[1] is empty.", "b.jpg is empty."),
        ("input.images[2] is empty.", "input.images[2] is empty."),
        ("input.images holds 9 pictures.", "input.images holds 9 pictures."),
        ("The job ended as FAILED: input.image", "The job ended as FAILED: input.image"),
    ],
)
def test_a_field_becomes_its_file(message: str, expected: str) -> None:
    assert name_file(message, [Path("a.jpg"), Path("b.jpg")]) == expected


def test_an_orbit_becomes_an_animation(service: RunningService, user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_photographs(user / "in", 1)
    for kind in ("gif", "webp"):
        assert main(["edit", "in", "--orbit", "4", "--animate", kind, "--json"]) == 0
        found = document(capsys)
        assert [each["file"] for each in found["animations"]] == [f"edited/photo-00-orbit.{kind}"]
        with Image.open(user / "edited" / f"photo-00-orbit.{kind}") as animation:
            assert (animation.format, getattr(animation, "n_frames", 1)) == (kind.upper(), 4)
            mark = animation.info["comment"] if kind == "gif" else animation.info["xmp"]
            assert GIF_MARK.rpartition(b" ")[2] in mark
    assert main(["edit", "in", "--orbit", "4", "--animate", "gif", "--json"]) == 0
    assert document(capsys)["animations"][0]["status"] == "skipped"
    assert len(service.editor.requests) == 4


def test_an_orbit_without_one_of_its_views_has_no_animation(
    service: RunningService, user: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_photographs(user / "in", 1)
    (user / "edited").mkdir()
    (user / "edited" / "photo-00-az90.png").write_bytes(b"mine")
    assert main(["edit", "in", "--orbit", "4", "--animate", "gif", "--json"]) == 1
    assert document(capsys)["animations"] == []


def test_the_json_document_has_each_picture(
    service: RunningService, user: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_photographs(user / "in", 1)
    arguments = ["--seed", "7", "--steps", "2", "--size", "64x96", "--format", "webp", "--quality", "50", "--rewrite"]
    assert main(["edit", "in/photo-00.jpg", "--prompt", "x", "--json", *arguments]) == 0
    (picture,) = document(capsys)["pictures"]
    assert picture.pop("job").endswith("-u1")
    assert picture == {
        "input": "in/photo-00.jpg",
        "file": "edited/photo-00.webp",
        "status": "made",
        "seed": 7,
        "final_prompt": "a precise wish",
        "note": None,
    }
    request = service.editor.requests[0]
    assert (request.sampling.seed, request.sampling.num_inference_steps, request.output.quality) == (7, 2, 50)
    with Image.open(user / "edited" / "photo-00.webp") as picture_file:
        assert (picture_file.format, picture_file.size) == ("WEBP", (64, 96))


def test_a_random_seed_is_drawn_anew_in_another_folder_and_by_overwriting(
    service: RunningService, user: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_photographs(user / "in", 1)
    seeds = []
    for options in (["--out", "a"], ["--out", "b"], ["--out", "a", "--overwrite"]):
        assert main(["edit", "in", "--prompt", "x", "--seed", "-1", "--json", *options]) == 0
        seeds += [picture["seed"] for picture in document(capsys)["pictures"]]
    assert len(set(seeds)) == 3
    assert main(["edit", "in", "--prompt", "x", "--seed", "-1", "--json", "--out", "a"]) == 0
    assert [picture["status"] for picture in document(capsys)["pictures"]] == ["skipped"]


def test_a_failed_rewrite_is_reported(service: RunningService, user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_photographs(user / "in", 1)
    service.rewriter.problem = InvalidInput("no idea")
    assert main(["edit", "in", "--prompt", "x", "--rewrite"]) == 0
    assert "made: edited/photo-00.png: not rewritten: " in capsys.readouterr().err
    assert isinstance(service.rewriter, FakeRewriter)


def test_no_more_pictures_than_asked_for_are_with_the_service(service: RunningService, user: Path) -> None:
    save_photographs(user / "in", 6)
    service.hold()
    command = start_command(user, "in", "--prompt", "x", "--jobs", "2", "--url", service.url)
    for number in range(1, 7):
        until(partial(service.has_taken, min(number + 1, 6)))
        service.release(1)
    assert command.wait(60) == 0
    command.communicate()


def test_a_full_queue_is_waited_for(
    user: Path, tmp_path: Path, tiny_settings: AppSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_photographs(user / "in", 4)
    with running_service(tmp_path, tiny_settings, max_active_jobs=1, max_queued_jobs=1) as service:
        monkeypatch.setenv("CAMERA_EDIT_URL", service.url)
        assert main(["edit", "in", "--prompt", "x", "--jobs", "4"]) == 0
        assert set(service.editor.painted.values()) == {1}
        assert len(service.editor.painted) == 4


def test_a_picture_that_takes_too_long_fails_and_is_found_by_the_next_command(
    service: RunningService, user: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_photographs(user / "in", 1)
    service.hold()
    assert main(["edit", "in", "--prompt", "x", "--timeout", "0.5"]) == 1
    assert "failed: in/photo-00.jpg: not finished within 0.5 s." in capsys.readouterr().out
    service.release(1)
    assert main(["edit", "in", "--prompt", "x"]) == 0
    assert len(service.editor.requests) == 1


def test_a_wrong_key_ends_the_command_and_is_not_printed(
    user: Path, tmp_path: Path, tiny_settings: AppSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    save_photographs(user / "in", 3)
    with running_service(tmp_path, tiny_settings, "the-key") as service:
        assert main(["edit", "in", "--prompt", "x", "--url", service.url, "--key", "wrong-secret"]) == 1
        output = capsys.readouterr()
        assert "camera-edit: The service needs an API key, and none or a wrong one was sent" in output.err
        assert "3 pictures: 3 left." in output.out
        assert "wrong-secret" not in output.out + output.err
        assert main(["edit", "in", "--prompt", "x", "--url", service.url, "--key", "the-key"]) == 0
        assert "the-key" not in "".join(capsys.readouterr())


def test_without_a_service_it_says_how_to_start_one(
    user: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_photographs(user / "in", 1)
    monkeypatch.setattr("serve_app.tools.connection.DEFAULT_URL", "http://127.0.0.1:9")
    assert main(["edit", "in", "--prompt", "x"]) == 1
    assert "camera-edit demo --keep --port 8000" in capsys.readouterr().err
    assert main(["edit", "in", "--prompt", "x", "--url", "http://127.0.0.1:9"]) == 1
    message = capsys.readouterr().err
    assert "No service answers at http://127.0.0.1:9 (" in message
    assert "demo" not in message
    assert not (user / "edited").exists()


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_of_the_help_works(
    example: str, service: RunningService, user: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_photographs(user / "photos", 2)
    for name in ("photo.jpg", "room.jpg", "style.jpg"):
        photograph("astronaut", 64, 64).save(user / name)
    (user / "prompts.csv").write_text('file,prompt\nphoto.jpg,Make it day\nphotos/photo-01.jpg,"Rain, and wind"\n')
    assert main(shlex.split(example)[1:]) == 0
    assert service.editor.requests
    assert "failed" not in capsys.readouterr().err


def test_adapters_are_named_with_their_weights(
    service: RunningService, user: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photograph("astronaut", 64, 64).save(user / "photo.jpg")
    for options in (["--lora", "woodcut=-0.5"], ["--lora", "woodcut", "--overwrite"]):
        assert main(["edit", "photo.jpg", "--prompt", "x", *options]) == 0
    assert [edit.loras for edit in service.editor.requests] == [(LoraUse("woodcut", w),) for w in (-0.5, 1.0)]
    assert main(["edit", "photo.jpg", "--prompt", "x", "--lora", "woodcat", "--overwrite"]) == 1
    assert "Did you mean 'woodcut'?" in capsys.readouterr().out


def test_a_picture_is_read_from_standard_input(service: RunningService, user: Path) -> None:
    photograph("astronaut", 64, 64).save(user / "photo.jpg")
    command = [sys.executable, "-m", "serve_app.cli", "edit", "-", "--prompt", "x", "--url", service.url]
    done = subprocess.run(command, input=(user / "photo.jpg").read_bytes(), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert made(user / "edited") == ["stdin.png"]
