"""Which of our routes a request took."""

from starlette._utils import get_route_path
from starlette.types import Scope

NO_ROUTE = "none"
"""Of a request that was refused before it found a route, or for which there is none."""


def route_template(scope: Scope) -> str:
    """The route as it is written, such as `/status/{job_id}`, the same with and without `/v2/{endpoint_id}`: fit for
    logs and labels, since nothing in it is the caller's."""
    template: str = getattr(scope.get("route"), "path", NO_ROUTE)
    return template


def route_path(scope: Scope) -> str:
    """The path that Starlette's router compares with the routes: without the application's route prefix, which Serve
    leaves in `path` and repeats in `root_path`."""
    return get_route_path(scope)
