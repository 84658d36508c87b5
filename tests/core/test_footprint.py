import pytest
import torch
from tests.oracles import Constant, Linear, conv_net, uniform
from torch import Tensor, nn

import pellucid as pl
from pellucid.core import footprint
from pellucid.core.footprint import Footprint, LiveBytes, measured, measured_by_rules
from pellucid.core.network import Network
from pellucid.core.operation import Kind
from pellucid.core.prediction import OutputKind
from pellucid.core.rule import Keep, RuleBook
from pellucid.core.target import ClassScore, Targets

KIB = 1024


def network(net: nn.Module, plain: tuple[int, ...] = ()) -> Network:
    return Network(net.eval().requires_grad_(False), torch.device("cpu"), "net", None, False, {plain})


def always(alone: Footprint) -> bool:
    return True


def test_bytes_count_while_they_live():
    before = torch.ones(KIB)
    with LiveBytes() as live:
        a = torch.ones(KIB)  # 4 KiB
        b = a + 1
        assert live.live() == 8 * KIB
        view = b.view(32, 32).T
        assert live.live() == 8 * KIB, "a view has no memory of its own"
        del b
        c = view.exp()
        assert live.live() == 12 * KIB, "the view holds what it shows"
        del view, a
        c.add_(1)
        assert live.live() == 4 * KIB
        _ = before.reshape(2, -1), before.add_(1)
        assert live.live() == 4 * KIB, "what was there before does not count"
    assert live.peak == 12 * KIB


def test_what_the_graph_saves_lives():
    x = torch.ones(KIB, requires_grad=True)
    with LiveBytes() as live:
        y = x.exp().exp().sum()
        assert live.live() == 8 * KIB + 4
        torch.autograd.grad(y, x)
        del y
        assert live.live() == 0


class Wide(nn.Module):
    """n features become 16 n, of which exp saves its result, and their sum."""

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat(1, 16).exp().sum(1, keepdim=True)


def test_the_peaks_of_passes_are_lines_in_the_rows():
    """The leaf and its copy n, 16 n before and after exp: when exp is done, 34 n of 4 bytes."""
    rows = uniform(1, KIB)
    found = measured(network(Wide()), rows, gradients=True, two_fit=always)
    assert found.rows == 2
    assert found.live(3, kept=False) == pytest.approx(3 * found.live(1, kept=False), rel=0.01)
    assert found.live(1, kept=False) == pytest.approx(4 * 34 * KIB, rel=0.05)


def test_the_line_predicts_what_is_measured():
    net = network(conv_net())
    found = measured(net, uniform(1, 3, 32, 32), gradients=True, two_fit=always)
    five = footprint._peaks(net, uniform(5, 3, 32, 32), gradients=True)
    assert (found.live(5, kept=False), found.live(5, kept=True)) == pytest.approx(five, rel=0.01)
    assert five[1] > five[0], "a graph that is kept is not freed on the way back"


def test_a_network_with_memory_of_its_own_has_a_fixed_part():
    class Scratch(Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.scratch = torch.zeros(KIB, KIB)
            return super().forward(x)

    found = measured(network(Scratch(uniform(2, 3))), uniform(1, 3), gradients=True, two_fit=always)
    assert found.fixed >= 4 * KIB**2
    assert found.row < KIB


def test_one_row_is_all_that_is_run_where_two_may_not_fit():
    sizes = []
    net = Linear(uniform(2, 3))
    net.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    both = measured(network(net), uniform(4, 3), gradients=True, two_fit=always)
    assert (sizes, both.cost) == ([1, 1, 2], pl.Cost(4, 6))
    sizes.clear()
    alone = measured(network(net), uniform(4, 3), gradients=True, two_fit=lambda footprint: False)
    assert (sizes, alone.cost, alone.rows) == ([1, 1], pl.Cost(2, 2), 1)
    assert alone.live(3, kept=True) >= both.live(3, kept=True)


@pytest.mark.parametrize("gradients", [True, False])
def test_without_gradients_the_outputs_are_measured(gradients):
    found = measured(network(Constant()), uniform(1, 3), gradients=gradients, two_fit=always)
    assert found.live(2, kept=True) == found.live(2, kept=False) > 0
    assert measured(network(conv_net()), uniform(1, 3, 9, 9), gradients=False, two_fit=always).cost.backward == 0


def test_the_first_pass_in_which_a_layout_fails_is_not_measured():
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).view(len(x), -1)

    learnt = measured(network(Viewing()), uniform(1, 3, 9, 9), gradients=True, two_fit=always)
    known = measured(network(Viewing(), (3, 9, 9)), uniform(1, 3, 9, 9), gradients=True, two_fit=always)
    assert learnt == known


