"""Rules about reaching a server that its two sides share: what is local, what may be a token."""

import ipaddress

from pydantic import SecretStr

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
