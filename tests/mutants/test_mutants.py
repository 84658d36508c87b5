"""Every deliberate bug is killed by the tests that are named for it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.mutants.catalogue import MUTANTS

KILLED = 1  # pytest's exit code when tests ran and some failed


@pytest.fixture(scope="module")
def outcomes() -> dict[str, int]:
    run = [sys.executable, str(Path(__file__).with_name("run.py"))]
    result = subprocess.run(run, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_it_is_killed(mutant, outcomes):
    assert outcomes[mutant.name] == KILLED, f"exit code {outcomes[mutant.name]}: 0 survived, 100 no longer applies"


def test_the_list_is_long_and_without_doubles():
    assert len(MUTANTS) >= 25
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)
