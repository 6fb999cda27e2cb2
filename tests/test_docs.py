"""Pages, docstrings and messages name only what exists: paths, modules, commands and flags."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = ("toco_core", "toco_train", "toco_export", "toco_serve", "triton_models", "benchmarks", "tests")
FOLDERS = (*CODE, "docs")

# What is named and is not in the project, with the reason.
ELSEWHERE = {
    "reproduce.py": "written beside a failed export",
    "export_report.md": "written into a model repository",
    "triton_python_backend_utils.py": "part of Triton",
}
# Flags of other programs, in commands that the pages show.
OTHER_FLAGS = {"--nproc_per_node", "--tmpfs", "--report", "--check", "--processes", "--data", "--out", "--jobs"}

_PLACEHOLDER = re.compile(r"\b(?:NAME|DATE|PATH)\b")
_PATH = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./-]*\w")
_MODULE = re.compile(rf"(?<![\w./-])(?:{'|'.join(CODE)})(?:\.(?!__)[A-Za-z_]\w*)+")
_FILE = re.compile(r"(?<![\w./*-])[A-Za-z]\w*\.(?:py|md|sh|cff)\b")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FLAG = re.compile(r"(?<![\w-])--[a-z][\w.-]*")


def pages() -> list[Path]:
    """Return the pages that must be true today; the changelog and reports tell of earlier states."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.md"),
             *(page for folder in CODE for page in (ROOT / folder).rglob("*.md"))]  # fmt: skip
    reports = ROOT / "benchmarks" / "results"
    return sorted(p for p in found if p.name != "CHANGELOG.md" and (p.parent != reports or p.name == "README.md"))


def texts() -> Iterator[tuple[str, str]]:
    """Yield every page, and every string and comment of the code, with the place where it stands.

    Of tests, whose other strings name files that they make, only docstrings and comments.
    """
    for page in pages():
        yield page.relative_to(ROOT).as_posix(), page.read_text(encoding="utf-8")
    for file in (file for folder in CODE for file in (ROOT / folder).rglob("*.py")):
        place, text = file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")
        tree = ast.parse(text)
        nodes = docstrings(tree) if place.startswith("tests/") else ast.walk(tree)
        for node in nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield f"{place}:{node.lineno}", node.value
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                yield f"{place}:{token.start[0]}", token.string


def docstrings(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the strings of a module that stand alone: its docstrings."""
    yield from (node.value for node in ast.walk(tree) if isinstance(node, ast.Expr))


def is_elsewhere(name: str) -> bool:
    """Tell whether a name is a placeholder or in the list of exceptions."""
    return name in ELSEWHERE or _PLACEHOLDER.search(name) is not None


@cache
def file_names() -> frozenset[str]:
    tops = (ROOT / folder for folder in (*FOLDERS, ".github"))
    return frozenset(file.name for top in (ROOT, *tops) for file in (top.glob("*") if top == ROOT else top.rglob("*")))


@cache
def is_module_path(dotted: str) -> bool:
    """Tell whether a dotted name is a module, or begins with one whose text holds the next name."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        stem = ROOT.joinpath(*parts[:length])
        file = next((f for f in (stem.with_suffix(".py"), stem / "__init__.py") if f.is_file()), None)
        if file is not None:
            text = file.read_text(encoding="utf-8")
            return all(re.search(rf"\b{re.escape(name)}\b", text) for name in parts[length : length + 1])
    return False


def test_every_path_that_is_named_exists() -> None:
    missing = {
        f"{place}: {path}"
        for place, text in texts()
        for path in _PATH.findall(text)
        if not is_elsewhere(path) and not (ROOT / path).exists() and not list(ROOT.glob(f"{path}.*"))
    }
    assert missing == set()


def test_every_file_that_is_named_exists() -> None:
    missing = {
        f"{place}: {name}"
        for place, text in texts()
        for name in _FILE.findall(text)
        if not is_elsewhere(name) and name not in file_names()
    }
    assert missing == set()


def test_every_module_that_is_named_exists() -> None:
    missing = {
        f"{place}: {name}"
        for place, text in texts()
        for name in _MODULE.findall(text)
        if not is_elsewhere(name) and not is_module_path(name)
    }
    assert missing == set()


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    broken = []
    for page in pages():
        for target in _LINK.findall(page.read_text(encoding="utf-8")):
            name, _, heading = target.partition("#")
            file = page.parent / name if name else page
            if target.startswith("https://"):
                continue
            if not file.exists() or (heading and heading not in headings(file)):
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


def headings(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    lines = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", line).strip().lower().replace(" ", "-") for line in lines}


@cache
def command_flags() -> dict[str, frozenset[str]]:
    """Return the flags of every command, those of its sub-commands among them, all with dashes."""
    known: dict[str, frozenset[str]] = {}
    for point in entry_points(group="console_scripts"):
        if point.value.startswith("toco_"):
            printed = io.StringIO()
            for words in ([], ["check"], ["status"]):
                with redirect_stdout(printed), redirect_stderr(io.StringIO()), suppress(SystemExit):
                    point.load()([*words, "--help"])
            known[point.name] = frozenset(flag.replace("_", "-") for flag in _FLAG.findall(printed.getvalue()))
    return known


def shell_lines() -> Iterator[tuple[str, str]]:
    """Yield the command lines that the pages show, with their page."""
    for page in pages():
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                yield page.name, line.partition(" #")[0].strip()
        yield from ((page.name, line) for line in re.findall(r"`(toco-[^`\n]+)`", text))


def test_every_command_line_of_the_pages_is_understood() -> None:
    unknown = []
    for page, line in shell_lines():
        command, *_ = line.split() or [""]
        if command.startswith("toco-"):
            flags = command_flags().get(command)
            if flags is None or not {flag.replace("_", "-") for flag in _FLAG.findall(line)} <= flags:
                unknown.append(f"{page}: {line}")
    assert unknown == []


def test_every_flag_that_a_page_names_is_one() -> None:
    known = frozenset().union(*command_flags().values()) | {flag.replace("_", "-") for flag in OTHER_FLAGS}
    unknown = {
        f"{page.name}: {flag}"
        for page in pages()
        if page.parent == ROOT / "docs" or page.parent == ROOT
        if page.name != "results.md"  # it quotes reports
        for code in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))
        for flag in _FLAG.findall(code)
        if flag.replace("_", "-") not in known
    }
    assert unknown == set()


def test_the_readme_has_fewer_than_900_words() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) < 900


def test_the_architecture_page_says_where_each_concept_is() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|`]+) \| `([^`]+)` \| `([^`]+)` \|$", text, re.MULTILINE)
    assert [
        f"{concept}: {path}" for concept, word, path in rows if word not in path or not (ROOT / path).is_file()
    ] == []
    concepts = " ".join(concept.lower() for concept, _, _ in rows)
    wanted = ("ptc", "ctc", "cam", "par", "dense energy", "decoder", "vit", "voc", "coco", "folder", "augmentation",
              "loop", "checkpoint", "schedule", "miou", "pseudo labels", "figures", "reports", "onnx trace", "fp16",
              "int8", "tensorrt", "parity", "repository", "server", "client", "tiling", "retry", "image reader",
              "palette")  # fmt: skip
    assert [concept for concept in wanted if concept not in concepts] == []
