import copy
from collections.abc import Callable

import pytest
import torch
from tests.core.networks import Calling, residual, tokens
from tests.explainers import encoders
from tests.explainers.paths import near
from tests.oracles import conv_net, uniform
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # as networks write it

import pellucid as pl
from pellucid.core.recipe import decode, encode

ZERO = pl.LRP.epsilon(0.0)
CONVENTIONS = {
    "epsilon": pl.LRP.epsilon(),
    "epsilon plus": pl.LRP.epsilon_plus(),
    "epsilon plus flat": pl.LRP(),
    "epsilon alpha2 beta1": pl.LRP.epsilon_alpha2_beta1(),
    "epsilon alpha2 beta1 flat": pl.LRP.epsilon_alpha2_beta1_flat(),
    "epsilon gamma box": pl.LRP.epsilon_gamma_box(-2.0, 2.0),
}
conventions = pytest.mark.parametrize("explain", CONVENTIONS.values(), ids=CONVENTIONS)
MERGING = [pl.LRP(convolution=rule, dense=rule, first=None) for rule in (pl.ZPlus(), pl.Gamma(), pl.AlphaBeta())]
merging = pytest.mark.parametrize("explain", [*MERGING, pl.LRP()], ids=["z+", "gamma", "alpha beta", "flat"])


def real(*shape: int, seed: int = 0) -> Tensor:
    """Of either sign."""
    return 2 * uniform(*shape, seed=seed, dtype=torch.float64) - 1


PICTURES, ROWS, TOKENS = real(3, 3, 8, 9, seed=1), real(3, 6, seed=2), real(2, 5, 4, seed=3)


def map_of(net: nn.Module, x: Tensor, explain: pl.Explainer = ZERO, target: int = 0) -> Tensor:
    return explain(pl.TorchModel(net), x, target=target).scores


def gradient(net: Callable[[Tensor], Tensor], x: Tensor, target: int = 0) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(net(leaf)[:, target].sum(), leaf)[0]


def of_parts(forward: Callable[..., Tensor], **parts: nn.Module) -> nn.Module:
    """A network in float64 whose norms have learnt something."""
    net = Calling(forward, **parts)
    net.register_buffer("unit", torch.ones(()))  # by which it is known what a network without layers computes in
    net.double().eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(-1, 2)
                module.bias.normal_(0, 0.3)
            elif isinstance(module, nn.LayerNorm | nn.GroupNorm) and module.weight is not None:
                module.weight.uniform_(0.5, 2)
                module.bias.normal_(0, 0.3)
    return net


def relu_net() -> nn.Module:
    """Pools, a residual sum, a concatenation and norms, with ReLUs alone."""

    def forward(net, x):
        y = F.relu(net.norm(net.conv(x)), inplace=True)
        y = F.max_pool2d(net.block(y) + y, 2)
        y = torch.cat([y, F.avg_pool2d(y, 3, 1, 1)], 1)
        return net.head(F.relu(net.hidden(y.flatten(1))))

    block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(True), nn.Conv2d(4, 4, 3, padding=1))
    return of_parts(
        forward, conv=nn.Conv2d(3, 4, 3, padding=1, bias=False), norm=nn.BatchNorm2d(4), block=block,
        hidden=nn.Linear(128, 16), head=nn.Linear(16, 3),
    )  # fmt: skip


# LRP-0


@pytest.mark.parametrize("make", [relu_net, lambda: conv_net(dtype=torch.float64).eval(), residual])
def test_on_relu_networks_lrp_0_is_input_times_gradient(make):
    net = make()
    expected = PICTURES * gradient(net, PICTURES, 1)
    assert near(map_of(net, PICTURES, target=1), expected, 1e-12)


