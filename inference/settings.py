"""The server's settings: one frozen object, read once, in the composition root."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from inference.access import check_token, is_local, read_tokens
from inference.environment import Settings

BUNDLED_MODEL = Path(__file__).resolve().parent / "bundled"

MIB = 1024 * 1024
MAX_PORT = 65535


class ServerSettings(Settings):
    """Everything that an operator may turn, each with the variable `MAPSEEK_<NAME>`.

    Build it with `ServerSettings.load(**overrides)`, which turns a wrong value into a
    `StartupError` sentence.
    """

    model: Path = Field(
        default=BUNDLED_MODEL,
        description="Model folder to serve, as `mapseek export` writes it.",
    )
    listen: str = Field(
        default="127.0.0.1:50051",
        description="Address to listen on: HOST:PORT (port 0 takes a free one) or unix:PATH.",
    )
    provider: Literal["auto", "cpu", "cuda", "tensorrt"] = Field(
        default="auto",
        description="onnxruntime provider: auto, cpu, cuda or tensorrt. auto takes CUDA where it "
        "works, else the CPU; any other must be there or the server does not start.",
    )
    engine_threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Threads of the model on the CPU. 0: one per core, as far as a container's "
        "quota goes.",
    )
    decode_threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Threads that decode images for a GPU or a large model; a small model on the "
        "CPU decodes on the threads that run it. 0: one per core.",
    )
    max_batch: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Most images in one run of the model. Larger batches give throughput until "
        "the device is busy; past that they only cost latency. 0: chosen for the provider.",
    )
    gpu_memory_limit_bytes: int = Field(
        default=0,
        ge=0,
        description="Most GPU memory that onnxruntime may take, in bytes. 0: no limit.",
    )
    tensorrt_cache: Path | None = Field(
        default=None,
        description="Folder for built TensorRT engines, so that later starts are quick.",
    )
    cuda_graph: bool = Field(
        default=False,
        description="Capture the CUDA run as a graph per batch size: less host time, more memory.",
    )
    queue_size: int = Field(
        default=256,
        ge=1,
        le=65536,
        description="Most items between admission and answer. Past it, single calls are refused "
        "with RESOURCE_EXHAUSTED and streams wait. A quarter is kept for interactive calls.",
    )
    stream_window: int = Field(
        default=64,
        ge=1,
        le=4096,
        description="Most images that one stream may have in the server. Twice the largest "
        "batch keeps the model fed by a single stream.",
    )
    stream_idle_s: float = Field(
        default=600.0,
        ge=1.0,
        le=86400.0,
        description="An EmbedStream that neither sends nor reads for this long, in seconds, is "
        "closed with UNAVAILABLE.",
    )
    max_image_bytes: int = Field(
        default=16 * MIB,
        ge=1024,
        le=1024 * MIB,
        description="Longest encoded image, in bytes.",
    )
    max_image_pixels: int = Field(
        default=40_000_000,
        ge=1024,
        le=1_000_000_000,
        description="Most pixels (width times height) of an image; checked before decoding.",
    )
    max_text_chars: int = Field(
        default=2000,
        ge=1,
        le=1_000_000,
        description="Longest text, in characters.",
    )
    tls_cert: Path | None = Field(
        default=None,
        description="Server certificate chain (PEM). With MAPSEEK_TLS_KEY it turns TLS on.",
    )
    tls_key: Path | None = Field(default=None, description="Private key of the certificate (PEM).")
    tls_client_ca: Path | None = Field(
        default=None,
        description="Authority (PEM) that must have signed every client's certificate: mutual TLS.",
    )
    token: SecretStr | None = Field(
        default=None,
        description="Bearer token that every call but a health check must carry; at least 16 "
        "printable ASCII characters.",
    )
    token_file: Path | None = Field(
        default=None,
        description="File of bearer tokens, one a line (# begins a comment), beside or instead of "
        "MAPSEEK_TOKEN: one for each client. Read at the start.",
    )
    max_calls_per_client: int = Field(
        default=0,
        ge=0,
        le=65536,
        description="Most calls that one client may have at a time; more are refused with "
        "RESOURCE_EXHAUSTED. A client is its token where MAPSEEK_TOKEN_FILE gives out several, "
        "else its certificate, else its address. 0: no limit.",
    )
    max_rate_per_client: float = Field(
        default=0.0,
        ge=0.0,
        le=1e6,
        description="Most images a second that one client may send, a second's worth at once; "
        "single calls over it are refused with RESOURCE_EXHAUSTED, streams are read more slowly. "
        "0: no limit.",
    )
    insecure: bool = Field(
        default=False,
        description="1 allows what would be refused as unsafe: listening beyond this machine "
        "without TLS and a token (or client certificates).",
    )
    drain_s: float = Field(
        default=20.0,
        ge=0.0,
        le=3600.0,
        description="How long running calls may take to finish at shutdown, in seconds.",
    )
    watchdog_s: float = Field(
        default=60.0,
        ge=1.0,
        le=3600.0,
        description="A batch that runs longer than this, in seconds, counts as hung: the server is "
        "NOT_SERVING and answers UNAVAILABLE until it returns. Once 20 batches have shown how fast "
        "the model is, ten times the slowest rate at the largest batch is enough, from 5 s up.",
    )
    watchdog_grace_s: float = Field(
        default=30.0,
        ge=0.0,
        le=86400.0,
        description="How long a model that hangs, or fails on everything, may stay NOT_SERVING, in "
        "seconds, before the process exits with status 75 (it hangs) or 70 (it fails), to be "
        "started again. 0: it waits for ever.",
    )

    @property
    def max_message_bytes(self) -> int:
        """Longest gRPC message: the longest image and room for the rest of its message."""
        return self.max_image_bytes + MIB

    @property
    def tls(self) -> bool:
        """Whether the port speaks TLS."""
        return self.tls_cert is not None

    def tokens(self) -> list[str]:
        """The bearer tokens that open the server; none where it is open.

        Raises:
            StartupError: The file of tokens cannot be used.
        """
        own = [self.token.get_secret_value()] if self.token is not None else []
        return own + (read_tokens(self.token_file) if self.token_file is not None else [])

    @field_validator("token")
    @classmethod
    def _token_is_sendable(cls, token: SecretStr | None) -> SecretStr | None:
        return check_token(token)

    @field_validator("listen")
    @classmethod
    def _listen_is_an_address(cls, listen: str) -> str:
        if listen.startswith("unix:"):
            return listen
        host, colon, port = listen.rpartition(":")
        if not colon or not host or not port.isdecimal() or int(port) > MAX_PORT:
            raise ValueError(f"{listen!r} is no address: write HOST:PORT or unix:PATH")
        if ":" in host and not host.startswith("["):
            raise ValueError(f"write an IPv6 address in brackets: [{host}]:{port}")
        return listen

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("MAPSEEK_TLS_CERT and MAPSEEK_TLS_KEY go together: set both or none")
        if self.tls_client_ca is not None and not self.tls:
            raise ValueError("MAPSEEK_TLS_CLIENT_CA needs MAPSEEK_TLS_CERT and MAPSEEK_TLS_KEY")
        named = self.token or self.token_file or self.tls_client_ca
        guarded = self.tls and named is not None
        if not (self.insecure or guarded or is_local(self.listen)):
            raise ValueError(
                f"MAPSEEK_LISTEN={self.listen} can be reached from other machines: set "
                "MAPSEEK_TLS_CERT, MAPSEEK_TLS_KEY and MAPSEEK_TOKEN (or MAPSEEK_TLS_CLIENT_CA), "
                "or accept the risk with MAPSEEK_INSECURE=1"
            )
        return self
