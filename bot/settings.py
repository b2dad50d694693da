"""The settings of the bot and of the commands that work on the archive."""

from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SecretStr

from inference.environment import Settings
from inference.errors import StartupError

ArchiveKind = Literal["embedded", "atlas"]


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
    archive_kind: Literal["auto", "embedded", "atlas"] = Field(
        default="auto",
        description="Which archive to use: embedded (the file), atlas (MAPSEEK_ATLAS_URI), or "
        "auto: Atlas where MAPSEEK_ATLAS_URI is set. --archive FILE means embedded.",
    )
    atlas_uri: SecretStr | None = Field(
        default=None,
        description="Connection string of MongoDB Atlas, mongodb+srv://USER:PASSWORD@HOST, from "
        "Connect > Drivers on the cluster's page.",
    )
    atlas_database: str = Field(
        default="mapseek", min_length=1, max_length=38, description="Database in Atlas."
    )
    atlas_collection: str = Field(
        default="images", min_length=1, max_length=200, description="Collection in that database."
    )
    atlas_index: str = Field(
        default="mapseek",
        pattern=r"^[A-Za-z0-9_-]{1,60}$",
        description="Name of the vector search indexes that mapseek makes; the length of the "
        "vectors follows it: mapseek_512. Others are recognised by their definition.",
    )
    atlas_quantization: Literal["none", "scalar", "binary"] = Field(
        default="none",
        description="How new vector search indexes keep vectors: none, scalar or binary. Worth it "
        "from some 100,000 pictures on.",
    )
    atlas_exact_limit: int = Field(
        default=20_000,
        ge=0,
        description="Up to this many documents every vector is compared; past it the search is "
        "approximate. Measured on Lucene, which searches in Atlas, not on Atlas itself.",
    )
    atlas_candidates: int = Field(
        default=20,
        ge=1,
        le=1000,
        description="Candidates that an approximate search looks at for each match that it "
        "returns; MongoDB advises 20 or more.",
    )
    atlas_timeout_s: float = Field(
        default=10.0,
        gt=0.0,
        le=600.0,
        description="How long one call to Atlas may take, in seconds.",
    )
    atlas_retry_s: float = Field(
        default=15.0,
        ge=0.0,
        le=3600.0,
        description="How long a call that failed for a passing reason is tried again, in seconds. "
        "Past it the bot keeps what is posted in its queue.",
    )
    atlas_connections: int = Field(
        default=10,
        ge=1,
        le=400,
        description="Most connections to Atlas; small clusters allow 500 in all.",
    )
    atlas_lag_s: float = Field(
        default=60.0,
        ge=0.0,
        le=3600.0,
        description="How long what was written is searched in memory as well, in seconds: Atlas's "
        "index follows a moment later.",
    )
    search_cache: int = Field(
        default=512,
        ge=0,
        le=100_000,
        description="How many answers to repeated searches are kept in memory; 0 keeps none.",
    )
    next_server: str | None = Field(
        default=None,
        description="A second server, of the model that the archive is moving to: searches and new "
        "posts go to whichever of the two serves the archive's current model.",
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

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """See `Settings.load`. An archive that is named is the embedded one."""
        if overrides.get("archive") is not None:
            overrides.setdefault("archive_kind", "embedded")
        return super().load(**overrides)

    @property
    def kind(self) -> ArchiveKind:
        """Which archive these settings choose."""
        if self.archive_kind != "auto":
            return self.archive_kind
        return "embedded" if self.atlas_uri is None else "atlas"

    @property
    def queue_file(self) -> Path:
        """Where the durable queue lies."""
        # Not `with_name`: an archive such as "." has no name, and is refused where it is opened.
        return self.queue or self.archive.parent / f"{self.archive.stem}-queue.db"

    def required_atlas_uri(self) -> str:
        """The connection string of Atlas.

        Raises:
            StartupError: It is not set.
        """
        if self.atlas_uri is None:
            raise StartupError(
                "There is no connection string: put MAPSEEK_ATLAS_URI=mongodb+srv://... into the "
                "environment or .env, from Connect > Drivers on your cluster's page in Atlas."
            )
        return self.atlas_uri.get_secret_value()

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
