"""Runs the tests of each mutant on a mutated copy of the package, in processes forked after the slow imports.

Prints one JSON object: for each mutant the exit code of its tests (1: some failed, so it was killed).
"""

import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.mutants.catalogue import MUTANTS, Mutant  # noqa: E402  # found from there

LONGEST = 180
"""Seconds: tests that wait for ever notice a deliberate bug, too. Those of the sound code take a few."""

PRELOADED = (np, torch)  # imported before the fork, so that every child has them at once


def child(mutant: Mutant, folder: Path) -> int:
    """The exit code of the mutant's tests, in this process, on the mutated copy."""
    source = folder / "src"
    shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
    path = source / "pellucid" / mutant.file
    text = path.read_text()
    if text.count(mutant.before) != 1:
        return 100  # the code has moved on: the list must follow
    path.write_text(text.replace(mutant.before, mutant.after))
    sys.path.insert(0, str(source))
    sys.stdout = sys.stderr = (folder / "out").open("w")
    os.chdir(ROOT)
    torch.set_num_threads(1)
    signal.alarm(LONGEST)
    ordinary = "not slow and not peers and not gpu"
    options = ["-x", "-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:cov", "-m", ordinary]
    return int(pytest.main([*options, *mutant.tests]))


def start(mutant: Mutant, folder: Path) -> int:
    """Fork; the number of the process that runs the mutant's tests."""
    pid = os.fork()
    if pid == 0:
        code = 101
        try:
            code = child(mutant, folder)
        finally:
            os._exit(code)
    return pid


def run(mutants: list[Mutant]) -> dict[str, int]:
    """The exit code of each, as many at once as there are processors."""
    waiting, running, codes = list(reversed(mutants)), {}, {}
    while waiting or running:
        if waiting and len(running) < (os.cpu_count() or 1):
            folder = tempfile.TemporaryDirectory()
            mutant = waiting.pop()
            running[start(mutant, Path(folder.name))] = mutant, folder
            continue
        pid, status = os.wait()
        mutant, folder = running.pop(pid)
        code = os.waitstatus_to_exitcode(status)
        codes[mutant.name] = 1 if code == -signal.SIGALRM else code
        folder.cleanup()
    return codes


if __name__ == "__main__":
    wanted = sys.argv[1:]
    print(json.dumps(run([m for m in MUTANTS if not wanted or m.name in wanted])))
