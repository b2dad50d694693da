"""The one table between the domain's errors and gRPC status codes, read in both directions."""

import grpc

from inference.errors import (
    DeadlineError,
    EmbeddingError,
    EngineMemoryError,
    InferenceError,
    InvalidInputError,
    OverloadedError,
    UnauthenticatedError,
    UnavailableError,
    UnknownModelError,
    UnsupportedError,
)

# Trailing metadata that tells when a full server is worth another try, in milliseconds: ours, and
# the one that gRPC's own retries obey.
RETRY_AFTER_KEY = "retry-after-ms"
_PUSHBACK_KEY = "grpc-retry-pushback-ms"

# What a failure that nobody foresaw looks like to the caller: its text could hold anything.
UNFORESEEN = "The server failed on this request; the cause is in the server's log."

_CODES: dict[type[EmbeddingError], grpc.StatusCode] = {
    InvalidInputError: grpc.StatusCode.INVALID_ARGUMENT,
    UnsupportedError: grpc.StatusCode.UNIMPLEMENTED,
    UnknownModelError: grpc.StatusCode.NOT_FOUND,
    EngineMemoryError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
    DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    InferenceError: grpc.StatusCode.INTERNAL,
}

_ERRORS: dict[grpc.StatusCode, type[EmbeddingError]] = {
    **{code: error for error, code in _CODES.items()},
    # What the path to a server answers in its place: a stop that cut the call off, a proxy's
    # refusal. Whatever is missing here is the server's failure.
    grpc.StatusCode.CANCELLED: UnavailableError,
    grpc.StatusCode.PERMISSION_DENIED: UnauthenticatedError,
}

_BY_NUMBER = {int(code.value[0]): code for code in grpc.StatusCode}


def code_of(error: BaseException) -> grpc.StatusCode:
    """The status code for an error, by the nearest of its ancestors that has one."""
    for ancestor in type(error).__mro__:
        if ancestor in _CODES:
            return _CODES[ancestor]
    return grpc.StatusCode.INTERNAL


def trailing_of(error: BaseException) -> tuple[tuple[str, str], ...]:
    """The trailing metadata for an error: when to try again, where the error knows."""
    if not isinstance(error, OverloadedError):
        return ()
    milliseconds = str(error.retry_after_ms)
    return ((RETRY_AFTER_KEY, milliseconds), (_PUSHBACK_KEY, milliseconds))


def number_of(code: grpc.StatusCode) -> int:
    """A status code as `google.rpc.Code` numbers it."""
    return int(code.value[0])


def error_of(
    code: grpc.StatusCode, message: str, *, retry_after_ms: int | None = None
) -> EmbeddingError:
    """The error that a status code stands for.

    Args:
        code: Any code but OK.
        message: The sentence that came with it.
        retry_after_ms: The server's hint, if it gave one.
    """
    kind = _ERRORS.get(code, InferenceError)
    if kind is not OverloadedError:
        return kind(message)
    if "larger than max" in message:
        # gRPC's own refusal of a long message shares the code of a full server, but is final.
        return InvalidInputError(message)
    return OverloadedError(message, retry_after_ms=retry_after_ms or 0)


def error_of_number(number: int, message: str) -> EmbeddingError:
    """The error that a `google.rpc.Code` number stands for."""
    return error_of(_BY_NUMBER.get(number, grpc.StatusCode.UNKNOWN), message)
