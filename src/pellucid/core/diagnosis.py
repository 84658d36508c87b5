"""Is this model fit to be explained, and this map fit to be looked at? Each finding says what to do."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import Cost, Needs, Per
from pellucid.core.estimate import Estimate
from pellucid.core.model import Model, TorchModel
from pellucid.core.prediction import OutputKind, Prediction
from pellucid.core.random import Key
from pellucid.core.target import LogProb, Targets

__all__ = ["Finding", "Severity", "diagnose", "diagnose_estimate", "diagnose_inputs", "diagnose_map", "of_inputs"]

_SATURATED = 0.99
_LEFT = 0.1
_DIVIDED = "change"
_SUM_SLACK = 1e-3  # probabilities may have been rounded on their way
_REPEATED = 1e-5  # of the largest output: what rounding leaves between batches of other sizes
_RANGE_SLACK = 1e-3  # of the range: rounding in a preprocessing of one's own is not worth a word


class Severity(StrEnum):
    """How much a finding should change the trust in a map."""

    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """One thing that was noticed: what it is, what it means, what to do. `input` is the row it concerns, or None."""

    code: str
    severity: Severity
    message: str
    remedy: str
    input: int | None = None

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}"


def diagnose(
    model: Model, x: Float[Tensor, "b *features"], prediction: Prediction, targets: Targets, needs: Needs
) -> tuple[list[Finding], Cost]:
    """What the model shows on these inputs to a method of these needs, and the cost: a pass there and back, until a
    shape was found sound; for a method that needs scores only, of any model but a network, the same outputs once more.
    """
    findings = _modes(model)
    for row, outputs in enumerate(prediction.outputs):
        if not outputs.isfinite().all():
            findings.append(
                Finding(
                    "not-finite-output",
                    Severity.ERROR,
                    "The network answers with NaN or infinite values on this input: there is no decision to explain.",
                    "Check the weights and the scale of the input; run the network in float32.",
                    row,
                )
            )
    if prediction.kind is OutputKind.PROBABILITIES:
        findings += _no_probabilities(prediction)
    if not needs & ~Needs.SCORES:
        # What a network draws is fixed for the call; of other models nothing is known.
        found, cost = ([], Cost()) if isinstance(model, TorchModel) else _repeated(model, x, prediction)
        return [*findings, *found], cost
    if prediction.kind is OutputKind.PROBABILITIES:
        findings += _softmax_head(prediction, targets)
    shape = tuple(x.shape[1:])
    if Needs.GRADIENTS not in model.offers or shape in model.sound:
        return findings, Cost()
    rows = slice(0, model.rows(x))
    # In a call of its own, so that the network draws the same random numbers whether or not it was probed.
    with model.undisturbed(Key.named("probe")) as apart:
        broken = _PROBES.get(_probe(apart, x[rows], targets[rows]))
    if broken is None:
        model.sound.add(shape)
    return [*findings, *([broken] if broken else [])], apart.passes


def diagnose_inputs(x: Float[Tensor, "b *features"], bounds: tuple[float, float] | None, needs: Needs) -> list[Finding]:
    """What is odd about the inputs themselves, to a method of these needs."""
    findings = []
    for row, one in enumerate(x):
        low, high = float(one.min()), float(one.max())
        if not torch.isfinite(one).all():
            findings.append(
                Finding(
                    "not-finite-input",
                    Severity.ERROR,
                    "The input holds NaN or infinite values, which spread through the network.",
                    "Mend the input.",
                    row,
                )
            )
        elif low == high and needs & ~Needs.SCORES:  # black boxes are altered by segments, not by noise
            findings.append(
                Finding(
                    "constant-input",
                    Severity.WARNING,
                    f"The input is {low:g} everywhere: noise that is a fraction of its range is no noise at all.",
                    "For a sampled map give the noise in absolute units: NoiseLevel.absolute(sigma).",
                    row,
                )
            )
        elif bounds is not None:
            slack = _RANGE_SLACK * (bounds[1] - bounds[0])
            if low < bounds[0] - slack or high > bounds[1] + slack:
                findings.append(
                    Finding(
                        "input-out-of-range",
                        Severity.WARNING,
                        f"The input runs from {low:.3g} to {high:.3g}, but the model's preprocessing gives "
                        f"{bounds[0]:.3g} to {bounds[1]:.3g}: the network never saw such values.",
                        "Read originals with model.read(...), or scale the tensor as the preprocessing does.",
                        row,
                    )
                )
    return findings


def of_inputs(findings: Sequence[Finding], rows: Sequence[int]) -> list[Finding]:
    """The findings of some of the inputs, numbered anew, and those of all."""
    places = {row: place for place, row in enumerate(rows)}
    return [
        finding if finding.input is None else replace(finding, input=places[finding.input])
        for finding in findings
        if finding.input is None or finding.input in places
    ]


def diagnose_estimate(estimate: Estimate) -> list[Finding]:
    """What is odd about how maps came about; and which divide another number than they should, by more than a tenth."""
    remarks = [
        Finding("estimate", Severity.WARNING, remark, "", row)
        for row, each in enumerate(estimate.remarks)
        for remark in each
    ]
    if estimate.residual is None or _DIVIDED not in estimate.notes:
        return remarks
    return remarks + [
        Finding(
            "residual",
            Severity.WARNING,
            f"What is divided among the features sums to {change + left:.3g}, but should to {change:.3g}.",
            "Take more steps, if the method has any, or a baseline nearer to the input. A network or a target that the "
            "method cannot divide fully (FullGrad: other units than ReLU) leaves a rest with any settings.",
            row,
        )
        for row, (left, change) in enumerate(
            zip(estimate.residual.tolist(), map(float, estimate.notes[_DIVIDED]), strict=True)
        )
        if abs(left) > _LEFT * abs(change)
    ]


def diagnose_map(values: Float[Tensor, "b *features"], per: Per = Per.FEATURE) -> list[Finding]:
    """Why a finished map would be blank or broken."""
    findings = []
    for row, one in enumerate(values):
        if not torch.isfinite(one).all():
            bad = int((~torch.isfinite(one)).sum())
            findings.append(
                Finding(
                    "not-finite-map",
                    Severity.ERROR,
                    f"{bad} of {one.numel()} values of the map are NaN or infinite: the gradient overflows, or divides "
                    "by zero, on this input.",
                    "Run the network in float32 or float64, and look for a square root or a norm of zero in it.",
                    row,
                )
            )
        elif not one.any() and per is Per.CELL:
            findings.append(
                Finding(
                    "zero-map",
                    Severity.ERROR,
                    "Every value of the map is exactly zero: nothing in this layer speaks for the target.",
                    "SignedGradCAM and HiResCAM show what speaks against it; or explain another class, or layer.",
                    row,
                )
            )
        elif not one.any() and per is Per.SEGMENT:
            findings.append(
                Finding(
                    "zero-map",
                    Severity.ERROR,
                    "Every value of the map is exactly zero: nothing that was taken away made the difference that the "
                    "method looks for.",
                    "Take another baseline, larger segments, or another class; of probabilities that are certain, the "
                    "logit.",
                    row,
                )
            )
        elif not one.any():
            findings.append(
                Finding(
                    "zero-map",
                    Severity.ERROR,
                    "Every value of the map is exactly zero: near this input the explained score does not change.",
                    "Dead or saturated units, a softmax that is certain, or a step function can be the cause; explain "
                    "the logit instead of a probability, or use a method that perturbs the input by more.",
                    row,
                )
            )
    return findings


def _modes(model: Model) -> list[Finding]:
    if not isinstance(model, TorchModel):
        return []
    if model.mode == "as-is" and (training := sum(module.training for module in model.net.modules())):
        return [
            Finding(
                "train-mode",
                Severity.WARNING,
                f"{training} modules run in training mode, as asked for by mode='as-is': dropout draws, and batch norm "
                "lets the other rows of a batch change a map.",
                "Leave out mode='as-is', unless this is what you study.",
            )
        ]
    if model.was_training:
        return [
            Finding(
                "train-mode",
                Severity.NOTE,
                "The network was in training mode; it was explained in evaluation mode and is as before again.",
                "Nothing to do. TorchModel(..., mode='as-is') explains it in training mode.",
            )
        ]
    return []


def _no_probabilities(prediction: Prediction) -> list[Finding]:
    findings = []
    for row, outputs in enumerate(prediction.outputs.double()):
        total = float(outputs.sum())
        if outputs.isfinite().all() and (abs(total - 1) > _SUM_SLACK or float(outputs.min()) < 0):
            findings.append(
                Finding(
                    "not-probabilities",
                    Severity.WARNING,
                    f"The outputs are said to be probabilities, but they sum to {total:.4g} and run from "
                    f"{float(outputs.min()):.3g} to {float(outputs.max()):.3g}.",
                    "Say what they are: output='logits' or 'regression'; scores of independent labels are neither "
                    "exclusive nor sum to one, and are explained as 'regression'.",
                    row,
                )
            )
    return findings


def _repeated(model: Model, x: Tensor, prediction: Prediction) -> tuple[list[Finding], Cost]:
    """Whether the same inputs get the same outputs, but for rounding."""
    with model.undisturbed(Key.named("repeat")) as apart:
        again = apart.outputs(x).double()
    first = prediction.outputs.double()
    findings = []
    for row, (one, other) in enumerate(zip(first, again, strict=True)):
        scale = float(one.abs().max())
        apart_by = float((one - other).abs().max())
        if apart_by > _REPEATED * max(scale, torch.finfo(torch.float32).tiny):
            findings.append(
                Finding(
                    "not-deterministic",
                    Severity.WARNING,
                    f"The model answered the same input twice with outputs that differ by {apart_by:.3g}, of up to "
                    f"{scale:.3g}: its own chance is in the map, and the same seed will not give the same map.",
                    "Fix the model's random state, or switch its dropout off.",
                    row,
                )
            )
    return findings, apart.passes


def _softmax_head(prediction: Prediction, targets: Targets) -> list[Finding]:
    findings = [
        Finding(
            "softmax-head",
            Severity.WARNING,
            "The outputs are probabilities: the network ends in a softmax, whose gradient also says what speaks "
            "against the other classes and fades with certainty.",
            "Remove the last layer to explain the logit, or take target=pl.LogProb(index).",
        )
    ]
    for row, target in enumerate(targets):
        if not target.classes:
            continue
        p = float(prediction.outputs[row, target.classes[0]])
        if p > _SATURATED and not isinstance(target, LogProb):
            findings.append(
                Finding(
                    "saturated",
                    Severity.WARNING,
                    f"The probability explained is {p:.4f}: the logit's gradient times p(1-p) = {p * (1 - p):.1e}.",
                    "Compare such maps by their pattern only, or explain the logit.",
                    row,
                )
            )
    return findings


_PROBES = {
    "zero": Finding(
        "no-gradient",
        Severity.ERROR,
        "No gradient reaches the input of the network: these inputs got exactly zero everywhere.",
        "Look for detach(), no_grad(), argmax or rounding in forward(). A black-box method needs no gradient.",
    ),
    "nan": Finding(
        "nan-gradient",
        Severity.ERROR,
        "The gradient at these inputs is NaN or infinite.",
        "Run the network in float32 or float64, and look for a square root or a norm of zero in it.",
    ),
}


def _probe(model: Model, x: Tensor, targets: Targets) -> str:
    gradient = model.gradient(x, targets)
    if not torch.isfinite(gradient).all():
        return "nan"
    return "" if gradient.any() else "zero"
