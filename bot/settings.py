"""The settings of the bot and of the commands that work on the archive."""

from enum import StrEnum
from pathlib import Path

from pydantic import Field, SecretStr

from inference.environment import Settings
from inference.errors import StartupError


class UrlSearch(StrEnum):
    """Where `/find url:` may lead."""

    ANYWHERE = "anywhere"
    DISCORD = "discord"
    OFF = "off"


class BotSettings(Settings):
    """Where the archive lies and how the bot behaves. Build it with `BotSettings.load()`."""

    archive: Path = Field(
        default=Path("mapseek.db"),
        description="File of the picture archive. Made by `mapseek index` and by the bot.",
    )
    discord_token: SecretStr | None = Field(
        default=None,
        description="The bot's token, from the Bot page of discord.com/developers/applications.",
    )
    results: int = Field(
        default=3,
        ge=1,
        le=10,
        description="How many matches an answer shows.",
    )
    queue: Path | None = Field(
        default=None,
        description="File of the bot's durable queue: what was posted and is not indexed yet. "
        "Unset: beside the archive, named after it.",
    )
    download_bytes: int = Field(
        default=16 * 1024 * 1024,
        ge=1024,
        le=1024 * 1024 * 1024,
        description="Longest picture that the bot downloads, in bytes. More than the server's "
        "MAPSEEK_MAX_IMAGE_BYTES is downloaded in vain.",
    )
    download_s: float = Field(
        default=15.0,
        gt=0.0,
        le=600.0,
        description="How long one download may take, in seconds.",
    )
    download_origins: str = Field(
        default="",
        description="Origins to download from beside Discord's own, comma-separated, as "
        "scheme://host:port. They are trusted: they may lie in a private network.",
    )

    privacy_url: str = Field(
        default="",
        description="Address of your privacy page, which `/privacy show` links to. Discord asks "
        "for one; docs/privacy.md is a start.",
    )
    url_search: UrlSearch = Field(
        default=UrlSearch.ANYWHERE,
        description="Where /find url: may lead: anywhere (public addresses only, each redirect "
        "checked), discord (its own hosts and MAPSEEK_DOWNLOAD_ORIGINS), or off.",
    )
    searches_per_member: int = Field(
        default=20,
        ge=0,
        description="Searches and clicks a minute of one member, half at once. 0: no limit.",
    )
    searches_per_guild: int = Field(
        default=300,
        ge=0,
        description="Searches and clicks a minute of one Discord server, half at once. 0: no "
        "limit.",
    )

    @property
    def queue_file(self) -> Path:
        """Where the durable queue lies."""
        return self.queue or self.archive.with_name(f"{self.archive.stem}-queue.db")

    def required_token(self) -> str:
        """The bot's token.

        Raises:
            StartupError: It is not set.
        """
        if self.discord_token is None:
            raise StartupError(
                "There is no Discord token: put MAPSEEK_DISCORD_TOKEN=... into the environment or "
                ".env, from the Bot page of your application at "
                "https://discord.com/developers/applications."
            )
        return self.discord_token.get_secret_value()
