"""What can go wrong while embedding, in words for the caller.

The tree::

    EmbeddingError
    ├── InvalidInputError    the picture or the text is at fault; sending it again will not help
    ├── UnsupportedError     the model that is served cannot do this
    ├── OverloadedError      the server is full; try again in `retry_after_ms`
    ├── ShuttingDownError    the server is draining; try another one
    └── InferenceError       the model failed; the caller is told nothing more
        └── EngineMemoryError  the batch did not fit; a smaller one may

`StartupError` stands apart: it ends the process before it serves, with a sentence for the operator.
The one table from these to gRPC status codes is in `inference.service`.
"""


class EmbeddingError(Exception):
    """A request could not be answered. The message is meant for the caller."""


class InvalidInputError(EmbeddingError):
    """The picture or the text is at fault; sending it again will not help."""


class UnsupportedError(EmbeddingError):
    """The model that is served cannot do what was asked."""


class OverloadedError(EmbeddingError):
    """The server is full.

    Attributes:
        retry_after_ms: When it is worth trying again, in milliseconds from now.
    """

    def __init__(self, message: str, *, retry_after_ms: int) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class ShuttingDownError(EmbeddingError):
    """The server is draining and takes nothing new."""


class InferenceError(EmbeddingError):
    """The model failed on the batch. The cause is in the log, not in the answer."""


class EngineMemoryError(InferenceError):
    """The batch did not fit into the device's memory; a smaller one may."""


class StartupError(Exception):
    """The process cannot start. The message tells the operator what to change."""
