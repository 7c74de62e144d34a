"""Origins of URLs, the unit in which the operator allows them."""

import httpx2

_PORTS = {"http": 80, "https": 443}


def origin_of(url: str) -> str | None:
    """`scheme://host[:port]` of an http(s) URL, its default port left out; None for anything else.

    Also None for what parsers are known to read differently: backslashes, white space, control characters, userinfo,
    percent signs in the host. One parser, httpx2's, reads an URL for the check and for the request.
    """
    if not url.isprintable() or " " in url or "\\" in url:
        return None
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        return None
    # Not `parsed.host`: that decodes IDNA, and raises where a host pretends to be it.
    host = parsed.raw_host.decode("ascii")
    if parsed.scheme not in _PORTS or not host or "%" in host or parsed.userinfo:
        return None
    own = _PORTS[parsed.scheme]
    port = own if parsed.port is None else parsed.port
    if not 0 < port < 2**16:
        return None
    return f"{parsed.scheme}://{f'[{host}]' if ':' in host else host}{'' if port == own else f':{port}'}"
