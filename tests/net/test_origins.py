"""What the operator allows is compared with what an URL says, however that is written."""

import pytest

from serve_app.net.origins import origin_of


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://example.com/a?b#c", "https://example.com"),
        ("HTTPS://Example.COM:443/", "https://example.com"),
        ("http://example.com:80", "http://example.com"),
        ("http://example.com:8080/", "http://example.com:8080"),
        ("https://example.com:80/", "https://example.com:80"),
        ("http://[::1]:8080/", "http://[::1]:8080"),
        ("http://[::1]/", "http://[::1]"),
        ("https://bücher.example/", "https://xn--bcher-kva.example"),
        ("https://example.com/ü/%20?q=ü", "https://example.com"),
        ("https://xn--a/", "https://xn--a"),  # no valid IDNA, and yet a name to compare
    ],
)
def test_origins(url: str, origin: str) -> None:
    assert origin_of(url) == origin


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "https://",
        "https:///a",
        "//example.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "https://user:pass@example.com/",
        "https://user@example.com/",
        "https://example.com@127.0.0.1/",
        "http://[::1",
        "http://[fe80::1%lo]/",
        "http://[fe80::1%25lo]/",
        "http://exa%6dple.com/",
        "http://0177.0.0.1/",
        "http://①②⑦.⓪.⓪.①/",
        "http://example.com:0/",
        "http://example.com:65536/",
        "http://example.com:-1/",
        "http://example.com:x/",
        "https://example.com\\@evil.com/",
        "https://example.com\\.evil.com/",
        "https://example.com/\\evil.com/",
        "https:\\\\example.com/",
    ],
)
def test_no_origin(url: str) -> None:
    assert origin_of(url) is None


@pytest.mark.parametrize(
    "odd", [" ", "\t", "\n", "\r", "\0", "\x1f", "\x7f", "\x85", "\xa0", "\u2028", "\u3000", "\ud800"]
)
@pytest.mark.parametrize(
    "url", ["{}https://example.com/", "https://exa{}mple.com/", "https://example.com/{}", "https://example.com/?{}"]
)
def test_white_space_control_characters_and_lone_surrogates(url: str, odd: str) -> None:
    assert origin_of(url.format(odd)) is None
    assert origin_of(url.format("")) == "https://example.com"
