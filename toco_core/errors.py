"""The errors that a user can cause, and put right.

Every message is one sentence that says what is wrong, what was got, what was expected, and what to do.
"""


class TocoError(Exception):
    """Base of all errors that are the input's fault: a command prints the message and exits with status 2."""


class ConfigError(TocoError):
    """A preset, configuration file or flag is unknown, malformed or contradictory."""


class DataError(TocoError):
    """A data set, image or label is missing or unreadable."""


class RunError(TocoError):
    """A run folder or checkpoint is missing, incomplete or does not fit."""


class TrainingError(TocoError):
    """Training cannot go on: a loss that is not finite, for example."""


class ImageSizeError(TocoError):
    """An image has a height or width that the model cannot take."""


class ExportError(TocoError):
    """A stage of the export failed."""


class ServeError(TocoError):
    """The server cannot start or serve, or answered with an error."""
