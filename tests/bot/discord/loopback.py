"""A small Discord on this machine: REST v10, gateway and CDN over real HTTP and WebSocket.

It keeps what it is told (guilds, channels, messages, files), speaks as the real one does, and is
as strict where the bot could get it wrong: the token, the content intent, three seconds to
acknowledge an interaction and only once, limits of messages, links that expire, channels that the
bot may not read.
"""

import asyncio
import contextlib
import itertools
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from aiohttp import BodyPartReader, WSMsgType, web

from tests.bot.discord.backlog import Backlog
from tests.bot.discord.limits import problem_of

TOKEN = "loopback." + secrets.token_urlsafe(16)
APPLICATION = 900
BOT_USER = {
    "id": str(APPLICATION),
    "username": "mapseek",
    "discriminator": "0000",
    "avatar": None,
    "bot": True,
}
OWNER = 7
MESSAGE_CONTENT = 1 << 15
VIEW_CHANNEL = 1 << 10
SEND_MESSAGES = 1 << 11
MANAGE_MESSAGES = 1 << 13
ATTACH_FILES = 1 << 15
READ_HISTORY = 1 << 16
CONNECT = 1 << 20
SEND_IN_THREADS = 1 << 38
EVERYONE_MAY = (
    VIEW_CHANNEL | READ_HISTORY | CONNECT | SEND_MESSAGES | ATTACH_FILES | SEND_IN_THREADS
)
ACKNOWLEDGE_S = 3.0
EPOCH_MS = 1_420_070_400_000
TEXT, VOICE, PUBLIC_THREAD, PRIVATE_THREAD = 0, 2, 11, 12

Json = dict[str, Any]


@dataclass
class Answer:
    """What a member ends up seeing, and how it came there: as an edit, beside, or as a deletion."""

    ephemeral: bool
    content: str = ""
    components: list[Json] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    allowed_mentions: Json | None = None
    how: str = "edit"
    flags: int = 0
    later: "asyncio.Queue[Answer] | None" = None

    async def then(self) -> "Answer":
        """What the same interaction brought after this."""
        assert self.later is not None
        async with asyncio.timeout(30):
            return await self.later.get()

    def buttons(self) -> dict[str, Json]:
        """The buttons that do something, by what stands on them."""
        every = [c for row in self.components for c in row["components"]]
        return {c["label"]: c for c in every if c["type"] == 2 and "custom_id" in c}

    @property
    def links(self) -> list[str]:
        return [c["url"] for row in self.components for c in row["components"] if "url" in c]

    @property
    def select(self) -> Json:
        (found,) = [c for row in self.components for c in row["components"] if c["type"] == 3]
        return dict(found)


@dataclass
class _Pending:
    sent_at_s: float
    answers: asyncio.Queue[Answer] = field(default_factory=asyncio.Queue)
    deferred: Json | None = None
    ephemeral_message: bool = True


