"""The one error of the exporter, and how it quotes others."""

from inference.errors import StartupError


class ExportError(StartupError):
    """The model could not be exported. The message names the cause and the fix.

    A kind of `StartupError`, so that the command line has one way to end with a sentence.
    """


def first_line(error: Exception) -> str:
    """What a foreign error says, as the end of a sentence."""
    return (str(error).strip() or repr(error)).splitlines()[0]
