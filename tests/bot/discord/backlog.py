"""The part of the loopback Discord that knows the past, and lets the bot write and reconnect.

History in pages, threads active and archived, messages of the bot's own, rate limits as Discord
announces them, sessions that are resumed or lost, and permissions that the bot lacks.
"""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from tests.bot.discord.loopback import Answer

Json = dict[str, Any]

MANAGE_GUILD = 1 << 5
ADMIN = 2
EPOCH_MS = 1_420_070_400_000
BOT = "900"
SUB_COMMAND, STRING, INTEGER, BOOLEAN, USER, CHANNEL = 1, 3, 4, 5, 6, 7


class Backlog:
    """Mixed into `Discord`, whose guilds, channels and messages it works on."""

    guilds: dict[int, Json]
    channels: dict[int, Json]
    messages: dict[int, Json]
    hidden_from_bot: set[int]
    member_permissions: dict[int, int]
    ready: asyncio.Event
    _socket: web.WebSocketResponse | None

    def __init__(self) -> None:
        self.pages: list[int] = []
        self.page_gate = asyncio.Event()
        self.page_gate.set()
        self.page_asked = asyncio.Event()
        self.refuse_pages = 0
        self.blank_pages = False
        self.sent: list[Json] = []
        self.application_flags = 1 << 18
        self.can_resume = True
        self.sessions = 0
        self.resumes = 0
        self._log: list[tuple[int, str]] = []

    def backlog_routes(self) -> list[tuple[str, str, Callable[..., Any]]]:
        api = "/api/v10"
        return [
            ("GET", f"{api}/channels/{{channel}}/messages", self._get_page),
            ("POST", f"{api}/channels/{{channel}}/messages", self._send_message),
            ("PATCH", f"{api}/channels/{{channel}}/messages/{{message}}", self._edit_message),
            ("GET", f"{api}/guilds/{{guild}}/threads/active", self._active_threads),
            ("GET", f"{api}/channels/{{channel}}/threads/archived/{{kind}}", self._archived),
        ]

    # What people and Discord do.

    def lack(self, channel_id: int, permissions: int) -> None:
        """Takes permissions from the bot in a channel. Told at the next introduction only."""
        overwrites = self.channels[channel_id]["permission_overwrites"]
        overwrites[:] = [one for one in overwrites if one["id"] != BOT]
        overwrites.append({"id": BOT, "type": 1, "allow": "0", "deny": str(permissions)})

    async def tell_of_channel(self, channel_id: int) -> None:
        await self.dispatch("CHANNEL_UPDATE", self.channels[channel_id])

    def remember(self, channel_id: int, data: bytes, *, sent_at: datetime) -> Json:
        """A message of the past, which nobody is told of."""
        number = len(self.messages)
        message = self._bot_message(channel_id, [], flags=0)
        message |= {
            "id": str((round(sent_at.timestamp() * 1000) - EPOCH_MS) << 22 | number % (1 << 22)),
            "author": self._user(42),
            "timestamp": sent_at.isoformat(timespec="milliseconds"),
            "attachments": [self.upload(channel_id, data)],
        }
        self.messages[int(message["id"])] = message
        self.channels[channel_id]["last_message_id"] = message["id"]
        return message

    def put_away(self, thread_id: int) -> None:
        """Archives a thread, now."""
        thread = self.channels[thread_id]
        self.guilds[int(thread["guild_id"])]["threads"].remove(thread)
        thread["thread_metadata"] |= {
            "archived": True,
            "archive_timestamp": datetime.now(UTC).isoformat(),
        }

    async def cut_off(self, *, resumable: bool) -> None:
        """Breaks the connection; the bot comes back by itself, to its session or to a new one."""
        self.can_resume = resumable
        socket, self._socket = self._socket, None
        self.ready.clear()
        assert socket is not None, "the bot is connected"
        await socket.close(code=4000)

    async def use(
        self,
        command: str,
        sub: str,
        options: dict[str, Any] | None = None,
        *,
        channel_id: int,
        member: int = ADMIN,
    ) -> "Answer":
        """Uses a slash command; only `ADMIN` may manage the guild."""
        self.member_permissions.setdefault(ADMIN, MANAGE_GUILD | 1 << 10 | 1 << 16)
        given = [self._option(name, value) for name, value in (options or {}).items()]
        data = {
            "id": self._command_id(command),
            "name": command,
            "type": 1,
            "options": [{"name": sub, "type": SUB_COMMAND, "options": [one for one, _ in given]}],
            "resolved": {key: value for _, more in given for key, value in more.items()},
        }
        return await self._interact(2, data, channel_id, member)

    async def use_plain(self, command: str, *, channel_id: int, member: int) -> "Answer":
        """Uses a slash command that has nothing to choose."""
        data = {"id": self._command_id(command), "name": command, "type": 1}
        return await self._interact(2, data, channel_id, member)

    def _option(self, name: str, value: Any) -> tuple[Json, Json]:
        if name == "channel":
            channel = self.channels[value] | {"permissions": "0"}
            option = {"name": name, "type": CHANNEL, "value": str(value)}
            return option, {"channels": {str(value): channel}}
        if name == "user":
            resolved = {"users": {str(value): self._user(value)}}
            return {"name": name, "type": USER, "value": str(value)}, resolved
        kinds = {bool: BOOLEAN, int: INTEGER, str: STRING}
        return {"name": name, "type": kinds[type(value)], "value": value}, {}

    # What the rest of Discord brings.

    async def dispatch(self, event: str, data: Json) -> None:
        raise NotImplementedError

    async def _interact(
        self, kind: int, data: Json, channel_id: int, member: int, **more: Any
    ) -> "Answer":
        raise NotImplementedError

    def _command_id(self, name: str) -> str:
        raise NotImplementedError

    def upload(self, channel_id: int, data: bytes, *, spoiler: bool = False) -> Json:
        raise NotImplementedError

    def _now_id(self) -> str:
        raise NotImplementedError

    def _signed(self, message: Json) -> Json:
        raise NotImplementedError

    def _user(self, number: int) -> Json:
        raise NotImplementedError

    def _bot_message(self, channel_id: int, components: list[Json], *, flags: int) -> Json:
        raise NotImplementedError

    # The gateway.

    def _remember(self, sequence: int, frame: str) -> None:
        self._log.append((sequence, frame))

    async def _resume(self, socket: web.WebSocketResponse, last: int) -> bool:
        """Sends what was missed, if the session is still known."""
        if not self.can_resume:
            self.can_resume = True
            await socket.send_json({"op": 9, "d": False})
            return False
        self.resumes += 1
        for sequence, frame in self._log:
            if sequence > last:
                await socket.send_str(frame)
        await socket.send_json({"op": 0, "t": "RESUMED", "s": last, "d": {}})
        return True

    # REST.

    def _no_access(self, channel_id: int) -> web.Response | None:
        if channel_id in self.hidden_from_bot:
            return _json({"code": 50001, "message": "Missing Access"}, status=403)
        if channel_id not in self.channels:
            return _json({"code": 10003, "message": "Unknown Channel"}, status=404)
        return None

    def _bot_lacks(self, channel_id: int, permission: int) -> bool:
        channel = self.channels[channel_id]
        parent = self.channels.get(int(channel.get("parent_id") or 0))
        place = parent if "thread_metadata" in channel and parent else channel
        denied = [o for o in place.get("permission_overwrites", ()) if o["id"] == BOT]
        return any(int(one["deny"]) & permission for one in denied)

    async def _get_page(self, request: web.Request) -> web.Response:
        channel_id = int(request.match_info["channel"])
        if refused := self._no_access(channel_id):
            return refused
        if self.refuse_pages:
            self.refuse_pages -= 1
            return _json(
                {"message": "You are being rate limited.", "retry_after": 0.01, "global": False},
                status=429,
                headers={"Retry-After": "0.01", "Via": "1.1 loopback", "X-RateLimit-Scope": "user"},
            )
        self.pages.append(channel_id)
        limit = int(request.query["limit"])
        if not 1 <= limit <= 100:
            return _json({"code": 50035, "message": "limit is 1 to 100"}, status=400)
        every = sorted(
            (one for one in self.messages.values() if one["channel_id"] == str(channel_id)),
            key=lambda one: int(one["id"]),
        )
        if self._bot_lacks(channel_id, 1 << 16):
            every = []
        after, before = int(request.query.get("after", 0)), request.query.get("before")
        if before is not None:
            page = [one for one in every if int(one["id"]) < int(before)][-limit:]
        elif "after" in request.query:
            page = [one for one in every if int(one["id"]) > after][:limit]
        else:
            page = every[-limit:]
        answer = [self._signed(one) for one in reversed(page)]
        if self.blank_pages:
            blank: Json = {"content": "", "embeds": [], "attachments": [], "components": []}
            answer = [one | blank for one in answer]
        # What happens now, overtakes this answer.
        self.page_asked.set()
        await self.page_gate.wait()
        return _json(answer)

    async def _send_message(self, request: web.Request) -> web.Response:
        channel_id = int(request.match_info["channel"])
        if refused := self._no_access(channel_id):
            return refused
        if self._bot_lacks(channel_id, 1 << 11):
            return _json({"code": 50013, "message": "Missing Permissions"}, status=403)
        payload = await request.json()
        message = self._bot_message(channel_id, payload.get("components") or [], flags=0)
        message |= {"id": self._now_id(), "content": payload.get("content") or ""}
        self.sent.append(payload | {"channel_id": channel_id, "id": message["id"]})
        self.messages[int(message["id"])] = message
        return _json(message)

    async def _edit_message(self, request: web.Request) -> web.Response:
        message = self.messages.get(int(request.match_info["message"]))
        if message is None:
            return _json({"code": 10008, "message": "Unknown Message"}, status=404)
        if message["author"]["id"] != BOT:
            return _json({"code": 50005, "message": "Not your message"}, status=403)
        payload = await request.json()
        message["content"] = payload.get("content") or ""
        return _json(message)

    async def _active_threads(self, request: web.Request) -> web.Response:
        threads = self.guilds[int(request.match_info["guild"])]["threads"]
        return _json({"threads": threads, "members": [], "has_more": False})

    async def _archived(self, request: web.Request) -> web.Response:
        parent = request.match_info["channel"]
        kind = {"public": 11, "private": 12}[request.match_info["kind"]]
        before = request.query.get("before", "9")
        found = sorted(
            (
                one
                for one in self.channels.values()
                if one.get("parent_id") == parent
                and one["type"] == kind
                and one not in self.guilds[int(one["guild_id"])]["threads"]
                and one["thread_metadata"]["archive_timestamp"] < before
            ),
            key=lambda one: str(one["thread_metadata"]["archive_timestamp"]),
            reverse=True,
        )
        limit = min(2, int(request.query["limit"]))  # short, so that there are further pages
        return _json({"threads": found[:limit], "members": [], "has_more": len(found) > limit})


def _json(
    payload: Any, *, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    return web.Response(
        body=json.dumps(payload).encode(),
        status=status,
        headers={"Content-Type": "application/json", **(headers or {})},
    )
