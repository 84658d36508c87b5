"""Write what follows from the code: the public stub and the tables of methods. `--check` fails if a file is stale."""

import argparse
import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "pellucid"

PUBLIC = {
    "errors": None,  # None: everything in its __all__
    "core.attribution": None,
    "core.baseline": [
        "Background",
        "Baseline",
        "BlackOrZero",
        "Blur",
        "Constant",
        "FeatureMean",
        "Pixel",
        "Zeros",
    ],
    "core.card": None,
    "core.diagnosis": ["Finding", "Severity"],
    "core.estimate": ["Estimate", "Interrupted"],
    "core.estimator": ["Antithetic", "Estimator", "Mean"],
    "core.explainer": ["Explainer", "GlobalExplainer", "Progress"],
    "core.factored": ["Factored"],
    "core.function_model": None,
    "core.input": None,
    "core.label": None,
    "core.memory": ["Memory"],
    "core.model": ["Model", "TorchModel"],
    "core.prediction": ["OutputKind", "Prediction"],
    "core.random": ["Key"],
    "core.recipe": ["Recipe"],
    "core.segments": ["Columns", "Patches", "PatchesOrColumns", "SegmentMap", "Segments"],
    "core.stopping": ["Until"],
    "core.target": [
        "BoxScore",
        "ClassScore",
        "LogProb",
        "Margin",
        "Neuron",
        "Probability",
        "Region",
        "RegionMean",
        "Target",
    ],
    "core.tuning": ["Tuning"],
    "explainers._noise": ["NoiseLevel"],
    "explainers._rules": ["AlphaBeta", "Epsilon", "Flat", "Gamma", "SumRule", "Winner", "WSquare", "ZBox", "ZPlus"],
    "catalogue": ["Methods", "methods"],
    "metrics.similarity": None,
    "metrics.stability": None,
    "modalities.image.combined": None,
    "modalities.image.convergence": ["convergence"],
    "modalities.image.shrunk": None,
    "modalities.image.picture": ["comparison_page", "gallery", "heatmap", "overlay", "page"],
    "modalities.image.preprocess": None,
    "modalities.image.superpixels": None,
    "models.description": ["Description"],
    "models.endpoint": ["Transport"],
    "models.http": None,
    "models.load": ["load"],
    "models.onnx": None,
    "models.sklearn": ["SklearnModel"],
}
"""Where the names come from that stand directly under `pellucid`; every method of `explainers/` is added by itself."""


def exported(module: Path) -> list[str]:
    """The names in a module's __all__, read without importing it."""
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return [str(name) for name in ast.literal_eval(node.value)]
    return []


def stub() -> str:
    """The text of `__init__.pyi`."""
    modules = dict(PUBLIC)
    modules["explainers.pointwise"] = ["Absolute", "Squared"]
    for path in sorted((PACKAGE / "explainers").glob("[a-z]*.py")):
        modules.setdefault(f"explainers.{path.stem}", None)
    lines = ["# Written by `make generate` from each module's __all__. Do not edit.", ""]
    names = []
    for module in sorted(modules):
        chosen = modules[module] or exported(PACKAGE / f"{module.replace('.', '/')}.py")
        lines += [f"from .{module} import {name} as {name}" for name in chosen]
        names += chosen
    if len(set(names)) != len(names):
        raise SystemExit(f"Two modules give the same public name: {sorted(n for n in names if names.count(n) > 1)}")
    return "\n".join(lines) + "\n"


def table(*, networks: bool = False) -> str:
    """The methods with their four axes, cost and source, as the cards say; and the networks on which the suite ran."""
    from pellucid.catalogue import registered

    head = "| method | name | scope | access | stage | applicability | passes for one input | source |"
    head += (
        (" run on |" if networks else "") + "\n|---|---|---|---|---|---|---|---|" + ("---|" if networks else "") + "\n"
    )
    ran = ran_on() if networks else {}
    everywhere = sorted({name for names in ran.values() for name in names})
    rows = []
    for method in registered().values():
        card = method().card
        axes = f"{card.scope} | {card.access} | {card.stage} | {card.applicability}"
        title = card.title.replace("|", r"\|")
        where = f" {_where(ran[card.name], everywhere)} |" if networks else ""
        rows.append(f"| {title} | `{card.name}` | {axes} | {card.cost} | {card.reference} |{where}")
    if networks:
        rows.append(f"\n*Run on, all: {', '.join(everywhere)}.*")
    return head + "\n".join(rows) + "\n"


def ran_on() -> dict[str, list[str]]:
    """The networks of the suite on which each method is run and gives a map."""
    sys.path.insert(0, str(ROOT))
    from tests.networks import ran_on as told

    return told()


def _where(names: list[str], everywhere: list[str]) -> str:
    without = [name for name in everywhere if name not in names]
    if len(without) > len(names):
        return ", ".join(sorted(names))
    return f"all but {', '.join(without)}" if without else "all"


def filled(path: Path, mark: str, text: str) -> str:
    """The file with what stands between its two marks replaced."""
    start, end = f"<!-- {mark} -->\n", f"<!-- end {mark} -->"
    whole = path.read_text()
    before, _, rest = whole.partition(start)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{path} has no place marked {mark!r}.")
    return before + start + text + end + after


def main() -> None:
    """Write, or with --check compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a file is stale")
    check = parser.parse_args().check
    stale = []
    for path, make in [
        (PACKAGE / "__init__.pyi", stub),
        (ROOT / "README.md", lambda: filled(ROOT / "README.md", "methods", table())),
        (ROOT / "docs" / "methods.md", lambda: filled(ROOT / "docs" / "methods.md", "methods", table(networks=True))),
    ]:
        text = make()
        if path.exists() and path.read_text() == text:
            continue
        stale.append(path.relative_to(ROOT))
        if not check:
            path.write_text(text)
    if check and stale:
        sys.exit(f"Stale: {', '.join(map(str, stale))}. Run `make generate`.")
    print("generated files are fresh" if not stale else f"wrote {', '.join(map(str, stale))}")


if __name__ == "__main__":
    main()
