"""Fetches pictures from the web without being led astray.

What the bot may be asked to fetch comes from strangers. So: only listed origins (Discord's own
unless the operator lists more), no redirects, no private addresses behind a listed name, a cap on
bytes and on time while streaming, and the bytes decide what a file is, not its name. Where a member
may give any address, every hop of it must lead into the public internet.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
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
_REDIRECTS = range(300, 400)
_DEAD = frozenset({HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.GONE})

# What a stranger's address may ask of the bot.
_MOST_HOPS = 4
_PORTS = frozenset({80, 443})
# IPv6 has one block of public addresses; all that carries an IPv4 address inside lies elsewhere
# (mapped, NAT64, compatible) or here (6to4, Teredo).
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
_TUNNELS_V6 = (ipaddress.IPv6Network("2002::/16"), ipaddress.IPv6Network("2001::/32"))
# Public by its number, but Azure's own service for the machine that asks.
_AZURE = ipaddress.IPv4Address("168.63.129.16")

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
        """Opens the connection pools: what strangers name shares no connection with the rest."""
        self._session = self._open(self._trusted_hosts)
        self._strangers = self._open(())
        return self

    def _open(self, trusted_hosts: Collection[str]) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=_PublicResolver(trusted_hosts)),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            # A picture is compressed already; a compressed body could only be a bomb.
            headers={"Accept-Encoding": "identity", "User-Agent": "mapseek"},
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the connections."""
        await self._session.close()
        await self._strangers.close()

    async def fetch(self, url: str) -> bytes:
        """The bytes of a picture file (PNG, JPEG, GIF, WebP, BMP or AVIF).

        Raises:
            RefusedError: The address is not allowed, or the file is too long or no picture.
            GoneError: The server says that there is no such file, or no longer.
            FetchError: Anything that may pass: no connection, too slow, cut short, overloaded.
        """
        address = self._allowed(url)
        with self._sentences():
            async with self._session.get(address, allow_redirects=False) as response:
                if response.status in _REDIRECTS:
                    raise RefusedError("The link leads elsewhere; redirects are not followed.")
                return await self._picture(response)

    async def fetch_anywhere(self, url: str) -> bytes:
        """Like `fetch`, from any public address and over a few redirects, each checked likewise.

        Raises:
            RefusedError: The address, or one that it leads to, is not public; or as for `fetch`.
            GoneError: See `fetch`.
            FetchError: See `fetch`.
        """
        if self._is_listed(url):
            return await self.fetch(url)
        address = _strangers_address(url)
        with self._sentences(discreet=True):
            async with asyncio.timeout(self._timeout_s):
                for _ in range(_MOST_HOPS):
                    async with self._strangers.get(address, allow_redirects=False) as response:
                        if response.status not in _REDIRECTS:
                            return await self._picture(response)
                        address = _strangers_address(_next_hop(response))
        raise RefusedError("The link leads from one address to the next without end.")

    @contextmanager
    def _sentences(self, *, discreet: bool = False) -> Iterator[None]:
        """Puts what goes wrong on the way into words; discreet ones do not map this network."""
        try:
            yield
        except TimeoutError as error:
            raise FetchError(f"The picture took longer than {self._timeout_s:g} s.") from error
        except aiohttp.ClientConnectorDNSError as error:
            reason = "" if discreet else f": {error.os_error}"
            raise FetchError(f"The picture's host cannot be reached{reason}.") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise FetchError(f"The picture was not received: {type(error).__name__}.") from error

    async def _picture(self, response: aiohttp.ClientResponse) -> bytes:
        _check_status(response.status)
        data = await self._read(response)
        if not _is_picture(data):
            raise RefusedError("The file is no picture of a known format.")
        return data

    def _is_listed(self, url: str) -> bool:
        try:
            return parse_origin(url) in self._origins
        except ValueError:
            return False

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
                if not is_public(result["host"]):
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


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet, for everybody the same."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        tunnelled = any(parsed in network for network in _TUNNELS_V6)
        return parsed in _PUBLIC_V6 and parsed.is_global and not tunnelled
    return parsed.is_global and not parsed.is_multicast and parsed != _AZURE


def _strangers_address(url: str | URL) -> URL:
    """The address, parsed once: what is checked is what is connected to.

    Names are checked where they are resolved; addresses in figures are not resolved, so here.
    """
    try:
        address = URL(url)
        parse_origin(address)
    except ValueError as error:
        raise RefusedError("The link is no web address.") from error
    if address.port not in _PORTS:
        raise RefusedError("Pictures are fetched from the usual ports of the web only.")
    try:
        public = is_public(address.host or "")
    except ValueError:
        # Figures in another spelling (127.1, 2130706433) would not be resolved either: what they
        # mean is left to the system, or refused by newer aiohttp alone.
        public = not (address.host or "").replace(".", "").isdigit()
    if not public:
        raise RefusedError("The picture's host cannot be reached.")
    return address


def _next_hop(response: aiohttp.ClientResponse) -> URL:
    try:
        return response.url.join(URL(response.headers.get("Location", "")))
    except ValueError as error:
        raise RefusedError("The link leads to no web address.") from error


def _check_status(status: int) -> None:
    if status == HTTPStatus.OK:
        return
    if status in _DEAD:
        raise GoneError("The link has expired, or the picture was deleted.")
    raise FetchError(f"The picture's host answered with status {status}.")


def _is_picture(data: bytes) -> bool:
    return (
        data.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"BM"))
        or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")
        or data[4:12] in (b"ftypavif", b"ftypavis")
    )