class Discord(Backlog):
    """The service. An async context manager; `port` is there inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.content_intent_enabled = True
        self.introduces_guilds = True
        self.guilds: dict[int, Json] = {}
        self.channels: dict[int, Json] = {}
        self.messages: dict[int, Json] = {}
        self.files: dict[int, bytes] = {}
        self.hidden_from_bot: set[int] = set()
        self.thread_members: dict[int, set[int]] = {}
        self.memberships_asked: list[int] = []
        self.member_permissions: dict[int, int] = {}
        self.member_roles: dict[int, list[int]] = {}
        self.messages_asked = 0  # how often the bot asked for one
        self.refuse_messages = 0  # so many questions for a message are one too many
        self.tokens_live_s = 900.0
        self.fail_once: set[str] = set()  # "edit" or "beside"
        self._intents = 0
        self.commands: list[Json] = []
        self.synced = asyncio.Event()
        self.ready = asyncio.Event()
        self.links_expire_at_s = 0x7FFFFFFF
        self.downloads: list[int] = []
        self.download_gate = asyncio.Event()
        self.download_gate.set()
        self.download_started = asyncio.Event()
        self._ids = itertools.count(1_000_000)
        self._sequence = itertools.count(1)
        self._socket: web.WebSocketResponse | None = None
        self._pending: dict[str, _Pending] = {}
        self.port = 0

    # Setting the scene.

    def add_guild(self, guild_id: int) -> int:
        everyone = {
            "id": str(guild_id),
            "name": "@everyone",
            "permissions": str(EVERYONE_MAY),
            "position": 0,
            "color": 0,
            "colors": {"primary_color": 0, "secondary_color": None, "tertiary_color": None},
            "hoist": False,
            "managed": False,
            "mentionable": False,
            "flags": 0,
        }
        self.guilds[guild_id] = {
            "id": str(guild_id),
            "name": "Map guild",
            "owner_id": str(OWNER),
            "roles": [everyone],
            "emojis": [],
            "stickers": [],
            "features": [],
            "channels": [],
            "threads": [],
            "members": [bot_member()],
            "member_count": 2,
            "large": False,
            "unavailable": False,
            "voice_states": [],
            "presences": [],
            "stage_instances": [],
            "guild_scheduled_events": [],
            "soundboard_sounds": [],
            "joined_at": "2020-01-01T00:00:00+00:00",
            "verification_level": 0,
            "default_message_notifications": 0,
            "explicit_content_filter": 0,
            "mfa_level": 0,
            "nsfw_level": 0,
            "premium_tier": 0,
            "premium_progress_bar_enabled": False,
            "preferred_locale": "en-US",
            "system_channel_flags": 0,
            "afk_timeout": 300,
        }
        return guild_id

    def add_channel(
        self,
        guild_id: int,
        channel_id: int,
        *,
        kind: int = TEXT,
        hidden_from: int | None = None,
        nsfw: bool = False,
    ) -> int:
        overwrites = []
        if hidden_from is not None:
            overwrites.append(
                {"id": str(hidden_from), "type": 1, "allow": "0", "deny": str(VIEW_CHANNEL)}
            )
        channel = {
            "id": str(channel_id),
            "guild_id": str(guild_id),
            "type": kind,
            "name": f"channel-{channel_id}",
            "position": channel_id,
            "nsfw": nsfw,
            "parent_id": None,
            "permission_overwrites": overwrites,
            "bitrate": 64000,
            "user_limit": 0,
        }
        self.channels[channel_id] = channel
        self.guilds[guild_id]["channels"].append(channel)
        return channel_id

    def add_thread(
        self, guild_id: int, thread_id: int, *, parent_id: int, kind: int = PUBLIC_THREAD
    ) -> int:
        thread = {
            "id": str(thread_id),
            "guild_id": str(guild_id),
            "parent_id": str(parent_id),
            "type": kind,
            "name": f"thread-{thread_id}",
            "owner_id": str(OWNER),
            "message_count": 0,
            "member_count": 1,
            "rate_limit_per_user": 0,
            "thread_metadata": {
                "archived": False,
                "auto_archive_duration": 1440,
                "archive_timestamp": "2024-01-01T00:00:00+00:00",
                "locked": False,
                "invitable": True,
            },
        }
        self.channels[thread_id] = thread
        self.guilds[guild_id]["threads"].append(thread)
        return thread_id

    # What people do.

    async def post(
        self,
        channel_id: int,
        *files: bytes,
        author: int = 42,
        spoiler: bool = False,
        forwarded: bool = False,
        embeds: list[Json] | None = None,
        components: list[Json] | None = None,
        content: str = "",
        name: str | None = None,
        sent_at: datetime | None = None,
    ) -> Json:
        attachments = [self.upload(channel_id, data, spoiler=spoiler) for data in files]
        sent_at = sent_at or datetime.now(UTC)
        message: Json = {
            "id": snowflake(sent_at, next(self._ids)),
            "channel_id": str(channel_id),
            "author": BOT_USER if author == APPLICATION else user(author),
            "content": content,
            "timestamp": sent_at.isoformat(timespec="milliseconds"),
            "edited_timestamp": None,
            "tts": False,
            "mention_everyone": False,
            "mentions": [],
            "mention_roles": [],
            "pinned": False,
            "embeds": embeds or [],
            "attachments": [] if forwarded else attachments,
            "components": [] if forwarded else components or [],
            "type": 0,
            "flags": 0,
        }
        if name is not None:
            message["author"] = message["author"] | {"global_name": name}
        if forwarded:
            inner = {k: message[k] for k in ("type", "content", "embeds", "timestamp", "mentions")}
            inner |= {"edited_timestamp": None, "attachments": attachments}
            inner["components"] = components or []
            message["message_snapshots"] = [{"message": inner}]
            message["message_reference"] = {"type": 1, "message_id": "5", "channel_id": "6"}
        self.messages[int(message["id"])] = message
        self.channels[channel_id]["last_message_id"] = message["id"]
        await self.dispatch("MESSAGE_CREATE", self._with_guild(message))
        return message

    def upload(self, channel_id: int, data: bytes, *, spoiler: bool = False) -> Json:
        number = next(self._ids)
        self.files[number] = data
        return {
            "id": str(number),
            "filename": "map.png",
            "size": len(data),
            "content_type": "image/png",
            "width": 64,
            "height": 64,
            "url": f"{self.origin}/attachments/{channel_id}/{number}/map.png",
            "proxy_url": f"{self.origin}/attachments/{channel_id}/{number}/map.png",
            "flags": 1 << 3 if spoiler else 0,
        }

    async def edit(self, message: Json, **changes: Any) -> None:
        message.update(changes)
        await self.dispatch("MESSAGE_UPDATE", self._with_guild(message))

    async def delete(self, *messages: Json) -> None:
        for message in messages:
            del self.messages[int(message["id"])]
        where = {k: self._with_guild(messages[0])[k] for k in ("channel_id", "guild_id")}
        if len(messages) == 1:
            await self.dispatch("MESSAGE_DELETE", {"id": messages[0]["id"], **where})
        else:
            ids = [message["id"] for message in messages]
            await self.dispatch("MESSAGE_DELETE_BULK", {"ids": ids, **where})

    async def introduced(self) -> None:
        """Returns when the bot is connected and its commands are registered."""
        await self.synced.wait()
        await self.ready.wait()

    def archive_thread(self, thread_id: int) -> None:
        """Puts a thread away: from now on no guild is introduced with it."""
        thread = self.channels[thread_id]
        self.guilds[int(thread["guild_id"])]["threads"].remove(thread)

    async def delete_thread(self, thread_id: int) -> None:
        thread = self.channels.pop(thread_id)
        self.guilds[int(thread["guild_id"])]["threads"].remove(thread)
        gone = {key: thread[key] for key in ("id", "guild_id", "parent_id", "type")}
        await self.dispatch("THREAD_DELETE", gone)

    async def remove_bot(self, guild_id: int) -> None:
        await self.dispatch("GUILD_DELETE", {"id": str(guild_id)})

    async def fail(self, guild_id: int) -> None:
        """An outage: the guild is unavailable for a while."""
        await self.dispatch("GUILD_DELETE", {"id": str(guild_id), "unavailable": True})

    async def delete_channel(self, channel_id: int) -> None:
        await self.dispatch("CHANNEL_DELETE", self.channels.pop(channel_id))

    async def use_message_command(
        self, message: Json, *, member: int, channel_id: int | None = None
    ) -> Answer:
        where = channel_id or int(message["channel_id"])
        data = {
            "id": self._command_id("Find similar map"),
            "name": "Find similar map",
            "type": 3,
            "target_id": message["id"],
            "resolved": {"messages": {message["id"]: self._signed(message)}},
        }
        return await self._interact(2, data, where, member)

    async def use_find(
        self,
        image: bytes | None = None,
        *,
        url: str | None = None,
        text: str | None = None,
        member: int,
        channel_id: int,
        name: str = "map.png",
    ) -> Answer:
        options: list[Json] = []
        data = {"id": self._command_id("find"), "name": "find", "type": 1, "options": options}
        if image is not None:
            attachment = self.sign(self.upload(channel_id, image)) | {"ephemeral": True}
            attachment["filename"] = name
            options.append({"name": "image", "type": 11, "value": attachment["id"]})
            data["resolved"] = {"attachments": {attachment["id"]: attachment}}
        for option, value in (("url", url), ("text", text)):
            if value is not None:
                options.append({"name": option, "type": 3, "value": value})
        return await self._interact(2, data, channel_id, member)

    async def choose(self, custom_id: str, value: str, *, member: int, channel_id: int) -> Answer:
        """Chooses in a select, which need not be there: a press that is made up."""
        data = {"custom_id": custom_id, "component_type": 3, "values": [value]}
        select = {"type": 3, "custom_id": custom_id, "options": [{"label": "x", "value": value}]}
        message = self._bot_message(channel_id, [{"type": 1, "components": [select]}], flags=64)
        return await self._interact(3, data, channel_id, member, message=message)

    async def press(
        self,
        answer: Answer,
        label: str,
        *,
        member: int,
        channel_id: int,
        custom_id: str | None = None,
    ) -> Answer:
        """Presses a button of an answer; with a custom id, one that is not there."""
        button = answer.buttons()[label]
        assert not button.get("disabled"), "Discord lets nobody press it"
        data = {"custom_id": custom_id or button["custom_id"], "component_type": 2}
        flags = 64 if answer.ephemeral else 0
        message = self._bot_message(channel_id, answer.components, flags=flags)
        return await self._interact(3, data, channel_id, member, message=message)

    def _bot_message(self, channel_id: int, components: list[Json], *, flags: int) -> Json:
        return {
            "id": str(next(self._ids)),
            "channel_id": str(channel_id),
            "author": BOT_USER,
            "content": "",
            "timestamp": datetime.now(UTC).isoformat(),
            "edited_timestamp": None,
            "tts": False,
            "mention_everyone": False,
            "mentions": [],
            "pinned": False,
            "embeds": [],
            "attachments": [],
            "components": components,
            "type": 0,
            "flags": flags,
        }

    def _command_id(self, name: str) -> str:
        (found,) = [command["id"] for command in self.commands if command["name"] == name]
        return str(found)

    async def _interact(
        self, kind: int, data: Json, channel_id: int, member: int, **more: Any
    ) -> Answer:
        channel = self.channels[channel_id]
        number, token = str(next(self._ids)), secrets.token_hex(8)
        pending = self._pending[token] = _Pending(asyncio.get_running_loop().time())
        if "message" in more:
            pending.ephemeral_message = bool(more["message"]["flags"] & 64)
        payload = {
            "id": number,
            "application_id": str(APPLICATION),
            "type": kind,
            "token": token,
            "version": 1,
            "locale": "en-US",
            "guild_locale": "en-US",
            "guild_id": channel["guild_id"],
            "channel_id": str(channel_id),
            "channel": {"id": str(channel_id), "type": channel["type"]},
            "app_permissions": "0",
            "attachment_size_limit": 10_000_000,
            "entitlements": [],
            "authorizing_integration_owners": {"0": channel["guild_id"]},
            "context": 0,
            "member": {
                "user": user(member),
                "roles": [str(role) for role in self.member_roles.get(member, ())],
                "joined_at": "2020-01-01T00:00:00+00:00",
                "permissions": str(self.member_permissions.get(member, EVERYONE_MAY)),
                "deaf": False,
                "mute": False,
                "flags": 0,
            },
            "data": data,
            **more,
        }
        await self.dispatch("INTERACTION_CREATE", payload)
        async with asyncio.timeout(30):
            return await pending.answers.get()

    # The gateway.

    async def dispatch(self, event: str, data: Json) -> None:
        """Sends an event, if the bot is connected: like the real one, it is not sent again."""
        sequence = next(self._sequence)
        frame = json.dumps({"op": 0, "t": event, "s": sequence, "d": data})
        self._remember(sequence, frame)
        if self._socket is not None:
            with contextlib.suppress(ConnectionError):  # it is dying at this moment
                await self._socket.send_str(frame)

    async def _gateway(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_json({"op": 10, "d": {"heartbeat_interval": 45000}})
        async for frame in socket:
            if frame.type is not WSMsgType.TEXT:
                break
            payload = json.loads(frame.data)
            if payload["op"] == 1:
                await socket.send_json({"op": 11})
            elif payload["op"] == 6:
                if await self._resume(socket, payload["d"]["seq"]):
                    self._socket = socket
                    self.ready.set()
            elif payload["op"] == 2:
                if payload["d"]["token"] != TOKEN:
                    await socket.close(code=4004)
                elif payload["d"]["intents"] & MESSAGE_CONTENT and not self.content_intent_enabled:
                    await socket.close(code=4014)
                else:
                    self._intents = payload["d"]["intents"]
                    self._socket = socket
                    self.sessions += 1
                    await self._welcome()
        if self._socket is socket:
            self._socket = None
            self.ready.clear()
        return socket

    async def _welcome(self) -> None:
        unavailable = [{"id": str(number), "unavailable": True} for number in self.guilds]
        await self.dispatch(
            "READY",
            {
                "v": 10,
                "session_id": "session",
                "resume_gateway_url": f"ws://127.0.0.1:{self.port}/gateway",
                "user": BOT_USER,
                "guilds": unavailable,
                "application": {"id": str(APPLICATION), "flags": self.application_flags},
            },
        )
        for guild in self.guilds.values() if self.introduces_guilds else ():
            await self.dispatch("GUILD_CREATE", guild)
        self.ready.set()

    def _with_guild(self, message: Json) -> Json:
        guild_id = self.channels[int(message["channel_id"])]["guild_id"]
        return {**self._readable(message), "guild_id": guild_id}

    def _readable(self, message: Json) -> Json:
        """The message as the bot may read it: others' content takes the intent, or a mention."""
        own = message["author"]["id"] == BOT_USER["id"]
        mentioned = BOT_USER["id"] in [one["id"] for one in message["mentions"]]
        if self._intents & MESSAGE_CONTENT or own or mentioned:
            return self._signed(message)
        blank: Json = {"content": "", "embeds": [], "attachments": [], "components": []}
        return {**message, **blank}

    def _signed(self, message: Json) -> Json:
        """The message as Discord sends it: every link newly signed."""
        signed = {**message, "attachments": [self.sign(a) for a in message["attachments"]]}
        signed["components"] = self._signed_media(message["components"])
        if "message_snapshots" in message:
            signed["message_snapshots"] = [
                {"message": self._signed(snapshot["message"])}
                for snapshot in message["message_snapshots"]
            ]
        return signed

    def _signed_media(self, part: Any) -> Any:
        """Components with the links of uploads among them signed."""
        if isinstance(part, list):
            return [self._signed_media(one) for one in part]
        if not isinstance(part, dict):
            return part
        inner = {name: self._signed_media(one) for name, one in part.items()}
        return self.sign(inner) if "attachment_id" in inner else inner

    def gallery(self, channel_id: int, *files: bytes, spoiler: bool = False) -> Json:
        """A Components-V2 gallery of uploads, for `post(components=[...])`."""
        items = []
        for data in files:
            upload = self.upload(channel_id, data)
            media = {key: upload[key] for key in ("url", "proxy_url", "width", "height")}
            media |= {"attachment_id": upload["id"], "content_type": "image/png"}
            items.append({"media": media, "spoiler": spoiler})
        return {"type": 12, "id": 1, "items": items}

    def sign(self, attachment: Json) -> Json:
        query = f"?ex={self.links_expire_at_s:x}&is=1&hm=0"
        return {**attachment, "url": attachment["url"] + query}

    def _user(self, number: int) -> Json:
        return user(number)

    def _now_id(self) -> str:
        return snowflake(datetime.now(UTC), next(self._ids))

    # REST.

    async def _me(self, request: web.Request) -> web.Response:
        return reply(BOT_USER)

    async def _gateway_bot(self, request: web.Request) -> web.Response:
        limit = {"total": 1000, "remaining": 999, "reset_after": 1, "max_concurrency": 1}
        url = f"ws://127.0.0.1:{self.port}/gateway"
        return reply({"url": url, "shards": 1, "session_start_limit": limit})

    async def _application(self, request: web.Request) -> web.Response:
        return reply(
            {
                "id": str(APPLICATION),
                "name": "mapseek",
                "icon": None,
                "description": "",
                "bot_public": True,
                "bot_require_code_grant": False,
                "verify_key": "",
                "owner": user(OWNER),
                "team": None,
                "summary": "",
                "flags": 1 << 18,
            }
        )

    async def _get_commands(self, request: web.Request) -> web.Response:
        return reply(self.commands)

    async def _put_commands(self, request: web.Request) -> web.Response:
        self.commands = [
            {
                "description": "",
                **command,
                "id": str(next(self._ids)),
                "application_id": str(APPLICATION),
                "version": "1",
            }
            for command in await request.json()
        ]
        self.synced.set()
        return reply(self.commands)

    async def _get_message(self, request: web.Request) -> web.Response:
        self.messages_asked += 1
        channel_id = int(request.match_info["channel"])
        if channel_id in self.hidden_from_bot:
            return reply({"code": 50001, "message": "Missing Access"}, status=403)
        if channel_id not in self.channels:
            return reply({"code": 10003, "message": "Unknown Channel"}, status=404)
        if self.refuse_messages:
            self.refuse_messages -= 1
            problem = {"message": "You are being rate limited.", "retry_after": 0.01}
            # Without `Via`, disnake takes it for a ban by Cloudflare.
            headers = {"Retry-After": "0.01", "Via": "1.1 loopback", "X-RateLimit-Scope": "user"}
            return reply(problem | {"global": False}, status=429, headers=headers)
        message = self.messages.get(int(request.match_info["message"]))
        if message is None or message["channel_id"] != str(channel_id):
            return reply({"code": 10008, "message": "Unknown Message"}, status=404)
        return reply(self._readable(message))

    async def _thread_member(self, request: web.Request) -> web.Response:
        thread_id, user_id = int(request.match_info["thread"]), int(request.match_info["user"])
        self.memberships_asked.append(thread_id)
        if user_id not in self.thread_members.get(thread_id, ()):
            return reply({"code": 10007, "message": "Unknown Member"}, status=404)
        joined = "2020-01-01T00:00:00+00:00"
        return reply(
            {"id": str(thread_id), "user_id": str(user_id), "join_timestamp": joined, "flags": 0}
        )

    async def _callback(self, request: web.Request) -> web.Response:
        pending = self._pending[request.match_info["token"]]
        if asyncio.get_running_loop().time() - pending.sent_at_s > ACKNOWLEDGE_S:
            return reply({"code": 10062, "message": "Unknown interaction"}, status=404)
        if pending.deferred is not None:
            return reply({"code": 40060, "message": "Already acknowledged"}, status=400)
        payload = pending.deferred = await request.json()
        if payload["type"] == 4:  # the answer itself
            data = payload["data"]
            if problem := problem_of(data, {}):
                return reply({"code": 50035, "message": problem}, status=400)
            flags = data.get("flags") or 0
            pending.answers.put_nowait(
                Answer(
                    ephemeral=bool(flags & 64),
                    content=data.get("content") or "",
                    components=data.get("components") or [],
                    allowed_mentions=data.get("allowed_mentions"),
                    how="beside",
                    flags=flags,
                    later=pending.answers,
                )
            )
        return web.Response(status=204)

    async def _edit_original(self, request: web.Request) -> web.Response:
        return await self._take_answer(request, how="edit")

    async def _follow_up(self, request: web.Request) -> web.Response:
        return await self._take_answer(request, how="beside")

    async def _take_answer(self, request: web.Request, *, how: str) -> web.Response:
        pending = self._pending[request.match_info["token"]]
        if pending.deferred is None:
            return reply({"code": 10015, "message": "Unknown Webhook"}, status=404)
        if asyncio.get_running_loop().time() - pending.sent_at_s > self.tokens_live_s:
            return reply({"code": 50027, "message": "Invalid Webhook Token"}, status=401)
        payload, files = await read_body(request)
        if how in self.fail_once:
            self.fail_once.discard(how)
            return reply({"code": 0, "message": "Internal error"}, status=400)
        if problem := problem_of(payload, files):
            return reply({"code": 50035, "message": problem}, status=400)
        # A deferred update edits the message that the component is on: ephemeral like that one.
        is_update = pending.deferred["type"] == 6
        flags = pending.deferred.get("data", {}).get("flags", 0)
        ephemeral = pending.ephemeral_message if is_update else bool(flags & 64)
        if how == "beside":
            ephemeral = bool((payload.get("flags") or 0) & 64)
        answer = Answer(
            ephemeral=ephemeral,
            content=payload.get("content") or "",
            components=payload.get("components") or [],
            files=files,
            allowed_mentions=payload.get("allowed_mentions"),
            how=how,
            flags=payload.get("flags") or 0,
            later=pending.answers,
        )
        pending.answers.put_nowait(answer)
        message = self._bot_message(next(iter(self.channels)), answer.components, flags=0)
        return reply(message | {"content": answer.content})

    async def _delete_original(self, request: web.Request) -> web.Response:
        pending = self._pending[request.match_info["token"]]
        pending.answers.put_nowait(Answer(ephemeral=False, how="delete"))
        return web.Response(status=204)

    async def _get_channel(self, request: web.Request) -> web.Response:
        channel_id = int(request.match_info["channel"])
        if channel_id in self.hidden_from_bot:
            return reply({"code": 50001, "message": "Missing Access"}, status=403)
        if channel_id not in self.channels:
            return reply({"code": 10003, "message": "Unknown Channel"}, status=404)
        return reply(self.channels[channel_id])

    async def _download(self, request: web.Request) -> web.Response:
        number = int(request.match_info["attachment"])
        self.download_started.set()
        await self.download_gate.wait()
        expires_at_s = int(request.query.get("ex", "0"), 16)
        if number not in self.files or expires_at_s < datetime.now(UTC).timestamp():
            return web.Response(status=404, text="This content is no longer available.")
        self.downloads.append(number)
        return web.Response(body=self.files[number], content_type="image/png")

    @web.middleware
    async def _authorise(self, request: web.Request, handler: Any) -> web.StreamResponse:
        open_to_all = ("/gateway", "/attachments/", "/api/v10/interactions", "/api/v10/webhooks")
        authorised = request.headers.get("Authorization") == f"Bot {TOKEN}"
        if not authorised and not request.path.startswith(open_to_all):
            return reply({"code": 0, "message": "401: Unauthorized"}, status=401)
        response: web.StreamResponse = await handler(request)
        return response

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def api(self) -> str:
        return f"{self.origin}/api/v10"

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[self._authorise])
        routes: list[tuple[str, str, Callable[..., Any]]] = [
            ("GET", "/gateway/", self._gateway),
            ("GET", "/gateway", self._gateway),
            ("GET", "/attachments/{channel}/{attachment}/{name}", self._download),
            ("GET", "/api/v10/users/@me", self._me),
            ("GET", "/api/v10/gateway/bot", self._gateway_bot),
            ("GET", "/api/v10/oauth2/applications/@me", self._application),
            ("GET", "/api/v10/applications/{app}/commands", self._get_commands),
            ("PUT", "/api/v10/applications/{app}/commands", self._put_commands),
            ("GET", "/api/v10/channels/{channel}", self._get_channel),
            ("GET", "/api/v10/channels/{channel}/messages/{message}", self._get_message),
            ("GET", "/api/v10/channels/{thread}/thread-members/{user}", self._thread_member),
            ("POST", "/api/v10/interactions/{id}/{token}/callback", self._callback),
            ("PATCH", "/api/v10/webhooks/{app}/{token}/messages/@original", self._edit_original),
            ("DELETE", "/api/v10/webhooks/{app}/{token}/messages/@original", self._delete_original),
            ("POST", "/api/v10/webhooks/{app}/{token}", self._follow_up),
        ]
        for method, path, handler in (*routes, *self.backlog_routes()):
            app.router.add_route(method, path, handler)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *reason: object) -> None:
        self.download_gate.set()
        await self._runner.cleanup()


