"""What can go wrong while embedding, in words for the caller.

The tree::

    EmbeddingError
    ├── InvalidInputError      the picture or the text is at fault; sending it again will not help
    ├── UnsupportedError       the model that is served cannot do this
    ├── UnknownModelError      the server has no model of that name or version
    ├── OverloadedError        the server is full; try again in `retry_after_ms`
    ├── UnavailableError       no server takes work there (yet, or any more); try again later
    │   └── ShuttingDownError    the server is draining; try another one
    ├── DeadlineError          the answer did not come in time
    ├── UnauthenticatedError   the server wants a token, and this was missing or wrong
    ├── ModelChangedError      the server came back with another model; start over
    └── InferenceError         the model failed; the caller is told nothing more
        └── EngineMemoryError    the batch did not fit; a smaller one may

The server raises the ones it knows; `inference.client` raises the same types on the caller's side.
The table from these to gRPC status codes is in `inference.service`, the table back in
`inference.client.status`.

Two stand apart, because they end the process, with a sentence for the operator: `StartupError`
before it serves, `EngineLostError` when only a new process can serve again.
"""


class EmbeddingError(Exception):
    """A request could not be answered. The message is meant for the caller."""


class InvalidInputError(EmbeddingError):
    """The picture or the text is at fault; sending it again will not help."""


class UnsupportedError(EmbeddingError):
    """The model that is served cannot do what was asked."""


class UnknownModelError(EmbeddingError):
    """The server has no model of the name, or the version, that was asked for."""


class OverloadedError(EmbeddingError):
    """The server is full.

    Attributes:
        retry_after_ms: When it is worth trying again, in milliseconds from now.
    """

    def __init__(self, message: str, *, retry_after_ms: int) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class UnavailableError(EmbeddingError):
    """No server takes work there: it is starting, draining, failing or gone."""


class ShuttingDownError(UnavailableError):
    """The server is draining and takes nothing new."""

    def __init__(
        self, message: str = "The server is shutting down: send the request to another one."
    ) -> None:
        super().__init__(message)


class DeadlineError(EmbeddingError):
    """The answer did not come before the caller's deadline."""


class UnauthenticatedError(EmbeddingError):
    """The server wants a bearer token, and it was missing or wrong."""


class ModelChangedError(EmbeddingError):
    """Answers came from two models; their embeddings must never be compared."""


class InferenceError(EmbeddingError):
    """The model failed on the batch. The cause is in the log, not in the answer."""


class EngineMemoryError(InferenceError):
    """The batch did not fit into the device's memory; a smaller one may."""


class StartupError(Exception):
    """The process cannot start. The message tells the operator what to change."""


class EngineLostError(Exception):
    """The engine hangs, or fails on everything, and did not come back.

    Attributes:
        hung: Whether a run is still going on that nothing can end.
    """

    def __init__(self, message: str, *, hung: bool) -> None:
        super().__init__(message)
        self.hung = hung
