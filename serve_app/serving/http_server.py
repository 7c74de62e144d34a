"""The HTTP servers that Serve starts, in its proxies and, behind HAProxy, in the replicas of the ingress."""

import uvicorn.config
from ray.serve._private.constants import RAY_SERVE_ENABLE_HA_PROXY


def disable_websockets() -> None:
    """Let the servers of this process treat a WebSocket's handshake as a plain request, which our middleware rejects.

    uvicorn 0.54 neither answers nor closes a handshake whose method is not GET, and Serve has no setting for it. Called
    before the servers start.
    """
    uvicorn.config.WS_PROTOCOLS["auto"] = None


def is_behind_haproxy() -> bool:
    """Whether HAProxy stands in for Serve's own proxies."""
    return bool(RAY_SERVE_ENABLE_HA_PROXY)
