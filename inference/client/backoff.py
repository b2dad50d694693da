"""When to try again: exponential pauses with full jitter, and the server's own hint."""

import random
from collections.abc import Callable

from inference.errors import EmbeddingError, OverloadedError, UnavailableError

# No server may ask for more than this, in seconds.
_MAX_HINT_S = 30.0


def is_worth_retrying(error: EmbeddingError) -> bool:
    """Whether the same request may succeed a little later."""
    return isinstance(error, OverloadedError | UnavailableError)


class Backoff:
    """Pauses between attempts.

    The n-th pause is drawn evenly from 0 to `first_s * 2**n` (at most `longest_s`), so that
    callers who failed together do not come back together ("full jitter": M. Brooker, Exponential
    Backoff and Jitter, AWS Architecture Blog, 2015). A server's hint is waited out first.

    Args:
        first_s: Ceiling of the first pause, in seconds.
        longest_s: Ceiling of every pause, in seconds.
        chance: Draws from 0 to 1.
    """

    def __init__(
        self,
        *,
        first_s: float = 0.1,
        longest_s: float = 2.0,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._chance = chance
        self._failures = 0

    @property
    def failures(self) -> int:
        """How many failures there were in a row."""
        return self._failures

    def reset(self) -> None:
        """Starts over, after a success."""
        self._failures = 0

    def pause_s(self, error: EmbeddingError) -> float:
        """Counts a failure and tells how long to wait before the next attempt, in seconds."""
        # The bound on the exponent keeps the power a sensible number.
        ceiling_s = min(self._first_s * 2.0 ** min(self._failures, 32), self._longest_s)
        self._failures += 1
        hint_s = error.retry_after_ms / 1000 if isinstance(error, OverloadedError) else 0.0
        return min(max(hint_s, 0.0), _MAX_HINT_S) + ceiling_s * self._chance()
