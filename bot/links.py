"""Names and addresses that the bot and the importer must make in the same way.

A picture that was imported and is then met in Discord has to be the same entry of the archive.
"""

import hashlib
from urllib.parse import parse_qs, urlsplit

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


def message_link(guild_id: str, channel_id: str, message_id: str) -> str:
    """Leads to a message in Discord; direct messages have no guild."""
    return f"https://discord.com/channels/{guild_id or '@me'}/{channel_id}/{message_id}"
