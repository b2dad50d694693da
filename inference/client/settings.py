"""How a client reaches a server: `MAPSEEK_*` variables, shared by everything that is a client."""

import re
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, field_validator, model_validator

from inference.access import check_token, is_local
from inference.environment import Settings

# What gRPC takes as a target as it stands; anything else is a name to look up.
_SCHEMES = ("dns:", "unix:", "unix-abstract:", "ipv4:", "ipv6:")

# In front of the address of a server of the Open Inference Protocol; the second stands for TLS.
_OIP, _OIPS = "oip://", "oips://"
_MODEL_NAME = re.compile(r"[A-Za-z0-9_.-]+")


class ClientSettings(Settings):
    """Where the server is and how patiently to call it. Build it with `ClientSettings.load()`."""

    server: str = Field(
        default="127.0.0.1:50051",
        min_length=1,
        description="Server to call: HOST:PORT (a name with several addresses is balanced over), "
        "unix:PATH, or any gRPC target such as ipv4:10.0.0.1:50051,10.0.0.2:50051. "
        "oip://HOST:PORT/MODEL (oips:// with TLS) calls Triton, KServe or another mapseek over the "
        "Open Inference Protocol; /MODEL may be left out where there is one.",
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
    def open_inference(self) -> bool:
        """Whether to speak the Open Inference Protocol, and not mapseek's own."""
        return self.server.startswith((_OIP, _OIPS))

    @property
    def address(self) -> str:
        """Where the server is, without protocol and model."""
        return _split(self.server)[0]

    @property
    def model_name(self) -> str:
        """Which of the server's models to ask, or "" for the one that there is."""
        return _split(self.server)[1]

    @property
    def target(self) -> str:
        """The server as a gRPC target."""
        address = self.address
        return address if address.startswith(_SCHEMES) else f"dns:///{address}"

    @property
    def secure(self) -> bool:
        """Whether to speak TLS."""
        return (
            self.tls
            or self.tls_ca is not None
            or self.tls_client_cert is not None
            or self.server.startswith(_OIPS)
        )

    def at(self, server: str) -> Self:
        """The same for another server.

        Raises:
            StartupError: It is no address, or the token would go to it in the clear.
        """
        return self.load(**(dict(self) | {"server": server}))

    @field_validator("server")
    @classmethod
    def _server_is_an_address(cls, server: str) -> str:
        scheme, separator, _ = server.partition("://")
        if separator and f"{scheme}://" not in {_OIP, _OIPS}:
            raise ValueError(f"{server!r} is no address: write HOST:PORT or oip://HOST:PORT/MODEL")
        address, model = _split(server)
        if not address or (model and not _MODEL_NAME.fullmatch(model)):
            raise ValueError(f"{server!r} is no address: write it like oip://HOST:PORT/MODEL")
        return server

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
        exposed = self.token is not None and not self.secure and not is_local(self.address)
        if exposed and not self.insecure:
            raise ValueError(
                f"the token would go to {self.server} in the clear: set MAPSEEK_TLS_CA or "
                "MAPSEEK_TLS=1, or accept the risk with MAPSEEK_INSECURE=1"
            )
        return self


def _split(server: str) -> tuple[str, str]:
    """A server's address and the name of the model, if it has one."""
    if not server.startswith((_OIP, _OIPS)):
        return server, ""
    rest = server.partition("://")[2]
    if rest.startswith(_SCHEMES):  # may hold slashes of its own
        return rest, ""
    address, _, model = rest.partition("/")
    return address, model.rstrip("/")
