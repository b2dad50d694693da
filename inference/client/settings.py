"""How a client reaches a server: `MAPSEEK_*` variables, shared by everything that is a client."""

from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, field_validator, model_validator

from inference.access import check_token, is_local
from inference.environment import Settings

# What gRPC takes as a target as it stands; anything else is a name to look up.
_SCHEMES = ("dns:", "unix:", "unix-abstract:", "ipv4:", "ipv6:")


class ClientSettings(Settings):
    """Where the server is and how patiently to call it. Build it with `ClientSettings.load()`."""

    server: str = Field(
        default="127.0.0.1:50051",
        min_length=1,
        description="Server to call: HOST:PORT (a name with several addresses is balanced over), "
        "unix:PATH, or any gRPC target such as ipv4:10.0.0.1:50051,10.0.0.2:50051.",
    )
    token: SecretStr | None = Field(
        default=None,
        description="Bearer token that the server asks for.",
    )
    tls: bool = Field(
        default=False,
        description="1 speaks TLS with the authorities that gRPC ships; MAPSEEK_TLS_CA implies it.",
    )
    tls_ca: Path | None = Field(
        default=None,
        description="Authority (PEM) that signed the server's certificate.",
    )
    tls_client_cert: Path | None = Field(
        default=None,
        description="This client's certificate chain (PEM), for mutual TLS.",
    )
    tls_client_key: Path | None = Field(
        default=None,
        description="Private key of the client certificate (PEM).",
    )
    insecure: bool = Field(
        default=False,
        description="1 allows sending the token to another machine without TLS.",
    )
    timeout_s: float = Field(
        default=10.0,
        gt=0.0,
        le=3600.0,
        description="How long a single call may take with all its retries, in seconds.",
    )
    attempts: int = Field(
        default=5,
        ge=1,
        le=100,
        description="How often a single call is tried while the server is full or away.",
    )
    outage_s: float = Field(
        default=60.0,
        gt=0.0,
        le=86400.0,
        description="How long a bulk call waits for the next answer, in seconds, while the server "
        "is full, away or starting again.",
    )
    window: int = Field(
        default=128,
        ge=1,
        le=65536,
        description="Most images that a bulk call holds unanswered.",
    )

    @property
    def target(self) -> str:
        """The server as a gRPC target."""
        return self.server if self.server.startswith(_SCHEMES) else f"dns:///{self.server}"

    @property
    def secure(self) -> bool:
        """Whether to speak TLS."""
        return self.tls or self.tls_ca is not None or self.tls_client_cert is not None

    @field_validator("token")
    @classmethod
    def _token_is_sendable(cls, token: SecretStr | None) -> SecretStr | None:
        return check_token(token)

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if (self.tls_client_cert is None) != (self.tls_client_key is None):
            raise ValueError(
                "MAPSEEK_TLS_CLIENT_CERT and MAPSEEK_TLS_CLIENT_KEY go together: set both or none"
            )
        exposed = self.token is not None and not self.secure and not is_local(self.server)
        if exposed and not self.insecure:
            raise ValueError(
                f"the token would go to {self.server} in the clear: set MAPSEEK_TLS_CA or "
                "MAPSEEK_TLS=1, or accept the risk with MAPSEEK_INSECURE=1"
            )
        return self
