"""Mutants of source files: cosmic-ray's operators, without messages, annotations and code for a GPU."""

from __future__ import annotations

import ast
import difflib
import hashlib
import re
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cosmic_ray.commands import init  # type: ignore[import-untyped]
from cosmic_ray.mutating import mutate_code  # type: ignore[import-untyped]
from cosmic_ray.plugins import get_operator  # type: ignore[import-untyped]
from cosmic_ray.work_db import use_db  # type: ignore[import-untyped]
from cosmic_ray.work_item import MutationSpec  # type: ignore[import-untyped]

Position = tuple[int, int]  # line from 1, column in characters from 0
Span = tuple[Position, Position]  # the end is excluded

_MESSAGE = re.compile(r"\b(log|logger|logging|warnings|print)\b", re.IGNORECASE)
_GPU = re.compile(r"cuda|runs_kernels|rtx", re.IGNORECASE)


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        file: Path in the checkout, with slashes.
        line: Where the change is, from 1.
        operator: Name of cosmic-ray's operator.
        before: The changed lines as they were, each without white space around it.
        after: The same lines in the mutant.
        code: The whole file with the change.
    """

    file: str
    line: int
    operator: str
    before: str
    after: str
    code: str


def draw_mutants(
    root: Path, files: Iterable[str], number: int, seed: int, gpu_names: Mapping[str, Collection[str]]
) -> list[Mutant]:
    """Draw mutants of files, each with the same probability.

    A candidate's place in the draw is a hash of the seed, its file and its line: a change elsewhere leaves it in.

    Args:
        root: The checkout.
        files: Paths in it.
        number: How many to draw; all where there are fewer.
        seed: Another seed draws others.
        gpu_names: Functions and classes, by file, that only run on a GPU.
    """
    sources = {file: (root / file).read_text(encoding="utf-8") for file in files}
    excluded = {file: excluded_spans(source, gpu_names.get(file, ())) for file, source in sources.items()}
    candidates = []
    for file, spec in _specs(root, sources):
        row, column = spec.start_pos
        between_parameters = re.match(r"[*/],", sources[file].splitlines()[row - 1][column:])
        if not between_parameters and not any(start <= spec.start_pos < end for start, end in excluded[file]):
            candidates.append((file, spec))
    drawn: list[Mutant] = []
    for file, spec in _in_drawn_order(candidates, sources, seed):
        if len(drawn) == number:
            break
        mutated = mutate_code(sources[file], get_operator(spec.operator_name)(), spec.occurrence)
        if mutated is not None and _compiles(mutated):
            drawn.append(_described(file, spec, sources[file], mutated))
    return drawn


def excluded_spans(source: str, gpu_names: Collection[str] = ()) -> list[Span]:
    """Return the parts of a source that no mutant may change: messages, annotations, and what only a GPU runs.

    Messages are ``raise`` statements, calls that log, warn or print, and f-strings. What only a GPU runs is the body of
    an ``if`` whose condition names CUDA, with its condition, and the functions and classes of ``gpu_names``.
    """
    spans: list[Span] = []
    lines = source.splitlines()

    def exclude(node: ast.AST | None, last: ast.AST | None = None) -> None:
        if node is not None:
            last = last or node
            spans.append((_position(lines, node.lineno, node.col_offset),  # type: ignore[attr-defined]
                          _position(lines, last.end_lineno, last.end_col_offset)))  # type: ignore[attr-defined]  # fmt: skip

    for node in ast.walk(ast.parse(source)):
        logs = isinstance(node, ast.Call) and _MESSAGE.search(ast.unparse(node.func))
        if logs or isinstance(node, (ast.Raise, ast.JoinedStr)):
            exclude(node)
        elif isinstance(node, (ast.AnnAssign, ast.arg)):
            exclude(node.annotation)
        elif isinstance(node, ast.If) and _GPU.search(ast.unparse(node.test)):
            exclude(node, node.body[-1])
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if node.name in gpu_names:
                exclude(node)
            if not isinstance(node, ast.ClassDef):
                exclude(node.returns)
    return spans


def _position(lines: list[str], line: int, column: int) -> Position:
    """Turn Python's column, in bytes of UTF-8, to one in characters."""
    return line, len(lines[line - 1].encode()[:column].decode())


def _specs(root: Path, files: Iterable[str]) -> Iterator[tuple[str, MutationSpec]]:
    """Yield every mutation that cosmic-ray knows of the files."""
    with tempfile.TemporaryDirectory() as folder, use_db(Path(folder) / "session.sqlite") as session:
        init([root / file for file in files], session, {})
        for item in session.work_items:
            (spec,) = item.mutations
            yield spec.module_path.relative_to(root).as_posix(), spec


def _in_drawn_order(
    candidates: Iterable[tuple[str, MutationSpec]], sources: Mapping[str, str], seed: int
) -> list[tuple[str, MutationSpec]]:
    """Sort candidates by a hash of the seed, the file, the text of the line, the place in it and the operator."""
    lines = {file: source.splitlines() for file, source in sources.items()}
    alike: Counter[str] = Counter()
    keyed = []
    for file, spec in sorted(candidates, key=lambda each: (each[0], each[1].operator_name, each[1].occurrence)):
        row, column = spec.start_pos
        key = f"{seed} {file} {spec.operator_name} {lines[file][row - 1].strip()} {column}"
        alike[key] += 1
        keyed.append((hashlib.sha256(f"{key} {alike[key]}".encode()).digest(), file, spec))
    return [(file, spec) for _, file, spec in sorted(keyed, key=lambda each: each[0])]


def _compiles(code: str) -> bool:
    """Tell whether a mutant is Python at all."""
    try:
        ast.parse(code)
    except SyntaxError:
        return False
    return True


def _described(file: str, spec: MutationSpec, source: str, mutated: str) -> Mutant:
    old, new = source.splitlines(), mutated.splitlines()
    changes = [change for change in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
               if change[0] != "equal"]  # fmt: skip
    first, last = changes[0], changes[-1]
    return Mutant(
        file=file,
        line=spec.start_pos[0],
        operator=spec.operator_name.removeprefix("core/"),
        before=" ".join(" ".join(old[first[1] : last[2]]).split()),
        after=" ".join(" ".join(new[first[3] : last[4]]).split()),
        code=mutated,
    )
