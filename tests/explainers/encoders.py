"""Small transformers whose attention is written in several ways, and what their attentions are, taken by autograd."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from tests.oracles import uniform
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # as networks write it

WIDTH, HEADS = 6, 2
WAYS = ("apart", "joined", "fused", "dropout", "module", "module with weights", "steps first", "in place")
TOKENS = 2 * uniform(3, 5, WIDTH, dtype=torch.float64) - 1
"""Three sequences of five tokens."""


class Block(nn.Module):
    """Attention with a residual path and a layer after it; `way` says how the attention is written."""

    def __init__(self, way: str = "apart") -> None:
        super().__init__()
        self.way = way
        self.norm, self.attend = nn.LayerNorm(WIDTH), nn.MultiheadAttention(WIDTH, HEADS, 0.1, batch_first=True)
        self.mlp, self.drop = nn.Sequential(nn.Linear(WIDTH, 9), nn.GELU(), nn.Linear(9, WIDTH)), nn.Dropout(0.3)
        self.kept: list[Tensor] | None = None
        with torch.no_grad():
            self.attend.in_proj_weight.mul_(4)  # so that each token looks at few others

    def attention(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.way.startswith("module"):
            return self.attend(x, x, x, attn_mask=mask, need_weights=self.way == "module with weights")[0]
        qkv = F.linear(x, self.attend.in_proj_weight, self.attend.in_proj_bias)
        q, k, v = qkv.unflatten(-1, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        root = (WIDTH // HEADS) ** 0.5
        if self.way == "fused":
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        elif self.way == "joined":
            q, k, v = (t.flatten(0, 1) for t in (q, k, v))
            logits = torch.bmm(q / root, k.transpose(1, 2))
            y = torch.bmm(F.softmax(logits if mask is None else logits + mask, -1), v).unflatten(0, (-1, HEADS))
        elif self.way == "steps first":
            logits = torch.einsum("bhtc,bhsc->bhts", q, k) / root
            y = torch.einsum("bhts,bhsc->bhtc", (logits if mask is None else logits + mask).softmax(-1), v)
        elif self.way == "in place":
            logits = q @ k.mT
            logits /= root
            y = (logits if mask is None else logits.add_(mask)).softmax(-1) @ v
        else:
            logits = q @ k.mT / root
            attention = torch.softmax(logits if mask is None else logits + mask, -1)
            if self.kept is not None:
                self.kept.append(attention)
            y = (self.drop(attention) if self.way == "dropout" else attention) @ v
        return self.attend.out_proj(y.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm(x), mask)
        return x + self.mlp(x)


class Encoder(nn.Module):
    """Sequences (B, T, WIDTH), or pictures whose patches of 2 x 2 pixels are tokens; `prefix` learnt tokens stand
    before them. The head reads the first token, or of none before them the mean.
    """

    def __init__(self, way: str = "apart", layers: int = 3, prefix: int = 0, mask: Tensor | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(way) for _ in range(layers))
        self.patches, self.head, self.mask = nn.Conv2d(3, WIDTH, 2, 2), nn.Linear(WIDTH, 3), mask
        self.prefix = nn.Parameter(torch.randn(1, prefix, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            x = self.patches(x).flatten(2).transpose(1, 2)
        if self.prefix.shape[1]:
            x = torch.cat([self.prefix.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x, self.mask)
        return self.head(x[:, 0] if self.prefix.shape[1] else x.mean(1))


class TextEncoder(nn.Module):
    """Tokens (B, T) and where there are any (B, T), both whole numbers, as BERT takes them: embeddings and positions,
    a norm, blocks, a pooler that reads the first token.
    """

    def __init__(self, way: str = "apart", biased: bool = True) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(20, WIDTH, padding_idx=0), nn.Embedding(8, WIDTH)
        self.norm, self.blocks = nn.LayerNorm(WIDTH), nn.ModuleList(Block(way) for _ in range(2))
        self.pooler, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(std=0.3 * biased)
            self.position.weight.mul_(biased)

    def embedded(self, x: Tensor, there: Tensor | None = None) -> Tensor:
        """The outputs for embeddings (B, T, WIDTH)."""
        x = self.norm(x + self.position(torch.arange(x.shape[1])))
        mask = None if there is None else -1e9 * (1 - there.to(x))[:, None, None]
        for block in self.blocks:
            x = block(x, mask)
        return self.head(torch.tanh(self.pooler(x[:, 0])))

    def forward(self, tokens: Tensor, there: Tensor | None = None) -> Tensor:
        return self.embedded(self.embedding(tokens), there)


class FromEmbeddings(nn.Module):
    """A network of tokens as one of their embeddings."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net.embedded(x)


