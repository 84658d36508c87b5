"""Executes the code blocks of README and docs: Python, and `pellucid` commands, in a folder with what they speak of."""

import os
import re
import shlex
from pathlib import Path

import pytest
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

_NETS = """
import torch

def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
                               torch.nn.Flatten(), torch.nn.Linear(8, 4))
"""
_DESCRIPTION = "[input]\nsize = 64\nmean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]\n"


def _run_commands(example: Example) -> None:
    from click.testing import CliRunner

    from pellucid.cli import cli

    for line in str(example.parsed).splitlines():
        command = re.sub(r"\s+#.*$", "", line)
        if not command.startswith("pellucid "):
            continue
        words = [
            str(p) for word in shlex.split(command)[1:] for p in (sorted(Path().glob(word)) if "*" in word else [word])
        ]
        arguments = [*words, "--force"] if words[0] in ("explain", "compare") else words
        result = CliRunner().invoke(cli, arguments)
        if result.exit_code:
            raise AssertionError(f"{command}: exit code {result.exit_code}\n{result.output}") from result.exception


@pytest.fixture(scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory):
    """A folder with what the docs speak of: a photo of a cat, one of a coffee cup, and a network of one's own."""
    from PIL import Image
    from skimage import data

    folder, before = tmp_path_factory.mktemp("docs"), Path.cwd()
    Image.fromarray(data.chelsea()).save(folder / "cat.jpg", quality=95)
    Image.fromarray(data.coffee()).save(folder / "coffee.jpg", quality=95)
    (folder / "mynets.py").write_text(_NETS)
    (folder / "mynets.toml").write_text(_DESCRIPTION)
    os.chdir(folder)
    yield folder
    os.chdir(before)


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), CodeBlockParser(language="bash", evaluator=_run_commands)],
    patterns=["README.md", "docs/*.md"],
    fixtures=["_folder"],
).pytest()