@pytest.mark.parametrize(
    ("kernel", "settings", "columns"),
    [(3, {}, 4 * 9 * 6 * 6), (3, {"stride": 2, "padding": 1}, 4 * 9 * 4 * 4), (3, {"groups": 2}, 2 * 9 * 6 * 6),
     (3, {"dilation": 2}, 4 * 9 * 4 * 4), (1, {}, 0)],
)  # fmt: skip
def test_unfolded_inputs_are_counted_where_torch_convolves_itself(kernel, settings, columns):
    """In double precision, k x k values for each place and input channel; oneDNN, which takes float32, needs none."""
    peaks = {}
    for dtype in (torch.float64, torch.float32):
        conv = nn.Conv2d(4, 2, kernel, bias=False, **settings).to(dtype).requires_grad_(False)
        x = uniform(2, 4, 8, 8, dtype=dtype)
        with LiveBytes() as live:
            conv(x)
        peaks[dtype] = live.peak // x.element_size()
    result = conv(x).numel()
    assert peaks[torch.float64] == result + 2 * columns
    assert peaks[torch.float32] == result


def test_compiled_networks_are_measured_as_they_are_written():
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x * 2).sum(1, keepdim=True)

    ran = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        ran.append(graph)
        return graph.forward

    compiled = torch.compile(Net(), backend=backend)
    plain = measured(network(Net()), uniform(1, KIB), gradients=True, two_fit=always)
    assert measured(network(compiled), uniform(1, KIB), gradients=True, two_fit=always) == plain
    count = len(ran)
    assert measured(network(compiled), uniform(1, 2 * KIB), gradients=True, two_fit=always).row > plain.row
    assert len(ran) <= count + 1, "the pass that is not measured at the most"


class Keeping(RuleBook):
    """Autograd's derivatives, with the outputs of some kinds kept."""

    def __init__(self, *kinds: Kind) -> None:
        self.kinds = frozenset(kinds)

    @property
    def keep(self) -> Keep:
        return Keep(outputs=self.kinds)

    def assign(self, operations, beside=()):
        return {}


def of_rows(rows: int) -> Targets:
    return Targets((ClassScore(0),) * rows, OutputKind.LOGITS)


class Squashed(nn.Module):
    """Tanh saves what it gives, and what is added is saved by nobody."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(8):
            x = torch.tanh(x) + 1
        return x.sum(1, keepdim=True)


def test_what_rules_keep_of_a_pass_is_measured():
    """Eight sums of 4 KiB each, of which one or two would live anyway when the last is made."""
    x = uniform(1, KIB)
    plain, kept = (
        measured_by_rules(network(Squashed()), x, of_rows(1), book, two_fit=always)
        for book in (Keeping(), Keeping(Kind.SCALE))
    )
    assert 5 * 4 * KIB < kept.row - plain.row < 8 * 4 * KIB
    assert kept.live(1, kept=False) == kept.live(1, kept=True)


def test_rows_beside_are_measured_with_the_others():
    x = uniform(1, KIB)
    alone = measured_by_rules(network(Squashed()), x, of_rows(1), Keeping(), two_fit=always)
    both = measured_by_rules(network(Squashed()), x, of_rows(1), Keeping(), x, two_fit=always)
    assert both.row == pytest.approx(2 * alone.row, rel=0.2)
    assert (alone.cost, both.cost) == (pl.Cost(3, 3), pl.Cost(6, 3))


def test_the_line_predicts_passes_by_rules():
    net, book = network(conv_net()), Keeping(*Kind)
    found = measured_by_rules(net, uniform(1, 3, 32, 32), of_rows(1), book, two_fit=always)
    with LiveBytes() as live:
        net.rule_pass(uniform(5, 3, 32, 32), of_rows(5), book)
    assert found.live(5, kept=False) == pytest.approx(live.peak, rel=0.1)
    assert found.rows == 2


def test_one_row_by_rules_is_all_that_is_run_where_two_may_not_fit():
    sizes = []
    net = Linear(uniform(2, 3))
    net.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    found = measured_by_rules(network(net), uniform(1, 3), of_rows(1), Keeping(), two_fit=lambda alone: False)
    assert (sizes, found.cost, found.rows) == ([1], pl.Cost(1, 1), 1)
