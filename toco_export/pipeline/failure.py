"""What a failed export leaves: its report, if it came that far, and a script that shows the failure again."""

from __future__ import annotations

import platform
from contextlib import suppress
from pathlib import Path

from toco_core import __version__
from toco_export.config import ExportConfig
from toco_export.reports.export_report import HTML_FILE, MARKDOWN_FILE

SCRIPT_FILE = "reproduce.py"

SCRIPT = '''\
"""Shows again, with its traceback, why an export failed: {reason}

toco {version}, Python {python}. Run it with the Python that toco is installed for.
"""

from pathlib import Path

from rich.console import Console

from toco_export.config import ExportConfig
from toco_export.pipeline.run import export_run

RUN = Path({run!r})
REPOSITORY = Path({repository!r})
CONFIG = {config!r}

export_run(RUN, REPOSITORY, ExportConfig.model_validate_json(CONFIG), Console())
'''


def failure_folder(repository: Path) -> Path:
    """Return where a failed export to a repository leaves what there is to look at."""
    return repository.with_name(f"{repository.name}.failed")


def write_script(run: Path, repository: Path, config: ExportConfig, reason: str) -> None:
    """Write the script, if it can be written: where it cannot, the message has to do."""
    folder = failure_folder(repository)
    script = SCRIPT.format(
        reason=reason.replace("\\", "/").replace('"""', "'''"),
        version=__version__,
        python=platform.python_version(),
        run=str(run.absolute()),
        repository=str(repository.absolute()),
        config=config.model_dump_json(),
    )
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SCRIPT_FILE).write_text(script, encoding="utf-8")


def clear_failure(repository: Path) -> None:
    """Remove what an earlier failure left, and nothing that somebody else put there."""
    folder = failure_folder(repository)
    with suppress(OSError):
        for name in (SCRIPT_FILE, HTML_FILE, MARKDOWN_FILE):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()  # refuses while there is anything else in it
