"""The record of an output folder: what it holds after any end of the command."""

from pathlib import Path

import pytest

from serve_app.errors import UsageError
from serve_app.tools.edit.record import RECORD_NAME, open_record


def test_a_file_is_held_while_it_is_what_was_written(tmp_path: Path) -> None:
    folder, file = tmp_path / "new" / "out", tmp_path / "new" / "out" / "a.png"
    with open_record(folder) as record:
        assert not record.holds(file, "key")
        record.write(file, "key", b"picture")
        assert record.holds(file, "key")
    with open_record(folder) as record:
        assert record.holds(file, "key")
        assert not record.holds(file, "another key")
        file.write_bytes(b"changed")
        assert not record.holds(file, "key")
        file.unlink()
        assert not record.holds(file, "key")
    assert [each.name for each in folder.iterdir()] == [RECORD_NAME]


def test_the_last_of_two_pictures_counts(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    with open_record(tmp_path) as record:
        record.write(file, "one", b"1")
        record.write(file, "two", b"2")
    with open_record(tmp_path) as record:
        assert (record.holds(file, "one"), record.holds(file, "two")) == (False, True)


def test_a_process_killed_before_the_rename_leaves_nothing_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    file = tmp_path / "a.png"
    with open_record(tmp_path) as record, monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            record.write(file, "key", b"picture")
    assert len(list(tmp_path.iterdir())) == 2
    with open_record(tmp_path) as record:
        assert not record.holds(file, "key")
    assert [each.name for each in tmp_path.iterdir()] == [RECORD_NAME]


@pytest.mark.parametrize("torn", [b'{"file": "b.png", "k', b"\xff\n", b"[]\n", b'{"file": "b.png"}\n', b"3"])
def test_a_torn_line_is_ignored_and_later_ones_count(tmp_path: Path, torn: bytes) -> None:
    (tmp_path / RECORD_NAME).write_bytes(torn)
    with open_record(tmp_path) as record:
        record.write(tmp_path / "a.png", "key", b"picture")
    with open_record(tmp_path) as record:
        assert record.holds(tmp_path / "a.png", "key")


def test_a_job_that_failed_gets_another_key(tmp_path: Path) -> None:
    with open_record(tmp_path) as record:
        assert record.key_to_send("key") == "key"
        record.add_failure("key")
        assert record.key_to_send("key") == "key-1"
    with open_record(tmp_path) as record:
        record.add_failure("key")
        assert (record.key_to_send("key"), record.key_to_send("other")) == ("key-2", "other")


def test_a_random_picture_is_found_again_until_it_is_there_and_in_its_folder_only(tmp_path: Path) -> None:
    keys = []
    for _ in range(2):  # the command is repeated
        with open_record(tmp_path / "a") as record:
            keys.append(record.key_to_send("key", is_random=True))
    with open_record(tmp_path / "a") as record:
        record.write(tmp_path / "a" / "file.png", "key", b"picture")
        keys.append(record.key_to_send("key", is_random=True))
        assert record.key_to_send("key") == "key"
    with open_record(tmp_path / "b") as record:
        keys.append(record.key_to_send("key", is_random=True))
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_one_command_at_a_time_writes_to_a_folder(tmp_path: Path) -> None:
    with open_record(tmp_path), pytest.raises(UsageError, match="another camera-edit writes"), open_record(tmp_path):
        pass
