"""Rules about reaching a server that its two sides share: what is local, what may be a token."""

import ipaddress
from pathlib import Path

from pydantic import SecretStr

from inference.errors import StartupError

MIN_TOKEN_LENGTH = 16


def is_local(address: str) -> bool:
    """Whether an address stays on this machine: loopback, or a Unix socket.

    Args:
        address: As gRPC writes them: `HOST:PORT`, `unix:PATH`, or a target such as
            `dns:///HOST:PORT`. A list of addresses is local if all of it is.
    """
    scheme, colon, rest = address.partition(":")
    if colon and scheme in {"unix", "unix-abstract"}:
        return True
    if colon and scheme in {"dns", "ipv4", "ipv6"}:
        address = rest.rpartition("/")[2]
    return all(_is_loopback(one) for one in address.split(","))


def _is_loopback(host_and_port: str) -> bool:
    host = host_and_port
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def check_token(token: SecretStr | None) -> SecretStr | None:
    """Checks that a token can be sent in a header and is not guessed at once.

    Raises:
        ValueError: It is too short, or has characters that a header cannot carry.
    """
    if token is None:
        return token
    secret = token.get_secret_value()
    if len(secret) < MIN_TOKEN_LENGTH:
        raise ValueError(f"a token needs at least {MIN_TOKEN_LENGTH} characters")
    if not (secret.isascii() and secret.isprintable() and " " not in secret):
        raise ValueError("a token may have printable ASCII characters only, and no space")
    return token


def read_tokens(path: Path) -> list[str]:
    """Reads tokens from a file, one a line; empty lines and those that begin with # are left out.

    Raises:
        StartupError: It cannot be read, holds none, or a line is no token; no sentence repeats one.
    """
    variable = "MAPSEEK_TOKEN_FILE"
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise StartupError(f"{variable}: {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError:
        raise StartupError(f"{variable}: {path} is no text file.") from None
    tokens = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        try:
            check_token(SecretStr(line))
        except ValueError as error:
            raise StartupError(f"{variable}: line {number} of {path}: {error}.") from None
        tokens.append(line)
    if not tokens:
        raise StartupError(f"{variable}: {path} holds no token: write one a line.")
    return tokens