def test_of_a_linear_network_it_is_what_each_feature_adds():
    net = nn.Linear(6, 3).double()
    a = ZERO(pl.TorchModel(net), ROWS, target=[0, 2, 1])
    torch.testing.assert_close(a.scores, ROWS * net.weight[[0, 2, 1]].detach(), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(a.residual, -net.bias[[0, 2, 1]].detach(), rtol=1e-12, atol=1e-15)


def test_a_saturated_relu6_hands_its_relevance_on_where_its_gradient_is_zero():
    x = torch.tensor([[9.0, 3.0, -2.0]], dtype=torch.float64)
    net = of_parts(lambda net, x: F.relu6(x).sum(1, keepdim=True))
    assert gradient(net, x).tolist() == [[0, 1, 0]]
    for spelling in (F.relu6, nn.ReLU6(), nn.ReLU6(inplace=True), lambda x: x.clamp(0, 6), nn.Hardtanh(0.0, 6.0)):
        net = of_parts(lambda net, x, f=spelling: f(x * 1).sum(1, keepdim=True))
        torch.testing.assert_close(map_of(net, x), torch.tensor([[6.0, 3.0, 0.0]]).double(), rtol=1e-12, atol=0)


ACTIVATIONS = {
    "tanh": torch.tanh, "gelu": F.gelu, "silu": F.silu, "sigmoid": torch.sigmoid, "softplus": F.softplus,
    "elu": F.elu, "leaky": F.leaky_relu, "hardswish": F.hardswish, "mish": F.mish, "exp": torch.exp,
    "power": lambda x: x**3, "square": torch.square,
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_hand_on_what_they_get(name):
    """Relevance m f(x) goes on as it is, through whatever f."""
    f, w = ACTIVATIONS[name], real(6, 1, seed=4)
    net = of_parts(lambda net, x: f(x) @ w)
    assert near(map_of(net, ROWS), f(ROWS) * w.T, 1e-12)


def test_where_x_is_almost_zero_an_activation_has_its_derivative():
    x = torch.tensor([[0.0, 1e-9, -1e-9, 1e-3]], dtype=torch.float64)
    net = of_parts(lambda net, x: torch.tanh(x).sum(1, keepdim=True))
    found = map_of(net, x)
    assert found.isfinite().all()
    torch.testing.assert_close(found, torch.tanh(x), rtol=1e-12, atol=1e-24)


def bias_relevance(net: nn.Module, x: Tensor, target: int) -> Tensor:
    """For each row, the sum over biases of each times the gradient where it is added; norms as they are in evaluation:
    what they give for nothing is their bias.
    """
    total = torch.zeros(len(x), dtype=x.dtype)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            gain = module.weight * (module.running_var + module.eps).rsqrt()
            bias = module.bias - module.running_mean * gain
        elif isinstance(module, nn.Conv2d | nn.Linear):
            bias = module.bias
        else:
            continue
        if bias is None:
            continue
        caught = []

        def keep(module, args, output, caught=caught):
            output = output.clone().requires_grad_()
            caught.append(output)
            return output.clone()

        handle = module.register_forward_hook(keep)
        score = net(x)[:, target].sum()
        handle.remove()
        for at in torch.autograd.grad(score, caught):
            shape = [-1 if a == 1 else 1 for a in range(at.ndim)]
            total += (at * bias.detach().view(shape)).flatten(1).sum(1)
    return total


@pytest.mark.parametrize("make", [relu_net, lambda: conv_net(dtype=torch.float64).eval(), residual])
def test_what_the_input_does_not_get_biases_have_absorbed(make):
    net = make()
    with torch.no_grad():
        score = net(PICTURES)[:, 2]
    a = ZERO(pl.TorchModel(net), PICTURES, target=2)
    absorbed = bias_relevance(net, PICTURES, 2)
    assert float(absorbed.abs().min()) > 1e-3
    torch.testing.assert_close(a.scores.flatten(1).sum(1) + absorbed, score, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(a.residual, -absorbed, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(torch.tensor(a.recipe.notes["score"], dtype=torch.float64), score, rtol=1e-10, atol=0)


@conventions
def test_without_biases_and_stabilisers_nothing_is_lost(explain):
    """Each sum divides all that it has: 1e-6 over sums of about one."""
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 6, 2, 2, bias=False), nn.ReLU(), nn.MaxPool2d(2, 1),
        nn.Flatten(), nn.Linear(6 * 2 * 2, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False),
    ).double()  # fmt: skip
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3)
    x = PICTURES[..., :8]
    a = explain(pl.TorchModel(net), x, target=1)
    score = net(x)[:, 1].detach()
    assert float((a.residual / score).abs().max()) < 1e-4


@pytest.mark.parametrize("make", [relu_net, residual])
def test_as_epsilon_falls_the_map_becomes_that_of_lrp_0(make):
    net = make()
    expected = map_of(net, PICTURES)
    away = [float((map_of(net, PICTURES, pl.LRP.epsilon(e)) - expected).abs().max()) for e in (1e-1, 1e-4, 1e-7, 1e-10)]
    assert away == sorted(away, reverse=True)
    assert away[0] > 1e-2 * float(expected.abs().max())
    assert away[-1] < 1e-6 * float(expected.abs().max())


# One function, however it is written


def written() -> dict[str, nn.Module]:
    """Convolution, norm, ReLU, head: as modules, functions, in place, and folded by hand."""
    conv, norm, head = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Linear(5, 3)
    parts = {"conv": conv, "norm": norm, "head": head}

    def functions(net, x):
        y = F.conv2d(x, net.conv.weight, net.conv.bias, padding=1)
        n = net.norm
        y = F.relu(F.batch_norm(y, n.running_mean, n.running_var, n.weight, n.bias, False, 0.1, n.eps))
        return F.linear(F.adaptive_avg_pool2d(y, 1).flatten(1), net.head.weight, net.head.bias)

    def in_place(net, x):
        y = net.norm(net.conv(x))
        torch.relu_(y)
        return torch.add(y.mean((2, 3)) @ net.head.weight.T, net.head.bias)

    def apart(net, x):
        y = F.conv2d(x, net.conv.weight, padding=1) + net.conv.bias.view(1, -1, 1, 1)
        return net.head(net.norm(y).clamp(min=0).mean((-1, -2)))

    def masked(net, x):
        y = net.norm(net.conv(x))
        return net.head((y * (y > 0)).mean((2, 3)))

    def chosen(net, x):
        y = net.norm(net.conv(x))
        return net.head(torch.where(y > 0, y, 0).mean((2, 3)))

    modules = nn.Sequential(conv, norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    of_parts(lambda net, x: x, **parts)  # statistics, in float64
    folded = nn.Conv2d(3, 5, 3, padding=1).double()
    with torch.no_grad():
        gain = norm.weight / (norm.running_var + norm.eps).sqrt()
        folded.weight.copy_(conv.weight * gain.view(-1, 1, 1, 1))
        folded.bias.copy_(norm.bias + gain * (conv.bias - norm.running_mean))
    calling = {
        f.__name__: Calling(f, **copy.deepcopy(parts)).eval() for f in (functions, in_place, apart, masked, chosen)
    }
    by_hand = nn.Sequential(folded, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    return {"modules": modules.double().eval(), "folded": by_hand.double(), **calling}


@merging
def test_one_function_has_one_map_however_it_is_written(explain):
    nets = written()
    maps = {name: map_of(net, PICTURES, explain, 1) for name, net in nets.items()}
    for name, found in maps.items():
        torch.testing.assert_close(nets[name](PICTURES), nets["folded"](PICTURES), rtol=1e-10, atol=1e-12)
        # Two folds of the same weights differ in the last digit.
        assert near(found, maps["folded"], 1e-10), name


@merging
@pytest.mark.parametrize("axes", [2, 3, 4])
def test_a_dense_layer_has_one_map_however_it_is_written(explain, axes):
    layer, head = nn.Linear(4, 5).double(), nn.Linear(5, 2).double()
    x = real(*(3, 2, 6)[: axes - 1], 4, seed=5)
    w, b = layer.weight, layer.bias

    def ended(y: Tensor) -> Tensor:
        return head(F.relu(y)).flatten(1, -2).mean(1) if axes > 2 else head(F.relu(y))

    ways = [
        lambda net, x: ended(net.layer(x)),
        lambda net, x: ended(F.linear(x, w, b)),
        lambda net, x: ended(x @ w.T + b),
        lambda net, x: ended(b + x.matmul(w.T)),
        lambda net, x: ended(torch.add(torch.matmul(x, w.T), b)),
        lambda net, x: ended((x @ w.T).add_(b)),
    ]
    with torch.no_grad():
        maps = [map_of(Calling(way, layer=layer, head=head), x, explain, 1) for way in ways]
    for found in maps[1:]:
        assert near(found, maps[0], 1e-12)


@merging
def test_gates_that_are_written_out_are_the_activation(explain):
    """SiLU is x sigmoid(x): the gate gets nothing, the signal all, which is what an activation hands on."""
    conv, head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def net(f: Callable[[Tensor], Tensor]) -> nn.Module:
        return of_parts(lambda net, x: net.head(f(net.conv(x)).mean((2, 3))), conv=conv, head=head)

    expected = map_of(net(F.silu), PICTURES, explain)
    for f in (lambda y: y * torch.sigmoid(y), lambda y: y.sigmoid() * y, lambda y: y.mul_(y.sigmoid())):
        assert near(map_of(net(f), PICTURES, explain), expected, 1e-12)


def test_hard_gates_get_nothing_either():
    net = of_parts(lambda net, x: (x * F.hardsigmoid(x)).sum(1, keepdim=True))
    torch.testing.assert_close(map_of(net, ROWS), F.hardswish(ROWS), rtol=1e-12, atol=1e-15)


# Products, norms, attention


def test_a_squeeze_and_excite_gate_gets_nothing():
    """As if the gate were a constant."""

    def gate(net, y):
        return torch.sigmoid(net.up(F.relu(net.down(y.mean((2, 3), keepdim=True)))))

    def forward(net, x):
        y = F.relu(net.conv(x))
        return net.head((y * gate(net, y)).mean((2, 3)))

    net = of_parts(
        forward, conv=nn.Conv2d(3, 6, 3), down=nn.Conv2d(6, 2, 1), up=nn.Conv2d(2, 6, 1), head=nn.Linear(6, 2)
    )

    def constant(x):
        y = F.relu(net.conv(x))
        return net.head((y * gate(net, y).detach()).mean((2, 3)))

    assert near(map_of(net, PICTURES), PICTURES * gradient(constant, PICTURES), 1e-12)


def test_a_gate_that_is_spread_over_places_stays_a_gate():
    def forward(net, x):
        gate = torch.sigmoid(net.gate(x)).view(-1, 2, 1).expand(-1, 2, 3)
        return (x.view(-1, 2, 3) * gate).flatten(1).sum(1, keepdim=True)

    net = of_parts(forward, gate=nn.Linear(6, 2))
    expected = ROWS * torch.sigmoid(net.gate(ROWS)).detach().repeat_interleave(3, 1)
    assert near(map_of(net, ROWS), expected, 1e-12)


def test_a_product_of_two_signals_is_halved():
    """f = (a . x) (b . x): half of it by each."""
    one, two = nn.Linear(6, 1, bias=False), nn.Linear(6, 1, bias=False)
    net = of_parts(lambda net, x: net.one(x) * net.two(x), one=one, two=two)
    a, b = net.one(ROWS).detach(), net.two(ROWS).detach()
    expected = (ROWS * one.weight.detach() * b + ROWS * two.weight.detach() * a) / 2
    assert near(map_of(net, ROWS), expected, 1e-12)
    torch.testing.assert_close(map_of(net, ROWS).sum(1, keepdim=True), a * b, rtol=1e-10, atol=1e-13)


def test_a_product_of_two_gates_is_halved():
    net = of_parts(lambda net, x: x[:, :1].sigmoid() * x[:, 1:2].sigmoid())
    expected = torch.zeros_like(ROWS)
    expected[:, :2] = (ROWS[:, :1].sigmoid() * ROWS[:, 1:2].sigmoid()) / 2
    assert near(map_of(net, ROWS), expected, 1e-12)


def test_a_quotient_gives_all_to_its_numerator():
    net = of_parts(lambda net, x: (x / (1 + x.abs().sum(1, keepdim=True))).sum(1, keepdim=True))
    torch.testing.assert_close(map_of(net, ROWS), ROWS / (1 + ROWS.abs().sum(1, keepdim=True)), rtol=1e-12, atol=1e-15)
    inverse = of_parts(lambda net, x: torch.ones_like(x[:, :1]) / x[:, :1].exp())
    assert not map_of(inverse, ROWS).any(), "a denominator gets nothing"


@pytest.mark.parametrize("norm", ["layer", "layer without gain", "two axes", "group", "one group", "group of rows"])
def test_norms_keep_their_spread_as_a_constant(norm):
    x, head = real(3, 4, 6, seed=6), real(24, 1, seed=7)
    layers: dict[str, nn.Module] = {
        "layer": nn.LayerNorm(6), "layer without gain": nn.LayerNorm(6, elementwise_affine=False),
        "two axes": nn.LayerNorm((4, 6)), "group": nn.GroupNorm(2, 4), "one group": nn.GroupNorm(1, 4),
        "group of rows": nn.GroupNorm(4, 4, eps=0.1),
    }  # fmt: skip
    net = of_parts(lambda net, x: net.norm(x).flatten(1) @ head, norm=layers[norm])
    groups = {"group": 2, "one group": 1, "two axes": 1}.get(norm, 4)
    eps = 0.1 if norm == "group of rows" else 1e-5
    expected = torch.empty_like(x)
    for row in range(3):
        for g in range(groups):
            at = slice(g * 4 // groups, (g + 1) * 4 // groups)
            part = x[row, at]
            spread = (part.var(unbiased=False) + eps).sqrt()
            weight = net.norm.weight.detach() if net.norm.weight is not None else torch.ones(6).double()
            whole = weight.view(-1, 1).expand(4, 6) if isinstance(net.norm, nn.GroupNorm) else weight.expand(4, 6)
            message = head.view(4, 6)[at] * whole[at] / spread
            expected[row, at] = part * (message - message.mean())
    assert near(map_of(net, x), expected, 1e-11)
    # All but the gain's bias arrives: x - mean is linear, and the spread a constant.
    bias = getattr(net.norm, "bias", None)
    if bias is not None:
        spread_bias = bias.detach().view(-1, 1) if isinstance(net.norm, nn.GroupNorm) else bias.detach()
        given = (spread_bias.expand(4, 6).flatten() * head[:, 0]).sum()
        whole = net(x)[:, 0].detach()
        torch.testing.assert_close(map_of(net, x).flatten(1).sum(1) + given, whole, rtol=1e-9, atol=1e-11)


def test_softmax_attention_is_halved_at_its_products():
    """By hand: messages to q k' and to what it weighs are halved, the softmax has its derivative."""
    parts = {name: nn.Linear(4, 4, bias=False) for name in "qkv"} | {"head": nn.Linear(4, 2, bias=False)}

    def forward(net, x):
        q, k, v = net.q(x), net.k(x), net.v(x)
        return net.head((torch.softmax(q @ k.mT / 2, -1) @ v).mean(1))

    net = of_parts(forward, **parts)
    with torch.no_grad():
        q, k, v = net.q(TOKENS), net.k(TOKENS), net.v(TOKENS)
        a = torch.softmax(q @ k.mT / 2, -1)
        out = (net.head.weight[1] / 5).expand(2, 5, 4)
        to_a, to_v = out @ v.mT / 2, a.mT @ out / 2
        to_s = a * (to_a - (a * to_a).sum(-1, keepdim=True)) / 2
        to_q, to_k = to_s @ k / 2, to_s.mT @ q / 2
        message = to_q @ net.q.weight + to_k @ net.k.weight + to_v @ net.v.weight
    assert near(map_of(net, TOKENS, target=1), TOKENS * message, 1e-12)


class Vision(nn.Module):
    """An encoder layer of a vision transformer, its attention as a module or written out with the same weights."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attend = (
            nn.LayerNorm(4),
            nn.LayerNorm(4),
            nn.MultiheadAttention(4, 2, 0.0, batch_first=True),
        )
        self.mlp, self.head, self.way = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)), nn.Linear(4, 3), way

    def attention(self, x: Tensor) -> Tensor:
        if self.way == "module":
            return self.attend(x, x, x, need_weights=False)[0]
        if self.way == "module with weights":
            return self.attend(x, x, x)[0]
        qkv = F.linear(x, self.attend.in_proj_weight, self.attend.in_proj_bias)
        q, k, v = qkv.unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        if self.way == "fused":
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = torch.softmax(q @ k.mT / 2**0.5, -1) @ v
        return self.attend.out_proj(y.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return self.head((x + self.mlp(self.norm2(x))).mean(1))


@merging
def test_attention_has_one_map_however_it_is_written(explain):
    plain = Vision("plain").double().eval()
    expected = map_of(plain, TOKENS, explain)
    for way in ("module", "module with weights", "fused"):
        net = Vision(way).double().eval()
        net.load_state_dict(plain.state_dict())
        torch.testing.assert_close(net(TOKENS), plain(TOKENS), rtol=1e-10, atol=1e-12)
        # Scaling q and k by a root each, or their product, rounds otherwise.
        assert near(map_of(net, TOKENS, explain), expected, 1e-10), way


# Company


def lstm() -> nn.Module:
    def forward(net, x):
        steps, (state, _) = net.lstm(x)
        return net.head(torch.cat([steps.mean(1), state[-1]], 1))

    return of_parts(forward, lstm=nn.LSTM(4, 5, 2, batch_first=True), head=nn.Linear(10, 3))


COMPANY = {
    "convolutions": (relu_net, PICTURES),
    "residual": (residual, PICTURES),
    "lstm": (lstm, TOKENS),
    "encoder": (lambda: Vision("module").double().eval(), TOKENS),
    "tokens": (tokens, PICTURES[..., :8]),
    "dense": (lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)).double(), ROWS),
}


@pytest.mark.parametrize("kind", COMPANY)
@pytest.mark.parametrize("explain", [ZERO, *MERGING, pl.LRP()], ids=["zero", "z+", "gamma", "alpha beta", "flat"])
def test_the_map_of_an_input_does_not_depend_on_its_company(kind, explain):
    make, x = COMPANY[kind]
    net = make()
    whole = map_of(net, x, explain)
    alone = torch.cat([map_of(net, one[None], explain) for one in x])
    # Kernels for one row add up in another order, and what they give is divided by sums that may be small.
    assert near(alone, whole, 1e-11)


@pytest.mark.parametrize("kind", ["convolutions", "encoder", "lstm"])
def test_in_single_precision_too(kind):
    make, x = COMPANY[kind]
    net, x = make().float(), x.float()
    explain = pl.LRP(dense=pl.Epsilon(1e-3))
    whole = map_of(net, x, explain)
    assert near(torch.cat([map_of(net, one[None], explain) for one in x]), whole, 1e-5)


def test_micro_batches_give_the_same_map():
    net = relu_net()
    whole, split = (pl.LRP()(pl.TorchModel(net, micro_batch=n), PICTURES, target=0) for n in (3, 2))
    assert near(split.scores, whole.scores, 1e-12)
    torch.testing.assert_close(split.residual, whole.residual, rtol=1e-10, atol=1e-12)


def test_an_lstm_written_out_has_the_map_of_the_module():
    net = of_parts(lambda net, x: net.lstm(x)[0][:, -1], lstm=nn.LSTM(4, 3, batch_first=True))

    def steps(net, x):
        lstm, h, c = net.lstm, x.new_zeros(len(x), 3), None
        for t in range(x.shape[1]):
            first = F.linear(x[:, t], lstm.weight_ih_l0, lstm.bias_ih_l0)
            i, f, g, o = (first + (F.linear(h, lstm.weight_hh_l0, lstm.bias_hh_l0) if t else lstm.bias_hh_l0)).chunk(
                4, 1
            )
            new = i.sigmoid() * g.tanh()
            c = new if c is None else f.sigmoid() * c + new
            h = o.sigmoid() * c.tanh()
        return h

    apart = of_parts(steps, lstm=net.lstm)
    assert near(map_of(apart, TOKENS), map_of(net, TOKENS), 1e-10)


# Which rule stands where


def three() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()), nn.Flatten(),
        nn.Linear(80, 3),
    ).double()  # fmt: skip


def test_a_named_rule_stands_where_its_pattern_matches_and_the_first_match_counts():
    net, gamma, plus = three(), pl.Gamma(0.7), pl.ZPlus()
    base = {"convolution": pl.Epsilon(), "dense": pl.Epsilon(), "first": None}
    everywhere = map_of(net, PICTURES, pl.LRP(convolution=gamma, dense=pl.Epsilon(), first=None))
    named = map_of(net, PICTURES, pl.LRP(**base, named=(("?.0", gamma), ("*", pl.Epsilon()))))
    assert torch.equal(named, everywhere)
    last = map_of(net, PICTURES, pl.LRP(**base, named=(("3", plus),)))
    assert torch.equal(last, map_of(net, PICTURES, pl.LRP(**(base | {"dense": plus}))))
    two = map_of(net, PICTURES, pl.LRP(**base, named=(("1.*", plus), ("1.0", gamma))))
    one = map_of(net, PICTURES, pl.LRP(**base, named=(("1.0", plus),)))
    assert torch.equal(two, one)
    other = map_of(net, PICTURES, pl.LRP(**base, named=(("1.0", gamma), ("1.*", plus))))
    assert not torch.equal(two, other)
    assert torch.equal(
        map_of(net, PICTURES, pl.LRP(**base, named=(("none", plus),))), map_of(net, PICTURES, pl.LRP(**base))
    )


def test_a_named_rule_stands_at_the_input_too_and_does_not_land():
    net = three()
    named = map_of(net, PICTURES, pl.LRP(named=(("0.0", pl.ZPlus()),)))
    assert torch.equal(named, map_of(net, PICTURES, pl.LRP.epsilon_plus()))


def test_the_rule_of_the_first_stands_at_every_sum_of_the_input_and_nowhere_else():
    """Also behind a layout, and in each of two branches; Flat does not see the weights."""
    left, right = nn.Conv2d(3, 2, 2), nn.Conv2d(3, 2, 2)

    def forward(net, x):
        x = F.pad(x.transpose(2, 3), (1, 0))
        return net.head((F.relu(net.left(x)) + F.relu(net.right(x))).mean((2, 3)))

    net = of_parts(forward, left=left, right=right, head=nn.Linear(2, 2))
    found = map_of(net, PICTURES)
    assert near(found, PICTURES * gradient(net, PICTURES), 1e-12)
    a = pl.LRP.epsilon(0.0)
    flat = pl.LRP(convolution=a.convolution, dense=a.dense, first=pl.Flat())(pl.TorchModel(net), PICTURES, target=0)

    x = F.pad(PICTURES.transpose(2, 3), (1, 0))
    with torch.no_grad():
        relevance = torch.zeros_like(x)
        for conv in (left, right):
            z = conv(x)
            share = F.relu(z) * net.head.weight[0].view(2, 1, 1) / (z[0, 0].numel() * (12 + 1e-6))
            for i in range(z.shape[2]):
                for j in range(z.shape[3]):
                    relevance[:, :, i : i + 2, j : j + 2] += share[:, :, i, j].sum(1).view(-1, 1, 1, 1)
    expected = relevance[..., 1:].transpose(2, 3)  # what landed on the padding is nobody's
    assert near(flat.scores, expected, 1e-10)


def test_relevance_that_lands_gives_zeros_their_share():
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    x = torch.zeros(1, 4, dtype=torch.float64)
    with torch.no_grad():
        net[0].bias.fill_(0.5)
        score = net(x) - net[2].bias
    flat = map_of(net, x, pl.LRP(dense=pl.Epsilon(0.0), first=pl.Flat()))
    torch.testing.assert_close(flat, (score / (4 + 1e-6)).expand(1, 4).detach(), rtol=1e-8, atol=0)
    assert not map_of(net, x).any()


def test_a_path_from_the_input_around_the_first_layer_adds_to_what_lands():
    layer = nn.Linear(6, 6, bias=False)
    net = of_parts(lambda net, x: (net.layer(x) + x).sum(1, keepdim=True), layer=layer)
    whole = map_of(net, ROWS, pl.LRP(dense=pl.Epsilon(0.0), first=pl.Flat()))
    z = layer(ROWS).detach().sum(1, keepdim=True)
    assert near(whole, ROWS + z / (6 + 1e-6), 1e-9)


# Layout, maxima


def test_a_maximum_gives_all_to_the_largest():
    x = real(2, 1, 4, 4, seed=8)
    for pool in (nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(2), lambda x: x.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))):
        net = of_parts(lambda net, x, f=pool: f(x).flatten(1).sum(1, keepdim=True))
        _, at = F.max_pool2d(x, 2, return_indices=True)
        expected = torch.zeros(2, 16, dtype=torch.float64).scatter(1, at.flatten(1), 1).view_as(x) * x
        torch.testing.assert_close(map_of(net, x), expected, rtol=1e-12, atol=0)


def test_sums_of_several_are_divided_in_proportion():
    net = of_parts(lambda net, x: 3 * x[:, :1] + x[:, 1:2] - 2 * x[:, 2:3])
    expected = torch.tensor([3.0, 1.0, -2.0, 0, 0, 0], dtype=torch.float64) * ROWS
    assert near(map_of(net, ROWS), expected, 1e-12)


@merging
def test_parts_that_are_joined_get_what_each_had(explain):
    one, two, head = nn.Linear(6, 3), nn.Linear(6, 4), nn.Linear(7, 2)
    joined = of_parts(
        lambda net, x: net.head(F.relu(torch.cat([net.one(x), net.two(x)], 1))), one=one, two=two, head=head
    )
    whole = nn.Linear(6, 7)
    with torch.no_grad():
        whole.weight.copy_(torch.cat([one.weight, two.weight]))
        whole.bias.copy_(torch.cat([one.bias, two.bias]))
    whole.double()
    with torch.no_grad():
        whole.weight.copy_(torch.cat([one.weight, two.weight]))
        whole.bias.copy_(torch.cat([one.bias, two.bias]))
    together = of_parts(lambda net, x: net.head(F.relu(net.whole(x))), whole=whole, head=head)
    assert near(map_of(joined, ROWS, explain), map_of(together, ROWS, explain), 1e-11)


# Several inputs, targets, provenance


class Two(nn.Module):
    """A picture and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.eye, self.head = nn.Conv2d(3, 4, 3, bias=False), nn.Linear(6, 3, bias=False)

    def forward(self, picture: Tensor, vector: Tensor) -> Tensor:
        return self.head(torch.cat([F.relu(self.eye(picture)).mean((2, 3)), vector], 1))


def test_several_inputs_share_the_score():
    net = Two().double()
    x = {"picture": PICTURES, "vector": ROWS[:, :2].contiguous()}
    a = ZERO(pl.TorchModel(net), x, target=2)
    leaves = [t.clone().requires_grad_() for t in x.values()]
    score = net(*leaves)[:, 2]
    for part, leaf, g in zip(a.parts.values(), leaves, torch.autograd.grad(score.sum(), leaves), strict=True):
        assert near(part, (leaf * g).detach(), 1e-12)
    assert float(a.residual.abs().max()) < 1e-12
    flat = pl.LRP(dense=pl.Epsilon(0.0))(pl.TorchModel(net), x, target=2)
    total = sum(part.flatten(1).sum(1) for part in flat.parts.values())
    torch.testing.assert_close(total - flat.residual, score.detach(), rtol=1e-9, atol=1e-12)


def test_a_margin_is_the_difference_of_two_maps_of_lrp_0():
    net = relu_net()
    model = pl.TorchModel(net)
    one, two, both = (ZERO(model, PICTURES, target=t).scores for t in (0, 2, pl.Margin(0, 2)))
    assert near(both, one - two, 1e-11)


def test_the_network_is_as_before():
    net = relu_net().train()
    before = copy.deepcopy(net.state_dict())
    pl.LRP()(pl.TorchModel(net), PICTURES, target=0)
    assert net.training
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert all(p.grad is None for p in net.parameters())


NAMES = ("LRP", "Epsilon", "Gamma", "AlphaBeta", "ZPlus", "Flat", "WSquare", "ZBox", "Constant", "Pixel")
EXPLAINERS = [
    *CONVENTIONS.values(), ZERO, pl.LRP.epsilon_gamma_box(),
    pl.LRP(first=pl.WSquare(), named=(("features.*", pl.Gamma(0.1)), ("head", pl.AlphaBeta(1.5, 0.5)))),
]  # fmt: skip


@pytest.mark.parametrize("explain", EXPLAINERS, ids=repr)
def test_a_method_with_its_rules_comes_back_from_its_json(explain):
    assert decode(encode(explain)) == explain
    assert eval(repr(explain), {name: getattr(pl, name) for name in NAMES}) == explain  # noqa: S307  # its repr is its provenance


def test_a_stored_result_runs_again(tmp_path):
    explain = pl.LRP(first=pl.ZBox(pl.Constant(-1.0), pl.Constant(1.0)), named=(("1.*", pl.Gamma(0.5)),))
    model = pl.TorchModel(three())
    a = explain(model, PICTURES, target=[0, 1, 2])
    loaded = pl.Attribution.load(a.save(tmp_path / "a.safetensors"))
    assert decode(loaded.recipe.explainer) == explain
    again = loaded.reproduce(model, PICTURES)
    assert torch.equal(again.scores, a.scores)
    assert torch.equal(again.residual, a.residual)


def test_the_named_conventions_are_ordinary_values():
    assert pl.LRP.epsilon(0.5) == pl.LRP(convolution=pl.Epsilon(0.5), dense=pl.Epsilon(0.5), first=None)
    assert pl.LRP.epsilon_plus() == pl.LRP(convolution=pl.ZPlus(), dense=pl.Epsilon(1e-6), first=None)
    assert pl.LRP() == pl.LRP(convolution=pl.ZPlus(), dense=pl.Epsilon(1e-6), first=pl.Flat(), named=())
    assert pl.LRP.epsilon_alpha2_beta1() == pl.LRP(convolution=pl.AlphaBeta(2.0, 1.0), first=None)
    assert pl.LRP.epsilon_alpha2_beta1_flat() == pl.LRP(convolution=pl.AlphaBeta(2.0, 1.0), first=pl.Flat())
    box = pl.ZBox(pl.Constant(-1.0), pl.Constant(2.0))
    assert pl.LRP.epsilon_gamma_box(-1.0, 2.0) == pl.LRP(convolution=pl.Gamma(0.25), first=box)
    assert pl.LRP.epsilon_gamma_box().first == pl.ZBox(pl.Pixel(0.0), pl.Pixel(1.0))


# Refusals


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class Spectrum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(x).real


def test_what_has_no_rule_is_named_with_its_module():
    net = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.ReLU(), Spectrum()), nn.Linear(4, 2))
    with pytest.raises(pl.RuleError, match=r"no rule for the operation '_fft_r2c' of the module '1\.1'"):
        map_of(net, ROWS.float())
    with pytest.raises(pl.RuleError, match=r"'_fft_r2c' of the network\. .*IntegratedGradients"):
        map_of(Spectrum(), ROWS.float())


def test_a_function_of_the_users_own_is_refused_by_name():
    layer = nn.Linear(6, 6)
    net = Calling(lambda net, x: F.relu(Doubled.apply(net.layer(x))), layer=layer)
    with pytest.raises(pl.RuleError, match="DoubledBackward"):
        map_of(net, ROWS.float())


def test_what_does_not_lead_to_the_target_needs_no_rule():
    layer = nn.Linear(6, 2)
    net = Calling(lambda net, x: (net.layer(x), torch.fft.rfft(x).real)[0], layer=layer)
    assert map_of(net, ROWS.float()).any()


@pytest.mark.doors
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"convolution": 0.25}, r"`convolution` is a rule, such as pl.Epsilon\(\). Got 0.25"),
        ({"dense": pl.Epsilon}, "`dense` is a rule"),
        ({"first": "flat"}, r"`first` is a rule, such as pl.Flat\(\), or None. Got 'flat'"),
        ({"named": (("a", None),)}, r"`named\['a'\]` is a rule"),
        ({"convolution": pl.Flat()}, "Flat stands at inputs: give it as `first`, not as `convolution`"),
        ({"dense": pl.WSquare()}, "WSquare stands at inputs: give it as `first`, not as `dense`"),
        ({"named": (("a", pl.Gamma()), ("b*", pl.ZBox()))}, r"ZBox stands at inputs.*`named\['b\*'\]`"),
    ],
)
def test_wrong_settings_say_what_to_write(settings, words):
    with pytest.raises(pl.ArgumentError, match=words):
        pl.LRP(**settings)


