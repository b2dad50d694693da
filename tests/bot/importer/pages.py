"""Writes pages as DiscordChatExporter's `--format HtmlDark --media` does, tags minified as well."""

from collections.abc import Iterable
from html import escape
from pathlib import Path

from tests.bot.importer.exports import CHANNEL, FIRST_MESSAGE, GUILD

NAME = f"Map guild - Archive - map-archive [{CHANNEL}].html"
JUMP = f"https://discord.com/channels/{GUILD}/{CHANNEL}/1"


def picture(url: str, name: str = "map.png", *, hidden: bool = False) -> str:
    spoiler = " chatlog__attachment--hidden" if hidden else ""
    caption = "<div class=chatlog__attachment-spoiler-caption>SPOILER</div>" if hidden else ""
    return (
        f'<div class="chatlog__attachment{spoiler}" onclick="">{caption}<a href="{escape(url)}">'
        f'<img class=chatlog__attachment-media src="{escape(url)}" alt="Image attachment" '
        f'title="Image: {escape(name)} (59.26 KB)" loading=lazy></a></div>'
    )


def embedded(url: str) -> str:
    return (
        f'<div class=chatlog__embed><a href="{url}"><img class=chatlog__embed-generic-image '
        f'src="{url}" alt="Embedded image" loading=lazy></a></div>'
    )


def message(number: int, *parts: str, first: bool = True, author: str = "Alice") -> str:
    """A message; those that are not the first of their group name no author."""
    message_id = FIRST_MESSAGE + number
    header = (
        f"<div class=chatlog__header><span class=chatlog__author title=alice data-user-id=42>"
        f"{escape(author)}</span> <span class=chatlog__timestamp title='01/05/2024'>"
        f"<a href=#chatlog__message-container-{message_id}>01/05/2024 10:00</a></span></div>"
    )
    avatar = '<img class=chatlog__avatar src="page_Files/avatar-00000.png" alt=Avatar>'
    return (
        f'<div id=chatlog__message-container-{message_id} class="chatlog__message-container " '
        f"data-message-id={message_id}><div class=chatlog__message><div "
        f"class=chatlog__message-aside>{avatar if first else ''}</div>"
        f"<div class=chatlog__message-primary>{header if first else ''}"
        f"<div class='chatlog__content chatlog__markdown'>words &amp; words</div>{''.join(parts)}"
        "</div></div></div>"
    )


def group(*messages: str) -> str:
    return f"<div class=chatlog__message-group>{''.join(messages)}</div>"


def write(folder: Path, groups: Iterable[str], *, name: str = NAME, head: str = JUMP) -> Path:
    page = folder / name
    page.write_text(
        "<!DOCTYPE html><html lang=en><head><title>Map guild - map-archive</title><meta "
        "charset=utf-8><style>.chatlog__message-group{margin:0}</style><script>let a = '<img "
        "class=chatlog__attachment-media src=evil.png>'</script></head><body>"
        f"<div class=preamble>{head}</div><div class=chatlog>{''.join(groups)}</div></body></html>",
        encoding="utf-8",
    )
    return page
