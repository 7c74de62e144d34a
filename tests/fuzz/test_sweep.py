"""The sweep over a folder of pictures."""

from pathlib import Path

import pytest
from PIL import Image

from tests.fuzz import sweep
from tests.fuzz.seeds import saved

PHOTO = Image.new("RGB", (64, 48), "red")


def test_files_are_accepted_or_refused_because_of_a_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photo.tif").write_bytes(saved(PHOTO, "TIFF", big_tiff=True))
    (tmp_path / "photo.tga").write_bytes(saved(PHOTO, "TGA"))
    (tmp_path / "narrow.png").write_bytes(saved(Image.new("RGB", (640, 2)), "PNG"))
    (tmp_path / "cut.png").write_bytes(saved(PHOTO, "PNG")[:60])
    assert sweep.main([str(tmp_path)]) == 0
    printed = {line.strip() for line in capsys.readouterr().out.splitlines()}
    assert printed == {
        "1 accepted",
        "1 refused for: kind",
        "1 refused for: shape",
        "1 refused for: damage, and Pillow does not read them",
    }


@pytest.mark.parametrize("verdict", ["damage", "kind", "crash", "an unknown refusal"])
def test_an_unexplained_refusal_is_found(verdict: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(saved(PHOTO, "PNG"))
    monkeypatch.setattr(sweep, "verdict", lambda decoder, data: verdict)
    assert sweep.main([str(tmp_path)]) == 1


def test_a_refusal_without_a_known_reason_keeps_its_message() -> None:
    assert sweep.reason_of("image is damaged or truncated. Send a PNG file that is whole.") == "damage"
    assert sweep.reason_of("something new") == "something new"
