"""Settings from `MAPSEEK_*` environment variables: loading them, and listing them for people."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from inference.errors import StartupError

PREFIX = "MAPSEEK_"


class Settings(BaseSettings):
    """The settings of one process: frozen, read from the environment and `.env`, in that order.

    Several processes share one `.env`, so variables that a class does not know are left alone.
    An empty variable counts as unset.
    """

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        # A wrong value must not repeat a secret in a traceback or a log.
        hide_input_in_errors=True,
    )

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Reads the settings from the environment.

        Args:
            **overrides: Values that go before the environment, by field name, for command-line
                options; None means that the option was not given.

        Raises:
            StartupError: A value is wrong; the sentence names the variable and what it may be.
        """
        given = {name: value for name, value in overrides.items() if value is not None}
        try:
            return cls(**given)
        except ValidationError as error:
            raise StartupError(" ".join(map(_sentence, error.errors()))) from None
        except (SettingsError, OSError, UnicodeError) as error:
            raise StartupError(f"The settings cannot be read: {error}.") from None


def _sentence(error: Any) -> str:
    """One pydantic error as a sentence for the operator."""
    message = str(error["msg"]).removeprefix("Value error, ").rstrip(".")
    if not error["loc"]:  # a rule about several fields, whose message names them itself
        return f"{message}."
    variable = PREFIX + "_".join(str(part) for part in error["loc"]).upper()
    return f"{variable}: {message[:1].lower()}{message[1:]}."


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingRow:
    """One setting as the README lists it.

    Attributes:
        variable: Its environment variable.
        default: What it is where the variable is unset, as one would write it; "" for nothing.
        description: What it does, in what unit, and within which bounds.
    """

    variable: str
    default: str
    description: str


def describe(settings: type[BaseSettings]) -> list[SettingRow]:
    """Lists a settings class for people, in the order of its fields."""
    prefix = settings.model_config.get("env_prefix", "")
    return [
        SettingRow(
            variable=f"{prefix}{name}".upper(),
            default=_written(field.get_default(call_default_factory=True)),
            description=field.description or "",
        )
        for name, field in settings.model_fields.items()
    ]


def _written(default: object) -> str:
    """A default as one would write it into `.env`."""
    match default:
        case None:
            return ""
        case bool():
            return str(int(default))
        case SecretStr():
            return "(secret)"
        case Path() if default.is_relative_to(_ROOT):
            return str(default.relative_to(_ROOT))
        case _:
            return str(default)


# The folder that the packages lie in; defaults below it are shown relative to it.
_ROOT = Path(__file__).resolve().parent.parent
