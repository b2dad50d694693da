"""Waits a moment for the server, and says plainly what keeps it from answering."""

from inference.client import ClientSettings, EmbeddingClient, ModelInfo
from inference.errors import UnavailableError

# A server that is up answers at once; one that has just been started needs a moment.
READY_S = 3.0

# What gRPC says where something listens, and what that means.
_SOMETHING_IS_THERE = {
    "backend unhealthy": "does not serve at present: its log says whether it still loads its model",
    "handshake": "and this command do not agree on TLS: see MAPSEEK_TLS and MAPSEEK_TLS_CA",
    "Socket closed": "hangs up: if it speaks TLS, set MAPSEEK_TLS_CA or MAPSEEK_TLS=1",
}


async def ready(
    client: EmbeddingClient, settings: ClientSettings, *, start: str = "mapseek serve"
) -> ModelInfo:
    """What the server serves.

    Args:
        client: Calls it.
        settings: The client's.
        start: The command that starts such a server.

    Raises:
        UnavailableError: It does not serve; the message says what helps.
        EmbeddingError: See `EmbeddingClient.wait_ready`.
    """
    try:
        return await client.wait_ready(READY_S)
    except UnavailableError as error:
        for sign, meaning in _SOMETHING_IS_THERE.items():
            if sign in str(error):
                raise UnavailableError(f"The server at {settings.server} {meaning}.") from error
        raise UnavailableError(
            f"No server answers at {settings.server}: start one with `{start}`."
        ) from error
