"""Fetches pictures from the web without being led astray.

What the bot may be asked to fetch comes from strangers. So: only listed origins (Discord's own
unless the operator lists more), no redirects, no private addresses behind a listed name, a cap on
bytes and on time while streaming, and the bytes decide what a file is, not its name.
"""

import ipaddress
import socket
from collections.abc import Collection
from http import HTTPStatus
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

DISCORD_ORIGINS = frozenset(
    {
        "https://cdn.discordapp.com",
        "https://media.discordapp.net",
        "https://images-ext-1.discordapp.net",
        "https://images-ext-2.discordapp.net",
    }
)

_CHUNK_BYTES = 64 * 1024
_DEAD = frozenset({HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.GONE})

Origin = tuple[str, str | None, int | None]


class FetchError(Exception):
    """The picture could not be fetched this time; later it may be. The message says why."""


class GoneError(FetchError):
    """The link is dead: expired, or the file was deleted. A fresh link may work."""


class RefusedError(FetchError):
    """The link must not be fetched, or what it leads to is no picture. Final."""


class Fetcher:
    """Fetches pictures. An async context manager that holds the connections.

    Args:
        origins: Where from, as `scheme://name[:port]`. The names must resolve to public
            addresses, or they are not connected to.
        trusted_origins: Further origins, which may be anywhere, this machine included.
        max_bytes: Longest file.
        timeout_s: Longest time for one file, from the connection to the last byte.
    """

    def __init__(
        self,
        *,
        origins: Collection[str] = DISCORD_ORIGINS,
        trusted_origins: Collection[str] = (),
        max_bytes: int,
        timeout_s: float,
    ) -> None:
        trusted = {parse_origin(origin) for origin in trusted_origins}
        self._origins = {parse_origin(origin) for origin in origins} | trusted
        self._trusted_hosts = {host for _, host, _ in trusted if host}
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def __aenter__(self) -> Self:
        """Opens the connection pool."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=_PublicResolver(self._trusted_hosts)),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            # A picture is compressed already; a compressed body could only be a bomb.
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the connections."""
        await self._session.close()

    async def fetch(self, url: str) -> bytes:
        """The bytes of a picture file (PNG, JPEG, GIF, WebP, BMP or AVIF).

        Raises:
            RefusedError: The address is not allowed, or the file is too long or no picture.
            GoneError: The server says that there is no such file, or no longer.
            FetchError: Anything that may pass: no connection, too slow, cut short, overloaded.
        """
        address = self._allowed(url)
        try:
            async with self._session.get(address, allow_redirects=False) as response:
                _check_status(response.status)
                data = await self._read(response)
        except TimeoutError as error:
            raise FetchError(f"The picture took longer than {self._timeout_s:g} s.") from error
        except aiohttp.ClientConnectorDNSError as error:
            raise FetchError(f"The picture's host cannot be reached: {error.os_error}.") from error
        except (aiohttp.ClientError, OSError) as error:
            raise FetchError(f"The picture was not received: {type(error).__name__}.") from error
        if not _is_picture(data):
            raise RefusedError("The file is no picture of a known format.")
        return data

    def _allowed(self, url: str) -> URL:
        # Parsed once: what is checked is what is connected to.
        try:
            address = URL(url)
            allowed = parse_origin(address) in self._origins
        except ValueError as error:
            raise RefusedError("The link is no web address.") from error
        if not allowed:
            raise RefusedError(f"Pictures are not fetched from {address.host}.")
        return address

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        too_long = RefusedError(f"The file is longer than {self._max_bytes} bytes.")
        if (response.content_length or 0) > self._max_bytes:
            raise too_long
        data = bytearray()
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            data += chunk
            if len(data) > self._max_bytes:
                raise too_long
        return bytes(data)


class _PublicResolver(AbstractResolver):
    """Resolves names, and refuses those that lead into private networks.

    The check sits where the connection takes its address from, so that a name cannot resolve to
    one address for the check and to another for the connection.
    """

    def __init__(self, trusted_hosts: Collection[str]) -> None:
        self._trusted_hosts = trusted_hosts
        self._resolver = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        results = await self._resolver.resolve(host, port, family)
        if host not in self._trusted_hosts:
            for result in results:
                if not ipaddress.ip_address(result["host"].partition("%")[0]).is_global:
                    raise OSError(f"{host} leads into a private network")
        return results

    async def close(self) -> None:
        await self._resolver.close()


def parse_origin(url: str | URL) -> Origin:
    """Scheme, host and port of an address.

    Raises:
        ValueError: It is no http or https address, or carries a user name.
    """
    address = URL(url)
    if address.scheme not in {"https", "http"} or not address.host or address.user is not None:
        raise ValueError(f"{url!s} is no origin: write scheme://host or scheme://host:port")
    return address.scheme, address.host, address.port


def _check_status(status: int) -> None:
    if status == HTTPStatus.OK:
        return
    if status in _DEAD:
        raise GoneError("The link has expired, or the picture was deleted.")
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        raise RefusedError("The link leads elsewhere; redirects are not followed.")
    raise FetchError(f"The picture's host answered with status {status}.")


def _is_picture(data: bytes) -> bool:
    return (
        data.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"BM"))
        or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")
        or data[4:12] in (b"ftypavif", b"ftypavis")
    )
