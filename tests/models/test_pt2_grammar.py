"""What may stand for a size, which sympy evaluates, and for an operator, which torch looks up by its attributes."""

import ast

import pytest

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
