"""The reason of a failure, from Triton's log, in one line."""

from __future__ import annotations

import re

_LOAD_FAILURE = re.compile(r"failed to load '(?P<model>[^']+)' version \d+: (?:\w+(?: argument)?: )?(?P<reason>.+)")
_BAD_CONFIG = re.compile(r"Error parsing text-format inference\.ModelConfig: (?P<reason>.+)")
_UNREADABLE = re.compile(r"Poll failed for model directory '(?P<model>[^']+)': (?P<reason>.+)")
_PORT_TAKEN = re.compile(r"Socket '127\.0\.0\.1:(?P<port>\d+)' already in use")
_ERROR_LINE = re.compile(r"^(?:E\d{4} [^\]]*\] |error: )(?P<reason>.+)", re.MULTILINE)
_NOISE = ("CudaDriverHelper has not been initialized",)


def port_taken(log: str) -> int | None:
    """Return the port that Triton found in use, if that made it end."""
    found = _PORT_TAKEN.search(log)
    return int(found["port"]) if found else None


def failure_reason(log: str) -> str:
    """Return why Triton ended: the model that failed to load and the first line of its error, else the last error."""
    if found := _LOAD_FAILURE.search(log):
        return f"model {found['model']!r} does not load: {_first_line(found['reason'])}"
    if found := _UNREADABLE.search(log):
        detail = _BAD_CONFIG.search(log)
        return f"model {found['model']!r} does not load: {_first_line((detail or found)['reason'])}"
    errors = [found["reason"] for found in _ERROR_LINE.finditer(log) if not any(n in found["reason"] for n in _NOISE)]
    return _first_line(errors[-1]) if errors else "it gave no reason"


def _first_line(message: str) -> str:
    r"""Cut a message, in which Triton writes line ends as \n, to its first line."""
    return message.split("\\n", maxsplit=1)[0].strip().strip('"').rstrip(".")
