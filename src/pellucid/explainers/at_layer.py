"""Any method towards a layer: the units of a layer explained as if they were the input.

    M = base(f_l, A_l(x)),   f = f_l(A_l)        (the layer methods of Captum, e.g. Layer Integrated Gradients)

f_l is the network from the layer on. Where paths lead around the layer, they keep what the input gave. One number for
each unit of the layer, in the unit of the base; a baseline is a value of the layer's activation, zero by default.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import Applicability, Cost, MethodCard, Needs, Per
from pellucid.core.estimate import Estimate
from pellucid.core.explainer import Call, Explainer
from pellucid.core.model import Model
from pellucid.core.stopping import Until
from pellucid.core.target import Targets
from pellucid.errors import ArgumentError
from pellucid.explainers.simple_gradient import SimpleGradient

__all__ = ["AtLayer"]


@dataclass(frozen=True, kw_only=True)
class AtLayer(Explainer):
    """`base` towards what `layer` gives, by default the last layer with a grid of cells.

    Raises:
        ArgumentError: a base that is no explainer of features.
        LayerError: the network has no such layer, or it runs several times.

    Example:
        >>> import torch, pellucid as pl
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> a = pl.AtLayer(base=pl.SimpleGradient(), layer="1")(pl.TorchModel(net), torch.rand(1, 3), target=1)
        >>> torch.equal(a.scores[0], net[2].weight[1])
        True
    """

    base: Explainer = field(default_factory=SimpleGradient)
    layer: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.base, Explainer) or self.base.card.per is not Per.FEATURE:
            raise ArgumentError(
                "`base` is an explainer with a number for each feature, such as pl.IntegratedGradients(). "
                f"Got {self.base!r}."
            )
        if self.layer is not None and not isinstance(self.layer, str):
            raise ArgumentError(f"`layer` is the name of a module. Got {self.layer!r}.")

    @property
    def card(self) -> MethodCard:
        card = self.base.card
        return replace(
            card,
            name="at-layer" if isinstance(self.base, SimpleGradient) else f"at-layer-{card.name}",
            title=f"{card.title} at a layer",
            applicability=Applicability.MODEL_SPECIFIC,
            needs=card.needs | Needs.ACTIVATIONS | Needs.MODULES,
            cost=card.cost + Cost(forward=1),
            unit=card.unit.replace("unit of input", "unit of activation"),
            per=Per.UNIT,
            caveats=("networks with that layer only", *card.caveats[1:]),
        )

    def extended(self, taken: Sequence[int], draws: int, more: int | Until) -> Explainer:
        raise ArgumentError("At a layer no state is kept to which samples can be added. Run the method with more.")

    def attribute(self, model: Model, x: Float[Tensor, "b *features"], targets: Targets, call: Call) -> Estimate:
        layer = model.spatial_layer(x, targets.layers) if self.layer is None else self.layer
        with model.tail(x, layer) as (rest, rows):
            found = self.base.attribute(rest, rows, targets, replace(call, earlier=None))
            packing = rest.packing
        assert packing is not None  # noqa: S101  # a tail's

        def units(rows: Tensor | None) -> Tensor | None:
            return None if rows is None else packing.parts(rows)["activation"]

        values = units(found.values)
        assert values is not None  # noqa: S101  # there always are
        notes: Mapping[str, tuple[float | str, ...]] = {**found.notes, "layer": (layer,) * len(x)}
        return replace(found, values=values, standard_error=units(found.standard_error), state={}, notes=notes)
