"""Where the service's URL and key come from, and where the key does not go."""

from pathlib import Path

import pytest

from serve_app.errors import UsageError
from serve_app.tools.connection import DEFAULT_URL, Connection, find_connection

OWN = "https://own.example"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CONFIG_HOME": str(tmp_path)}


def write_config(environment: dict[str, str], text: str) -> None:
    file = Path(environment["XDG_CONFIG_HOME"]) / "camera-edit" / "config.toml"
    file.parent.mkdir()
    file.write_text(text)


def test_options_come_before_the_environment_and_this_before_the_file(environment: dict[str, str]) -> None:
    assert find_connection(None, None, environment) == Connection(DEFAULT_URL, None, True)
    write_config(environment, f'url = "{OWN}/"\nkey = "file-key"\n')
    assert find_connection(None, None, environment) == Connection(OWN, "file-key")
    environment |= {"CAMERA_EDIT_URL": "https://env.example", "CAMERA_EDIT_API_KEY": "env-key"}
    assert find_connection(None, None, environment) == Connection("https://env.example", "env-key")
    assert find_connection("http://option:1", "k", environment) == Connection("http://option:1", "k")


def test_the_files_key_goes_to_the_files_url_only(environment: dict[str, str]) -> None:
    write_config(environment, f'url = "{OWN}"\nkey = "file-key"\n')
    assert find_connection("https://other.example", None, environment).key is None
    assert find_connection(f"{OWN}/", None, environment).key == "file-key"


def test_a_key_in_a_file_without_a_url_is_for_this_machine(environment: dict[str, str]) -> None:
    write_config(environment, 'key = "file-key"\n')
    assert find_connection(None, None, environment) == Connection(DEFAULT_URL, "file-key", True)
    assert find_connection(OWN, None, environment).key is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('kee = "secret"', "unknown setting 'kee'. It may hold url and key."),
        ("key = 3", "key must be a text"),
        ("secret", "not a TOML file"),
    ],
)
def test_a_wrong_file_is_named_without_its_contents(environment: dict[str, str], text: str, message: str) -> None:
    write_config(environment, text)
    with pytest.raises(UsageError, match=message) as caught:
        find_connection(None, None, environment)
    assert "config.toml" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["ftp://x", "127.0.0.1:8000", "http://", "http://x?key=1", "http://user:pass@x", "http://x:y"]
)
def test_a_wrong_url_is_rejected(environment: dict[str, str], url: str) -> None:
    with pytest.raises(UsageError, match="service") as caught:
        find_connection(url, None, environment)
    assert "pass@" not in str(caught.value)


def test_a_key_that_no_header_can_carry_is_rejected_and_not_printed(environment: dict[str, str]) -> None:
    for key in ("two words", "line\nbreak", "schlüssel"):
        with pytest.raises(UsageError) as caught:
            find_connection(None, key, environment)
        assert key not in str(caught.value)
    assert "the-key" not in repr(Connection(OWN, "the-key"))
