from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from benchmarks.harness.mutants import Mutant, draw_mutants
from benchmarks.harness.warm_pytest import PytestRun, WarmPytest
from benchmarks.mutation import FILES, ROOT, TESTS, Result, as_markdown, as_report, read_reasons, try_mutants
from toco_core.errors import ConfigError

SHAPES = '''\
def area(width: int | None, height: int) -> int | float:
    """Return width * height."""
    if width < 0:
        raise ValueError(f"width is {width}, {0 - width} too small")
    return width * height


def border(width, height, *, log=print):
    log(width * 3)
    if width.is_cuda:
        width = width - 1
    return height + width


def only_on_a_gpu(width):
    return width * 5
'''
GOOD = "from shapes.sizes import area\n\ndef test_area():\n    assert area(2, 3) == 6\n    assert area(0, 3) == 0\n"
VACUOUS = "from shapes.sizes import border\n\ndef test_border():\n    assert border is not None\n"
FILE = "shapes/sizes.py"
CHOSEN = {FILE: ("tests/test_good.py", "tests/test_vacuous.py")}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A package whose ``area`` has a good test, and whose ``border`` has one that proves nothing."""
    root = tmp_path / "checkout"
    for name, content in {
        FILE: SHAPES, "shapes/__init__.py": "", "tests/__init__.py": "", "tests/test_good.py": GOOD,
        "tests/test_vacuous.py": VACUOUS, "pyproject.toml": "[tool.pytest.ini_options]\n",
    }.items():  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def drawn(root: Path, number: int = 1000, seed: int = 0) -> list[Mutant]:
    return draw_mutants(root, [FILE], number, seed, {FILE: ("only_on_a_gpu",)})


def mutant(root: Path, after: str) -> Mutant:
    return next(each for each in drawn(root) if each.after == after)


def test_a_fault_that_a_test_sees_is_killed_and_one_that_none_sees_survives(checkout: Path):
    mutants = [mutant(checkout, "return width + height"), mutant(checkout, "return height - width")]
    killed, survived = try_mutants(checkout, mutants, CHOSEN, 1, ())
    assert (killed.mutant.line, killed.mutant.before) == (5, "return width * height")
    assert (killed.run.passed, killed.run.reason) == (False, "tests/test_good.py::test_area")
    assert (survived.mutant.line, survived.mutant.before) == (12, "return height + width")
    assert (survived.run.passed, survived.run.reason) == (True, "")
    assert (checkout / FILE).read_text() == SHAPES


def test_two_mutants_at_a_time_are_told_apart(checkout: Path):
    mutants = [mutant(checkout, "return width + height"), mutant(checkout, "return height - width")] * 2
    assert [result.run.passed for result in try_mutants(checkout, mutants, CHOSEN, 2, ())] == [False, True] * 2


def test_messages_annotations_and_code_for_a_gpu_are_not_mutated(checkout: Path):
    assert {each.line for each in drawn(checkout)} == {3, 5, 12}
    assert {each.before for each in drawn(checkout)} == {
        "if width < 0:", "return width * height", "return height + width",
    }  # fmt: skip


def test_a_mutant_that_is_no_python_is_not_drawn(checkout: Path):
    for each in drawn(checkout):
        compile(each.code, FILE, "exec")


def test_the_sample_is_that_of_its_seed_and_a_change_elsewhere_leaves_a_mutant_in_it(checkout: Path):
    first = drawn(checkout, 5)
    assert first == drawn(checkout, 5)
    assert first != drawn(checkout, 5, seed=1)
    changes = [(each.before, each.after) for each in first]
    (checkout / FILE).write_text("SIDES = []\n\n\n" + SHAPES)
    assert [(each.before, each.after) for each in drawn(checkout, 5)] == changes


def test_tests_that_fail_without_a_mutant_are_reported(checkout: Path):
    (checkout / "tests/test_good.py").write_text("def test_wrong():\n    assert 1 == 2\n")
    with pytest.raises(ConfigError, match=r"fail without a mutant too \(tests/test_good.py::test_wrong\)"):
        list(try_mutants(checkout, [mutant(checkout, "return width + height")], CHOSEN, 1, ()))


def test_tests_that_begin_to_fail_meanwhile_leave_no_result(checkout: Path):
    (checkout / "tests/test_good.py").write_text(
        "from pathlib import Path\n\ndef test_first_time():\n"
        f"    calls = Path({str(checkout / 'calls')!r})\n"
        "    assert not calls.exists()\n    calls.touch()\n"
    )
    with pytest.raises(ConfigError, match=r"fail without a mutant too \(tests/test_good.py::test_first_time\)"):
        list(try_mutants(checkout, [mutant(checkout, "return width + height")], CHOSEN, 1, ()))
    assert (checkout / "calls").exists()


def test_a_run_that_does_not_end_is_killed_with_what_it_started(checkout: Path, tmp_path: Path):
    (checkout / "tests/test_good.py").write_text(
        "import pathlib, subprocess, time\n\ndef test_endless():\n"
        "    child = subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
        f"    pathlib.Path({str(tmp_path / 'child')!r}).write_text(str(child.pid))\n    time.sleep(60)\n"
    )
    with WarmPytest(checkout, tmp_path) as worker:
        run = worker.run(["tests/test_good.py"], limit_s=3)
        assert (run.passed, run.reason) == (False, "out of time")
        stat = Path("/proc", (tmp_path / "child").read_text(), "stat")
        assert not stat.exists() or stat.read_text().split()[2] == "Z"
        assert worker.run(["tests/test_vacuous.py"], limit_s=60).passed


def test_the_report_counts_by_file_and_gives_the_reasons_of_survivors(tmp_path: Path):
    reasons = tmp_path / "reasons.yaml"
    known = {"file": "b.py", "before": "x | y", "after": "x ^ y", "reason": "equivalent: never both"}
    reasons.write_text(yaml.safe_dump([known]))
    results = [
        Result(Mutant("b.py", 7, "Replace", "x | y", "x ^ y", ""), PytestRun(True, "", 1.0)),
        Result(Mutant("b.py", 8, "Replace", "x < 1", "x < 2", ""), PytestRun(True, "", 1.0)),
        Result(Mutant("a.py", 3, "Replace", "x + 1", "x - 1", ""), PytestRun(False, "test_a.py::test_x", 4.0)),
    ]
    report = as_report(results, read_reasons(reasons))
    assert (report["mutants"], report["killed"], report["seconds_each"]) == (3, 1, 2.0)
    assert report["files"] == {"a.py": {"mutants": 1, "killed": 1}, "b.py": {"mutants": 2, "killed": 0}}
    assert [found.get("reason") for found in report["results"]] == [None, "equivalent: never both", "none given"]
    text = as_markdown({**report, "provenance": {"device": "", "host": "", "load_average": None, "versions": {},
                                                 "date": "", "command": ""}})  # fmt: skip
    assert "| b.py | 2 | 0 | 0 % |" in text
    assert r"| b.py:7 | `x \| y` | `x ^ y` | equivalent: never both |" in text
    assert "test_a.py" not in text


def test_every_file_has_tests_and_every_name_in_the_table_exists():
    files = [path.relative_to(ROOT).as_posix() for pattern in FILES for path in ROOT.glob(pattern)]
    assert len(files) > 20
    used = {pattern for pattern in TESTS if any(Path(file).match(pattern) for file in files)}
    assert used == set(TESTS)
    missing = {name for chosen in TESTS.values() for name in chosen if not (ROOT / name.partition("::")[0]).exists()}
    assert not missing
