"""Every check there is, in order, each told as it ends; one line of summary. `--fast` is the inner loop."""

import argparse
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTEST = [sys.executable, "-m", "pytest", "-q"]
SHAPES = "--jaxtyping-packages=pellucid,shapes.checker"
ORDINARY = "not slow and not peers and not gpu"
COVERAGE = ["--cov", "--cov-report=", "--cov-append"]


@dataclass(frozen=True)
class Step:
    """One command, and what it establishes."""

    name: str
    command: list[str]


def steps(*, fast: bool) -> list[Step]:
    """The commands. The suite runs with shapes and types executed; what users get wrong, once more without."""
    lint = [
        Step("format", ["ruff", "format", "--check", "--quiet", "."]),
        Step("lint", ["ruff", "check", "--quiet", "."]),
        Step("types", ["mypy"]),
    ]
    if fast:
        quick = ["tests/core", "tests/explainers", "tests/contract", "tests/architecture", "tests/test_catalogue.py"]
        return [*lint, Step("tests of the core", [*PYTEST, "-x", "-m", ORDINARY, *quick])]
    return [
        *lint,
        Step("generated files", [sys.executable, "-m", "tools.generate", "--check"]),
        Step("tests", [*PYTEST, SHAPES, *COVERAGE, "-m", f"{ORDINARY} and not doors"]),
        Step("doors", [*PYTEST, *COVERAGE, "-m", f"{ORDINARY} and doors"]),
        Step("docs", [*PYTEST, "--doctest-modules", "src/pellucid", "README.md", "docs"]),
        Step("coverage", [sys.executable, "-m", "coverage", "report", "--fail-under=95"]),
    ]


def main() -> None:
    """Run the steps; stop at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="format, lint, types and the core's tests only")
    fast = parser.parse_args().fast
    started = time.monotonic()
    (ROOT / ".coverage").unlink(missing_ok=True)
    told, passed = [], 0
    for step in steps(fast=fast):
        begun = time.monotonic()
        command = [str(Path(sys.executable).parent / step.command[0]), *step.command[1:]]
        if Path(step.command[0]).is_absolute():
            command = step.command
        # The output is passed on as it comes and kept, to count what ran.
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            lines = []
            for line in process.stdout or []:
                print(line, end="", flush=True)
                lines.append(line)
        text = "".join(lines)
        print(f"-- {step.name}: {time.monotonic() - begun:.0f} s", flush=True)
        passed += sum(int(n) for n in re.findall(r"(\d+) passed", text))
        if process.returncode:
            sys.exit(f"FAILED: {step.name}. Before it passed: {', '.join(told) or 'nothing'}.")
        covered = re.search(r"^TOTAL.*?(\d+)%", text, re.MULTILINE)
        told.append(step.name + (f" {covered[1]} %" if covered else ""))
    print(f"All well in {time.monotonic() - started:.0f} s, {passed} tests passed: {', '.join(told)}.")


if __name__ == "__main__":
    main()
