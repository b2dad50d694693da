import asyncio
import gzip
import io
import ipaddress
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import ResolveResult
from PIL import Image

from bot import fetch
from bot.fetch import (
    DISCORD_ORIGINS,
    Fetcher,
    FetchError,
    GoneError,
    RefusedError,
    is_public,
    parse_origin,
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def png(side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), "teal").save(file, "PNG")
    return file.getvalue()


class Site:
    """A web server whose answers are written in the test."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.handler: Handler | None = None
        self.origin = ""

    def answers(self, handler: Handler) -> str:
        self.handler = handler
        return f"{self.origin}/picture"

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        assert self.handler is not None
        return await self.handler(request)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    app = web.Application()
    app.router.add_get("/{path:.*}", site.serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    site.origin = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield site
    await runner.cleanup()


@pytest.fixture
async def fetcher(site: Site) -> AsyncIterator[Fetcher]:
    async with Fetcher(trusted_origins=[site.origin], max_bytes=100_000, timeout_s=30) as fetcher:
        yield fetcher


async def test_a_picture_comes_as_it_is(site: Site, fetcher: Fetcher) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=png(), content_type="text/plain")

    assert await fetcher.fetch(site.answers(handler)) == png()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "AVIF"])
async def test_the_formats_of_the_server_are_known(site: Site, fetcher: Fetcher, kind: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), "teal").save(file, kind)

    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=file.getvalue())

    assert await fetcher.fetch(site.answers(handler)) == file.getvalue()


@pytest.mark.parametrize(
    "body", [b"", b"<html>hello</html>", b"\x89PNX" + b"0" * 20, b"RIFF1234WAVE"]
)
async def test_what_is_no_picture_is_refused_whatever_it_is_called(
    site: Site, fetcher: Fetcher, body: bytes
) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=body, content_type="image/png")

    with pytest.raises(RefusedError, match="no picture"):
        await fetcher.fetch(site.answers(handler))


@pytest.mark.parametrize(
    "url",
    [
        "http://cdn.discordapp.com/a.png",
        "https://cdn.discordapp.com:8443/a.png",
        "https://cdn.discordapp.com.evil.example/a.png",
        "https://evil.example/cdn.discordapp.com/a.png",
        "https://cdn.discordapp.com@evil.example/a.png",
        "https://user@cdn.discordapp.com/a.png",
        "https://evil.example\\@cdn.discordapp.com/a.png",
        "https://169.254.169.254/latest/meta-data/",
        "http://localhost/a.png",
        "http://2130706433/a.png",
        "https://[::1]/a.png",
        "https://[oops/a.png",
        "file:///etc/passwd",
        "ftp://cdn.discordapp.com/a.png",
        "//cdn.discordapp.com/a.png",
        "a.png",
        "",
    ],
)
async def test_other_addresses_are_refused_without_asking_them(url: str) -> None:
    async with Fetcher(max_bytes=1, timeout_s=30) as fetcher:
        with pytest.raises(RefusedError):
            await fetcher.fetch(url)


async def test_a_listed_name_that_leads_to_this_machine_is_not_connected_to(site: Site) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=png())

    address = site.answers(handler).replace("127.0.0.1", "localhost")
    async with Fetcher(origins=[address], max_bytes=100_000, timeout_s=30) as fetcher:
        with pytest.raises(FetchError, match="localhost leads into a private network"):
            await fetcher.fetch(address)
    assert site.asked == []


async def test_trust_in_one_name_is_no_trust_in_another(site: Site) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=png())

    address = site.answers(handler).replace("127.0.0.1", "localhost")
    async with Fetcher(
        origins=[address], trusted_origins=[site.origin], max_bytes=100_000, timeout_s=30
    ) as fetcher:
        with pytest.raises(FetchError, match="private network"):
            await fetcher.fetch(address)
    assert site.asked == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(site: Site, fetcher: Fetcher, status: int) -> None:
    async def handler(request: web.Request) -> web.Response:
        if request.path == "/picture":
            return web.Response(status=status, headers={"Location": "/inside.png"})
        return web.Response(body=png())

    with pytest.raises(RefusedError, match="redirects are not followed"):
        await fetcher.fetch(site.answers(handler))
    assert site.asked == ["/picture"]


@pytest.mark.parametrize("status", [403, 404, 410])
async def test_a_dead_link_is_told_apart(site: Site, fetcher: Fetcher, status: int) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=status, body=png())

    with pytest.raises(GoneError):
        await fetcher.fetch(site.answers(handler))


@pytest.mark.parametrize("status", [204, 429, 500, 503])
async def test_what_may_pass_is_no_refusal(site: Site, fetcher: Fetcher, status: int) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=status)

    with pytest.raises(FetchError, match=f"status {status}") as raised:
        await fetcher.fetch(site.answers(handler))
    assert not isinstance(raised.value, RefusedError | GoneError)


async def test_a_file_that_says_that_it_is_too_long_is_not_read(
    site: Site, fetcher: Fetcher
) -> None:
    cut_off = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100001"})
        await response.prepare(request)
        try:
            await asyncio.Event().wait()
        finally:
            cut_off.set()
        return response

    with pytest.raises(RefusedError, match="longer than 100000 bytes"):
        await fetcher.fetch(site.answers(handler))
    await cut_off.wait()


async def test_a_file_that_grows_too_long_is_cut_off(site: Site, fetcher: Fetcher) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(png(64) + bytes(10_000))
        except ConnectionError:
            return response

    with pytest.raises(RefusedError, match="longer than 100000 bytes"):
        await fetcher.fetch(site.answers(handler))


async def test_a_file_that_is_cut_short_is_no_picture(site: Site, fetcher: Fetcher) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(png()))})
        await response.prepare(request)
        await response.write(png()[:20])
        assert request.transport is not None
        request.transport.close()
        return response

    with pytest.raises(FetchError, match="not received") as raised:
        await fetcher.fetch(site.answers(handler))
    assert not isinstance(raised.value, RefusedError | GoneError)


async def test_a_compressed_body_is_not_unpacked(site: Site, fetcher: Fetcher) -> None:
    bomb = gzip.compress(png() + bytes(10_000_000))

    async def handler(request: web.Request) -> web.Response:
        assert request.headers["Accept-Encoding"] == "identity"
        return web.Response(body=bomb, headers={"Content-Encoding": "gzip"})

    with pytest.raises(RefusedError, match="no picture"):
        await fetcher.fetch(site.answers(handler))


async def test_a_server_that_dawdles_is_left(site: Site) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.Event().wait()
        return response

    async with Fetcher(trusted_origins=[site.origin], max_bytes=9, timeout_s=0.05) as fetcher:
        with pytest.raises(FetchError, match=r"longer than 0\.05 s"):
            await fetcher.fetch(site.answers(handler))


async def test_no_connection_is_a_failure_that_may_pass() -> None:
    async with Fetcher(
        trusted_origins=["http://127.0.0.1:1"], max_bytes=9, timeout_s=30
    ) as fetcher:
        with pytest.raises(FetchError, match="not received"):
            await fetcher.fetch("http://127.0.0.1:1/a.png")


@pytest.mark.parametrize("origin", ["cdn.example", "ftp://cdn.example", "https://me@cdn.example"])
def test_an_origin_that_is_none_is_refused(origin: str) -> None:
    with pytest.raises(ValueError, match="is no origin"):
        parse_origin(origin)


def test_discords_own_hosts_are_spoken_to_in_private() -> None:
    assert {parse_origin(origin)[0] for origin in DISCORD_ORIGINS} == {"https"}


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("168.63.129.16", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),  # noqa: S104
        ("224.0.0.251", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("::7f00:1", False),
        ("::ffff:93.184.216.34", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b:1::a00:1", False),
        ("2002:7f00:1::", False),
        ("2001:0:7f00:1::", False),
        ("2001:db8::1", False),
        ("fd00::1", False),
        ("fe80::1%eth0", False),
        ("ff02::1", False),
    ],
)
def test_addresses_of_the_open_internet_are_told_from_all_others(
    address: str, *, public: bool
) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a.png",
        "http://[::1]/a.png",
        "http://[::ffff:7f00:1]/a.png",
        "http://[64:ff9b::7f00:1]/a.png",
        "http://169.254.169.254/latest/meta-data/",
        "http://localhost/a.png",
        "http://localhost./a.png",
        "http://2130706433/a.png",
        "http://0x7f.1/a.png",
        "http://127.1/a.png",
        "http://user@93.184.216.34/a.png",
        "http://93.184.216.34:22/a.png",
        "http://93.184.216.34:8080/a.png",
        "https://[oops/a.png",
        "file:///etc/passwd",
        "ftp://93.184.216.34/a.png",
        "a.png",
        "",
    ],
)
async def test_a_strangers_address_must_be_public(url: str) -> None:
    async with Fetcher(max_bytes=1, timeout_s=30) as fetcher:
        with pytest.raises(FetchError) as raised:
            await fetcher.fetch_anywhere(url)
    assert "private" not in str(raised.value), "it tells what lies in this network"


@pytest.mark.parametrize("host", ["2130706433", "127.1", "017700000001", "0", "0177.0.0.1"])
async def test_figures_in_another_spelling_are_no_name_to_be_looked_up(host: str) -> None:
    async with Fetcher(max_bytes=1, timeout_s=30) as fetcher:
        with pytest.raises(RefusedError, match="cannot be reached"):
            await fetcher.fetch_anywhere(f"http://{host}/a.png")


class Names(aiohttp.ThreadedResolver):
    """A name service whose answers are written in the test, in turn."""

    answers: dict[str, list[str]] = {}  # noqa: RUF012 (emptied by the fixture)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        given = self.answers[host]
        address = given.pop(0) if len(given) > 1 else given[0]
        return [
            ResolveResult(
                hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=0
            )
        ]


@pytest.fixture
async def internet(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Fetcher, Callable[[str], str]]]:
    """A fetcher for which 127.0.0.1 and its port are the open internet, 127.0.0.2 is not."""
    port = int(site.origin.rpartition(":")[2])
    here = ipaddress.ip_address("127.0.0.1")
    monkeypatch.setattr(fetch, "is_public", lambda address: ipaddress.ip_address(address) == here)
    monkeypatch.setattr(fetch, "_PORTS", frozenset({port}))
    monkeypatch.setattr(aiohttp, "ThreadedResolver", Names)
    monkeypatch.setattr(Names, "answers", {"maps.example": ["127.0.0.1"]})
    async with Fetcher(max_bytes=100_000, timeout_s=30) as fetcher:
        yield fetcher, lambda host: f"http://{host}:{port}"


async def test_a_picture_comes_from_anywhere_over_a_few_redirects(
    site: Site, internet: tuple[Fetcher, Callable[[str], str]]
) -> None:
    async def handler(request: web.Request) -> web.Response:
        if request.path == "/picture":
            return web.Response(status=302, headers={"Location": "/two"})
        if request.path == "/two":
            return web.Response(status=301, headers={"Location": f"{at('127.0.0.1')}/three"})
        return web.Response(body=png())

    fetcher, at = internet
    site.answers(handler)
    assert await fetcher.fetch_anywhere(f"{at('maps.example')}/picture") == png()
    assert site.asked == ["/picture", "/two", "/three"]


@pytest.mark.parametrize(
    "onward", ["http://127.0.0.2:{port}/in", "http://inside.example:{port}/in", "file:///etc", ""]
)
async def test_every_hop_is_checked(
    site: Site, internet: tuple[Fetcher, Callable[[str], str]], onward: str
) -> None:
    fetcher, at = internet
    Names.answers["inside.example"] = ["127.0.0.2"]
    location = onward.format(port=at("").rpartition(":")[2])

    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": location})

    site.answers(handler)
    with pytest.raises(FetchError):
        await fetcher.fetch_anywhere(f"{at('maps.example')}/picture")
    assert set(site.asked) == {"/picture"}


async def test_a_chain_of_redirects_ends(
    site: Site, internet: tuple[Fetcher, Callable[[str], str]]
) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": f"{request.path}x"})

    fetcher, at = internet
    site.answers(handler)
    with pytest.raises(RefusedError, match="without end"):
        await fetcher.fetch_anywhere(f"{at('maps.example')}/picture")
    assert len(site.asked) == 4


async def test_a_name_is_connected_to_where_it_was_checked(
    site: Site, internet: tuple[Fetcher, Callable[[str], str]]
) -> None:
    """A name that changes its address after the first question gains nothing."""
    fetcher, at = internet
    Names.answers["rebinding.example"] = ["127.0.0.2", "127.0.0.1"]
    Names.answers["turncoat.example"] = ["127.0.0.1", "127.0.0.2"]

    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=png())

    site.answers(handler)
    with pytest.raises(FetchError, match="cannot be reached"):
        await fetcher.fetch_anywhere(f"{at('rebinding.example')}/picture")
    assert site.asked == []
    assert await fetcher.fetch_anywhere(f"{at('turncoat.example')}/picture") == png()


async def test_indexing_still_fetches_from_listed_origins_only(
    internet: tuple[Fetcher, Callable[[str], str]],
) -> None:
    fetcher, at = internet
    with pytest.raises(RefusedError, match="not fetched from"):
        await fetcher.fetch(f"{at('maps.example')}/picture")
