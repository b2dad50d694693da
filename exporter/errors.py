"""The one error of the exporter."""

from inference.errors import StartupError


class ExportError(StartupError):
    """The model could not be exported. The message names the cause and the fix.

    A kind of `StartupError`, so that the command line has one way to end with a sentence.
    """