class TextLSTM(nn.Module):
    """Tokens (B, T) through an LSTM of two layers, of which the head reads the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(20, WIDTH), nn.LSTM(WIDTH, 5, 2, batch_first=True)
        self.head = nn.Linear(5, 3)

    def embedded(self, x: Tensor) -> Tensor:
        """The outputs for embeddings (B, T, WIDTH)."""
        return self.head(self.lstm(x)[0][:, -1])

    def forward(self, tokens: Tensor) -> Tensor:
        return self.embedded(self.embedding(tokens))


TEXTS = torch.tensor([[1, 5, 3, 9, 2], [4, 4, 7, 1, 8], [2, 6, 11, 0, 0]])
THERE = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A network of fixed random weights, in float64."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return build().double().eval()


def encoder(way: str = "apart", layers: int = 3, prefix: int = 0, mask: Tensor | None = None) -> nn.Module:
    return seeded(lambda: Encoder(way, layers, prefix, mask))


def attentions(net: nn.Module, x: Tensor, target: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The attentions (B, H, T, T) of an encoder whose heads are apart, and the gradients of the target by them."""
    kept: list[Tensor] = []
    for block in net.blocks:
        block.kept = kept
    score = net(x)[:, target].sum()
    for block in net.blocks:
        block.kept = None
    return [a.detach().numpy() for a in kept], [g.numpy() for g in torch.autograd.grad(score, kept)]


def rolled(layers: Sequence[np.ndarray]) -> np.ndarray:
    """Abnar & Zuidema's equation 1, sum by sum: what token t at the end has of token s at the beginning, (B, T, T)."""
    b, heads, n, _ = layers[0].shape
    flow = np.stack([np.eye(n)] * b)
    for attention in layers:
        after = np.zeros_like(flow)
        for i in range(b):
            for t in range(n):
                for s in range(n):
                    mean = sum(attention[i, h, t, s] for h in range(heads)) / heads
                    after[i, t] += (mean + (t == s)) / 2 * flow[i, s]
        flow = after
    return flow


def spoken_for(layers: Sequence[np.ndarray], gradients: Sequence[np.ndarray]) -> np.ndarray:
    """Chefer's equations 5 and 6, sum by sum, less the identity that it begins with."""
    b, heads, n, _ = layers[0].shape
    flow = np.stack([np.eye(n)] * b)
    for attention, gradient in zip(layers, gradients, strict=True):
        after = flow.copy()
        for i in range(b):
            for t in range(n):
                for s in range(n):
                    each = [gradient[i, h, t, s] * attention[i, h, t, s] for h in range(heads)]
                    after[i, t] += sum(max(one, 0) for one in each) / heads * flow[i, s]
        flow = after
    return flow - np.eye(n)


def read(flow: np.ndarray, prefix: int, cells: tuple[int, ...]) -> Tensor:
    """The row of the class token, or the mean of all rows, for the tokens that are places: (B, 1, *cells)."""
    rows = flow[:, 0, prefix:] if prefix else flow.mean(1)
    return torch.from_numpy(rows.reshape(len(flow), 1, *cells).copy())
