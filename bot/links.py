"""Names and addresses that the bot and the importer must make in the same way.

A picture that was imported and is then met in Discord has to be the same entry of the archive.
"""

import hashlib
import re
from urllib.parse import parse_qs, urlsplit

# DiscordChatExporter names a downloaded file NAME-HASH.EXT, after its address; until February 2026
# with five digits.
_MEDIA_NAME = re.compile(r"-([0-9a-f]{5}|[0-9a-f]{16})(?:\.[^.]*)?$", re.IGNORECASE)

# How the ids of pictures begin that are known by such a name alone.
MEDIA = "media-"

# Words that Discord hides until they are clicked.
_BARS = re.compile(r"\|\|(.+?)\|\|", re.DOTALL)

_SIGNATURE = frozenset({"ex", "is", "hm"})
_SIGNED_HOSTS = frozenset({"cdn.discordapp.com", "media.discordapp.net"})


def unsigned(url: str) -> str:
    """The link without Discord's expiring signature; other links unchanged."""
    parts = urlsplit(url)
    if parse_qs(parts.query).keys() >= _SIGNATURE:
        return parts._replace(query="").geturl()
    return url


def signature_missing(url: str) -> bool:
    """Whether Discord would not give this file out: it signs its attachments' links."""
    parts = urlsplit(url)
    return (
        parts.hostname in _SIGNED_HOSTS
        and parts.path.startswith(("/attachments/", "/ephemeral-attachments/"))
        and not parse_qs(parts.query).keys() >= _SIGNATURE
    )


def embedded_id(url: str) -> str:
    """The attachment id of a picture that is only linked to, which Discord gives none.

    Args:
        url: The picture's own address, not that of Discord's copy.
    """
    return "embed-" + hashlib.sha256(unsigned(url).encode()).hexdigest()[:16]


def media_id(name: str) -> str:
    """The attachment id of a downloaded file whose export tells no other; "" if its name is none.

    Args:
        name: The file's name, as DiscordChatExporter chose it.
    """
    found = _MEDIA_NAME.search(name)
    return MEDIA + found[1].lower() if found else ""


def media_ids(url: str) -> set[str]:
    """The ids that `media_id` gives the file of an address.

    Args:
        url: Where the file was downloaded from.
    """
    digest = hashlib.sha256(unsigned(url).encode()).hexdigest()
    return {MEDIA + digest[:5], MEDIA + digest[:16]}


def hidden_words(content: str) -> str:
    """What stands in ||bars|| in a message. The embeds of links in there are spoilers.

    Args:
        content: The message's text.
    """
    return " ".join(_BARS.findall(content))


def message_link(guild_id: str, channel_id: str, message_id: str) -> str:
    """Leads to a message in Discord; direct messages have no guild."""
    return f"https://discord.com/channels/{guild_id or '@me'}/{channel_id}/{message_id}"
