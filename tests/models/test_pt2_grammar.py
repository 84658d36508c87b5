"""What a text may say: a size, which sympy evaluates, an operator, which torch looks up by its attributes, and any."""

import ast
import contextlib
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.models.programs import BATCH, Odds, exported, noise, records_of, saved, written

from pellucid.errors import ModelError
from pellucid.models.exported import read_program
from pellucid.models.pt2_screen import Refused, _expression, _operator

SIZE = "Symbol('s7', positive=True, integer=True)"
SIZES = f"""
    {SIZE}
    Mul(Integer(4), FloorDiv(Add({SIZE}, Integer(-1)), Integer(2)))
    2*s0 // 3 >= 1
    Max(1, s0)
    Float('0.5', precision=53)
    Equality(Mod(s0, 2), 0)
"""
NO_SIZES = """
    open('marker')
    __import__('os')
    sympify('1')
    s0.__class__
    s0[0]
    s0;s0
    (s0 := 1)
    [s0 for s0 in ()]
    lambda: s0
    1 if s0 else 2
    f'{s0}'
    b'0'
    Symbol('open(1)')
    Symbol(*s0)
    Symbol('s0').func(1)
    Integer(1)(2)
    Add(s0, name=1)
    999999999999999999999999999999
"""
OPERATORS = """
    #ext:name _operator.attrgetter math.comb print torch.load torch.ops.aten.__class__.mro torch.ops.aten.relu
    torch.ops.aten._nested_view_from_buffer.default torch.ops.aten.fbgemm_linear_fp16_weight.default
    torch.ops.aten.manual_seed.int torch.ops.aten.nothing.default torch.ops.aten.relu.__class__
    torch.ops.aten.save.default torch.ops.higher_order.wrap torch.ops.load_library torch.ops.prim.device.default
"""


@pytest.mark.parametrize("text", SIZES.strip().splitlines())
def test_arithmetic_is_a_size(text: str) -> None:
    assert ast.dump(ast.parse(_expression(text.strip()))) == ast.dump(ast.parse(text.strip()))


@pytest.mark.parametrize("text", [*NO_SIZES.strip().splitlines(), "", "(" * 500, "s0+" * 1_000 + "s0"])
def test_anything_else_is_no_size(text: str) -> None:
    with pytest.raises(Refused, match="arithmetic"):
        _expression(text.strip())


@pytest.mark.parametrize("target", [*OPERATORS.split(), "torch.ops.aten.relu.default\n"])
def test_other_operators_are_refused(target: str) -> None:
    with pytest.raises(Refused, match="none of those"):
        _operator(target)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], bool]]:
    """Where each value and each key of a description is; true for a key."""
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(value, dict):
            yield (*path, key), True
        if isinstance(part, dict | list):
            yield from places(part, (*path, key))
        else:
            yield (*path, key), False


@pytest.mark.parametrize("form", ["{}", "x={}"])
@pytest.mark.parametrize("name", ["models/model.json", "data/constants/model_constants_config.json"])
def test_no_text_runs_wherever_it_stands(name: str, form: str, tmp_path: Path) -> None:
    records = records_of(saved(tmp_path / "net.pt2", exported(Odds().eval(), noise(2, 3, 8, 8), {0: BATCH})))
    description, marker = json.loads(records[name]), tmp_path / "marker"
    code = form.format(f"__import__('os').mkdir('{marker}')")
    # one place for each field: the last two names of its path
    found = {(tuple(k for k in path if isinstance(k, str))[-2:], key): path for path, key in places(description)}
    loaded = 0
    for (_, key), path in found.items():
        changed = copy.deepcopy(description)
        holder = changed
        for step in path[:-1]:
            holder = holder[step]
        if key:
            holder[code] = holder.pop(path[-1])
        else:
            holder[path[-1]] = code
        with contextlib.suppress(ModelError, RuntimeError):  # an operator may refuse its argument
            read_program(written(tmp_path / "net.pt2", {**records, name: json.dumps(changed).encode()})).network(
                noise(2, 3, 8, 8)
            )
            loaded += 1
        assert not marker.exists(), (path, key)
    assert loaded < len(found) / 4