# what each operation absorbs


def leaking(bias: bool) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=bias), nn.BatchNorm2d(4, affine=bias), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 2, bias=bias), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3, bias=bias),
    ).double().eval()  # fmt: skip


@pytest.mark.parametrize("explain", [pl.LRP(), pl.LRP.epsilon(0.0), pl.LRP.epsilon_alpha2_beta1_flat()], ids=repr)
def test_what_operations_do_not_hand_on_is_what_the_map_misses(explain):
    model, x = pl.TorchModel(leaking(bias=True)), uniform(2, 3, 9, 9, seed=3, dtype=torch.float64)
    a, leaks = explain(model, x[:1], target=1), explain.leaks(model, x, target=1)
    missing = sum(one.arrived - one.handed_on for one in leaks)
    assert missing == pytest.approx(-float(a.residual), rel=1e-9)
    assert leaks[-1].module == "8"
    assert leaks[-1].arrived == pytest.approx(a.decision.score, rel=1e-12)
    assert [one.what for one in leaks].count("convolution") == 2
    assert "native_batch_norm" not in [one.what for one in leaks]  # part of a sum


def test_without_biases_every_operation_hands_on_what_it_gets():
    model, x = pl.TorchModel(leaking(bias=False)), uniform(1, 3, 9, 9, seed=3, dtype=torch.float64)
    for one in pl.LRP.epsilon(0.0).leaks(model, x, target=1):
        assert one.handed_on == pytest.approx(one.arrived, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("way", ["apart", "fused", "module"])
def test_in_an_encoder_without_biases_softmax_alone_does_not_hand_on_what_it_gets(way):
    """Its derivative is that of no linear function; halves of products, norms and activations keep all."""
    net = encoders.seeded(lambda: encoders.TextEncoder(way, biased=False))
    x = net.embedding(encoders.TEXTS[:1]).detach()
    model = pl.TorchModel(encoders.FromEmbeddings(net))
    leaks = pl.LRP.epsilon(0.0).leaks(model, x, target=1)
    size = abs(net(encoders.TEXTS[:1])[0, 1].item())
    lost = {one.what for one in leaks if abs(one.arrived - one.handed_on) > 1e-9 * size}
    assert lost in ({"_softmax"}, {"_safe_softmax"})
    missing = sum(one.arrived - one.handed_on for one in leaks)
    residual = float(pl.LRP.epsilon(0.0)(model, x, target=1).residual)
    assert missing == pytest.approx(-residual, rel=1e-6)


def test_a_sum_as_small_as_the_stabiliser_is_not_divided_by_zero():
    """-1e-6 in the share of positive sums, where it has no part, and its own share in that of negative ones."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.fill_(-1e-6)
    x = torch.ones(1, 1, dtype=torch.float64)
    found = map_of(net, x, pl.LRP(dense=pl.Gamma(0.25), first=None), 0)
    torch.testing.assert_close(found, torch.tensor([[-1e-6 * 1.25 / 2.25]], dtype=torch.float64), rtol=1e-9, atol=0)


class Outspoken(nn.Module):
    """Returns a convolution's means, and has a layer behind them that one may ask."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last, self.act = nn.Conv2d(3, 5, 3), nn.Linear(5, 5), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.conv(x).relu().mean((2, 3)))
        self.act(y)
        return y


@pytest.mark.parametrize("explain", [pl.LRP(dense=pl.Gamma(0.25), first=None), pl.LRP.epsilon(0.0)], ids=repr)
def test_targets_of_a_sum_and_of_the_rectifier_behind_it_do_not_disturb_each_other(explain):
    net = Outspoken().double().eval()
    targets = [pl.ClassScore(1), pl.Neuron("act", (2,))]
    with torch.no_grad():
        net.last.bias.copy_(torch.tensor([0.0, -3.0, 3.0, 0.0, 0.0]))
    assert net(PICTURES)[0, 1].item() < -1
    found = explain(pl.TorchModel(net), PICTURES[:2], target=targets)
    for i, target in enumerate(targets):
        assert near(found.scores[i : i + 1], map_of(net, PICTURES[i : i + 1], explain, target), 1e-10)


def test_titles_tell_composites_apart():
    assert pl.LRP().card.title == "Layer-wise Relevance Propagation"
    assert pl.LRP.epsilon(0.25).card.title == "LRP, Epsilon(0.25)"
    assert pl.LRP.epsilon_gamma_box().card.title == "LRP, Gamma(0.25) and Epsilon(1e-06), ZBox first"
    assert pl.LRP(named=(("head", pl.ZPlus()),)).card.title.endswith("some by name")
