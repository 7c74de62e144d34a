"""The error tree. A ServiceError may reach a client; a StartupError stops the start; a UsageError
is the command line's.

    ServiceError                500 internal_error
    ├── InvalidInput            400 invalid_value
    │   ├── UnknownField        400 unknown_field
    │   └── MissingField        422 missing_field
    ├── Unauthorized            401 unauthorized
    ├── Forbidden               403 forbidden
    ├── RequestTimeout          408 request_timeout
    ├── BodyTooLarge            413 body_too_large
    ├── UrlTooLong              414 url_too_long
    ├── UnknownEncoding         415 unknown_encoding
    ├── Overloaded              429 overloaded
    │   ├── KeyPlacesTaken      429 key_places_taken
    │   └── StoreFull           429 store_full
    ├── HeadersTooLarge         431 headers_too_large
    ├── JobNotFound             404 not_found
    ├── JobUnreadable           500 job_unreadable
    ├── ModelNotFound           404 model_not_found
    ├── RepeatKeyConflict       422 idempotency_key_reused
    ├── EditCancelled           499 cancelled
    ├── EditFailed              500 edit_failed
    │   └── OutOfMemory         500 out_of_memory
    ├── ServiceUnavailable      503 unavailable
    └── DeadlineExceeded        504 deadline_exceeded
    StartupError
    ├── ConfigError
    ├── CheckpointError
    ├── LoraAuditError
    └── NoGpuError
    UsageError

Every argument goes through `Exception.__init__`: these errors cross process boundaries, and an exception is
unpickled by calling its class with `args`.
"""

from collections.abc import Iterable, Iterator
from typing import ClassVar


class ServiceError(Exception):
    """An error whose message is for the client. It names the field, what was wrong, and the fix.

    Args:
        message: one sentence or two, without a traceback.
        field: the request's field at fault as the client spells it, or None.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message, field)
        self.message = message
        self.field = field

    def __str__(self) -> str:
        return self.message


class InvalidInput(ServiceError):
    status = 400
    code = "invalid_value"


class UnknownField(InvalidInput):
    code = "unknown_field"


class Unauthorized(ServiceError):
    status = 401
    code = "unauthorized"


class Forbidden(ServiceError):
    status = 403
    code = "forbidden"


class JobNotFound(ServiceError):
    status = 404
    code = "not_found"


class JobUnreadable(ServiceError):
    status = 500
    code = "job_unreadable"


class ModelNotFound(ServiceError):
    status = 404
    code = "model_not_found"


class RepeatKeyConflict(ServiceError):
    status = 422
    code = "idempotency_key_reused"


class MissingField(InvalidInput):
    status = 422
    code = "missing_field"


class RequestTimeout(ServiceError):
    status = 408
    code = "request_timeout"


class BodyTooLarge(ServiceError):
    status = 413
    code = "body_too_large"


class UrlTooLong(ServiceError):
    status = 414
    code = "url_too_long"


class UnknownEncoding(ServiceError):
    """The request's body has a Content-Encoding that is not read."""

    code = "unknown_encoding"
    status = 415


class Overloaded(ServiceError):
    status = 429
    code = "overloaded"


class KeyPlacesTaken(Overloaded):
    """One API key has its part of the queue; others may have places."""

    code = "key_places_taken"


class StoreFull(Overloaded):
    code = "store_full"


class HeadersTooLarge(ServiceError):
    status = 431
    code = "headers_too_large"


class EditCancelled(ServiceError):
    status = 499
    code = "cancelled"


class EditFailed(ServiceError):
    status = 500
    code = "edit_failed"


class OutOfMemory(EditFailed):
    code = "out_of_memory"


class ServiceUnavailable(ServiceError):
    status = 503
    code = "unavailable"


class DeadlineExceeded(ServiceError):
    status = 504
    code = "deadline_exceeded"


def error_class(code: str | None) -> type[ServiceError] | None:
    """The class with an error code; None for an unknown code."""
    return _CLASSES.get(code or "")


def _tree(root: type[ServiceError]) -> Iterator[type[ServiceError]]:
    yield root
    for branch in root.__subclasses__():
        yield from _tree(branch)


_CLASSES = {each.code: each for each in _tree(ServiceError)}


class StartupError(Exception):
    """The service cannot start as configured. The message says what to change."""


class ConfigError(StartupError):
    """A setting is unknown to this version or cannot be used."""


class CheckpointError(StartupError):
    """Model weights are missing or not what the configuration says."""


class LoraAuditError(StartupError):
    """A tensor of a LoRA file matches no module of the model, or a part of an adapter is missing."""


class NoGpuError(StartupError):
    """The configuration needs a GPU and the cluster has none and cannot get one."""


class UsageError(Exception):
    """A command line that says nothing useful or contradicts itself; exit status 2. The message says what to change."""


def listed(names: Iterable[str]) -> str:
    """`a, b or c`, for messages."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last
