"""Origins of URLs. Operators allow outbound requests by origin."""

import httpx2

_PORTS = {"http": 80, "https": 443}


def origin_of(url: str) -> str | None:
    """`scheme://host[:port]` of an http(s) URL, without a default port; None for anything else.

    Also None for what URL parsers read differently: backslashes, white space, control characters, userinfo, percent
    signs in the host. httpx2 parses the URL both for this check and for the request.
    """
    if not url.isprintable() or " " in url or "\\" in url:
        return None
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        return None
    # Not `parsed.host`, which decodes IDNA and raises on a malformed host.
    host = parsed.raw_host.decode("ascii")
    if parsed.scheme not in _PORTS or not host or "%" in host or parsed.userinfo:
        return None
    default = _PORTS[parsed.scheme]
    port = default if parsed.port is None else parsed.port
    if not 0 < port < 2**16:
        return None
    return f"{parsed.scheme}://{f'[{host}]' if ':' in host else host}{'' if port == default else f':{port}'}"