def snowflake(moment: datetime, number: int) -> str:
    """An id with its time in it, as Discord makes them."""
    milliseconds = round(moment.timestamp() * 1000) - EPOCH_MS
    return str(milliseconds << 22 | number % (1 << 22))


def user(number: int) -> Json:
    return {
        "id": str(number),
        "username": f"member{number}",
        "discriminator": "0",
        "avatar": None,
        "global_name": f"Member *{number}*",
    }


def bot_member() -> Json:
    return {
        "user": BOT_USER,
        "roles": [],
        "joined_at": "2020-01-01T00:00:00+00:00",
        "deaf": False,
        "mute": False,
        "flags": 0,
    }


def reply(
    payload: Any, *, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    # The header exactly so: disnake takes anything else for text.
    return web.Response(
        body=json.dumps(payload).encode(),
        status=status,
        headers={"Content-Type": "application/json", **(headers or {})},
    )


async def read_body(request: web.Request) -> tuple[Json, dict[str, bytes]]:
    if request.content_type == "application/json":
        return dict(await request.json()), {}
    payload: Json = {}
    files = {}
    async for part in await request.multipart():
        assert isinstance(part, BodyPartReader), "no nested multipart"
        if part.name == "payload_json":
            payload = json.loads(await part.text())
        else:
            files[part.filename or ""] = bytes(await part.read())
    return payload, files
