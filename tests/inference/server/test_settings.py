from pathlib import Path
from typing import Any

import pytest

from inference.client import ClientSettings
from inference.environment import Settings, describe
from inference.errors import StartupError
from inference.settings import BUNDLED_MODEL, ServerSettings

TOKEN = "correct-horse-battery"


def test_without_any_variable_the_server_is_local_and_serves_the_bundled_model() -> None:
    settings = ServerSettings.load()
    assert settings.listen == "127.0.0.1:50051"
    assert settings.model == BUNDLED_MODEL
    assert ClientSettings.load().target == "dns:///127.0.0.1:50051"


def test_the_environment_goes_before_the_file_and_options_before_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path(".env").write_text(
        "MAPSEEK_QUEUE_SIZE=1\nMAPSEEK_MAX_BATCH=2\nMAPSEEK_DRAIN_S=3\nMAPSEEK_DISCORD_TOKEN=x\n"
    )
    monkeypatch.setenv("MAPSEEK_MAX_BATCH", "20")
    monkeypatch.setenv("MAPSEEK_DRAIN_S", "30")
    settings = ServerSettings.load(drain_s=300, queue_size=None)
    assert (settings.queue_size, settings.max_batch, settings.drain_s) == (1, 20, 300)


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAPSEEK_TOKEN", "")
    assert ServerSettings.load().token is None


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("MAX_BATCH", "many", "MAPSEEK_MAX_BATCH: input should be a valid integer"),
        ("MAX_BATCH", "-1", "MAPSEEK_MAX_BATCH: input should be greater than or equal to 0"),
        ("QUEUE_SIZE", "0", "MAPSEEK_QUEUE_SIZE: input should be greater than or equal to 1"),
        ("PROVIDER", "abacus", "MAPSEEK_PROVIDER: input should be 'auto', 'cpu', 'cuda'"),
        ("DRAIN_S", "nan", "MAPSEEK_DRAIN_S: "),
        ("DRAIN_S", "inf", "MAPSEEK_DRAIN_S: "),
        ("LISTEN", "here", "MAPSEEK_LISTEN: 'here' is no address: write HOST:PORT or unix:PATH"),
        ("LISTEN", "127.0.0.1:70000", "MAPSEEK_LISTEN: '127.0.0.1:70000' is no address"),
        (
            "LISTEN",
            "::1:50051",
            r"MAPSEEK_LISTEN: write an IPv6 address in brackets: \[::1\]:50051",
        ),
        ("LISTEN", "0.0.0.0:1", "MAPSEEK_LISTEN=0.0.0.0:1 can be reached from other machines"),
        ("TLS_CERT", "server.pem", "MAPSEEK_TLS_CERT and MAPSEEK_TLS_KEY go together"),
        ("TLS_CLIENT_CA", "ca.pem", "MAPSEEK_TLS_CLIENT_CA needs MAPSEEK_TLS_CERT"),
        ("TOKEN", "short-secret", "MAPSEEK_TOKEN: a token needs at least 16 characters"),
        ("TOKEN", "sixteen characters", "MAPSEEK_TOKEN: a token may have printable ASCII"),
        ("TOKEN", "ä" * 20, "MAPSEEK_TOKEN: a token may have printable ASCII"),
    ],
)
def test_a_wrong_value_is_a_sentence_that_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, sentence: str
) -> None:
    monkeypatch.setenv(f"MAPSEEK_{variable}", value)
    with pytest.raises(StartupError, match=sentence) as caught:
        ServerSettings.load()
    if variable == "TOKEN":
        assert value not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({}, False),
        ({"token": TOKEN}, False),
        ({"tls_cert": "c", "tls_key": "k"}, False),
        ({"tls_cert": "c", "tls_key": "k", "token": TOKEN}, True),
        ({"tls_cert": "c", "tls_key": "k", "tls_client_ca": "ca"}, True),
        ({"insecure": True}, True),
    ],
)
def test_only_a_guarded_server_listens_beyond_this_machine(
    settings: dict[str, Any],
    allowed: bool,  # noqa: FBT001  a case's value
) -> None:
    if allowed:
        assert ServerSettings.load(listen="0.0.0.0:50051", **settings).listen
    else:
        with pytest.raises(StartupError, match="MAPSEEK_INSECURE=1"):
            ServerSettings.load(listen="0.0.0.0:50051", **settings)


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"server": "localhost:1"}, True),
        ({"server": "unix:/run/mapseek.sock"}, True),
        ({"server": "example.org:1"}, False),
        ({"server": "example.org:1", "tls": True}, True),
        ({"server": "example.org:1", "tls_ca": "ca.pem"}, True),
        ({"server": "example.org:1", "insecure": True}, True),
    ],
)
def test_a_token_is_not_sent_to_another_machine_in_the_clear(
    settings: dict[str, Any],
    allowed: bool,  # noqa: FBT001  a case's value
) -> None:
    if allowed:
        assert ClientSettings.load(token=TOKEN, **settings).token
    else:
        with pytest.raises(StartupError, match="in the clear"):
            ClientSettings.load(token=TOKEN, **settings)


def test_a_client_certificate_needs_its_key() -> None:
    with pytest.raises(StartupError, match="MAPSEEK_TLS_CLIENT_CERT and MAPSEEK_TLS_CLIENT_KEY"):
        ClientSettings.load(tls_client_cert="c")


@pytest.mark.parametrize("settings", [ServerSettings, ClientSettings])
def test_every_setting_is_described(settings: type[Settings]) -> None:
    rows = describe(settings)
    assert len(rows) == len(settings.model_fields)
    for row in rows:
        assert row.variable.startswith("MAPSEEK_")
        assert row.variable == row.variable.upper()
        assert row.description.endswith("."), row.variable


def test_the_description_shows_defaults_as_one_would_write_them() -> None:
    defaults = {row.variable: row.default for row in describe(ServerSettings)}
    assert defaults["MAPSEEK_MODEL"] == "inference/bundled"
    assert defaults["MAPSEEK_TOKEN"] == ""
    assert defaults["MAPSEEK_INSECURE"] == "0"


def test_secrets_do_not_show() -> None:
    assert TOKEN not in repr(ServerSettings.load(token=TOKEN))
    assert TOKEN not in repr(ClientSettings.load(token=TOKEN))
