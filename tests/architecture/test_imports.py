"""Arrows point up only: a file imports from folders above its own, and from listed siblings."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pellucid

PACKAGE = Path(pellucid.__file__).parent
ORDER = ["errors", "core", "explainers", "metrics", "modalities", "models", "audit", "study", "catalogue", "report",
         "web", "cli"]  # fmt: skip

# Within a folder each file may import those before it in this list.
SIBLINGS = {
    "core": ["card", "checks", "recipe", "random", "ahead", "stopping", "label", "packing", "input", "prediction",
             "target", "baseline", "segments", "estimate", "moments", "estimator", "factored", "guard", "heap", "cuts",
             "depthwise", "folding", "linear", "fingerprint", "grid", "layer", "bias", "output", "operation", "rule",
             "executed",
             "tail", "network", "replicas",
             "footprint", "memory", "precision", "tuning", "abstract_model", "queries", "model", "function_model",
             "diagnosis", "attribution", "explainer"],
    "metrics": ["similarity", "stability"],
    "modalities": ["image.colour", "image.read", "image.preprocess", "image.heatmap", "image.uncertainty", "image.draw",
                   "image.wavelet", "image.superpixels", "image.shrunk", "image.combined", "image.picture",
                   "image.convergence"],
    "models": ["told", "secrets", "at_once", "connection", "description", "efficientnet_lite0", "imagenet",
               "pt2_screen", "exported", "onnx_screen", "onnx", "inference_protocol", "endpoint", "http", "sklearn",
               "own_code", "load"],
}  # fmt: skip

# The bases on which other methods may build; a new method needs no line here.
SHARED_EXPLAINERS = {"simple_gradient", "pointwise", "resampled", "smooth_grad", "grad_cam", "guided_backprop", "lrp",
                     "paired_gp"}  # fmt: skip

HEAVY = {"matplotlib": {"modalities/image/draw.py"}, "sklearn": {"models/sklearn.py"}, "ray": set(),
         "onnxruntime": {"models/onnx.py"}, "onnx": set(), "httpx": {"models/endpoint.py", "models/connection.py"},
         "skops": {"models/sklearn.py"}, "pandas": {"models/sklearn.py"},
         "transformers": set(), "torchvision": set()}  # fmt: skip

FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> list[str]:
    """Every module that a file imports, wherever in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found += [node.module or ""] + [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def place(module: str) -> tuple[str, str]:
    """Folder and file of a module: pellucid.modalities.image.read -> (modalities, image.read)."""
    parts = module.removeprefix("pellucid").strip(".").split(".")
    return parts[0], ".".join(parts[1:])


def is_module(module: str) -> bool:
    path = PACKAGE.parent / module.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def allowed(here: tuple[str, str], there: tuple[str, str]) -> bool:
    folder, name = here
    if folder != there[0]:
        return ORDER.index(there[0]) < ORDER.index(folder)
    if folder == "explainers":
        return there[1].startswith("_") or there[1] in SHARED_EXPLAINERS
    order = SIBLINGS[folder]
    return order.index(there[1]) < order.index(name)


@pytest.mark.parametrize("path", [pytest.param(f, id=str(f.relative_to(PACKAGE))) for f in FILES])
def test_arrows_point_up(path):
    relative = path.relative_to(PACKAGE).with_suffix("")
    if path.name == "__init__.py":
        return  # the composition root, and folders' docstrings
    here = place("pellucid." + ".".join(relative.parts))
    for module in imports(path):
        if not module.startswith("pellucid.") or not is_module(module):
            continue
        there = place(module)
        if there[1] == "" and there[0] in SIBLINGS.keys() | {"explainers"}:
            continue  # the folder itself, named to import a file of it
        if there != here:
            assert allowed(here, there), f"{'.'.join(here)} must not import {module}"


@pytest.mark.parametrize("heavy", HEAVY)
def test_heavy_libraries_are_imported_in_their_own_file_only(heavy):
    users = {str(p.relative_to(PACKAGE)) for p in FILES if any(m.split(".")[0] == heavy for m in imports(p))}
    assert users <= HEAVY[heavy]


def loaded_by(code: str) -> set[str]:
    script = f"{code}\nimport sys; print(' '.join(sorted({{m.split('.')[0] for m in sys.modules}})))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


UNWANTED = {"matplotlib", "sklearn", "pandas", "scipy", "skimage", "ray", "transformers", "onnxruntime", "httpx",
            "skops"}  # fmt: skip


def test_importing_the_package_loads_nothing_heavy():
    assert not loaded_by("import pellucid") & (UNWANTED | {"torch", "PIL"})


def test_using_a_method_loads_nothing_heavy_but_torch():
    call = "pl.SmoothGrad(n_samples=2)(pl.TorchModel(torch.nn.Linear(2, 2)), torch.ones(1, 2))"
    loaded = loaded_by(f"import pellucid as pl, torch\n{call}")
    assert "torch" in loaded
    assert not loaded & UNWANTED


def test_help_loads_no_torch():
    code = "from click.testing import CliRunner\nfrom pellucid.cli import cli\n"
    code += "assert CliRunner().invoke(cli, ['explain', '--help']).exit_code == 0"
    assert "torch" not in loaded_by(code)
