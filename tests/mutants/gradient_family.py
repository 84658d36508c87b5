"""Deliberate bugs in the methods that integrate or divide gradients."""

from tests.mutants.mutant import Mutant

PATH = "tests/explainers/test_path.py"
PRODUCT = "tests/explainers/test_input_x_gradient.py"
INTEGRATED = "tests/explainers/test_integrated_gradients.py"
EXPECTED = "tests/explainers/test_expected_gradients.py"
GUIDED = "tests/explainers/test_guided_integrated_gradients.py"
FULL = "tests/explainers/test_full_grad.py"
AT_LAYER = "tests/explainers/test_at_layer.py"
CONDUCTANCE = "tests/explainers/test_conductance.py"

MUTANTS: list[Mutant] = [
    # the straight path
    Mutant(
        "path from zero, whatever the baseline is",
        "explainers/_path.py",
        "yield which, step, start + alpha * (self.x[which] - start)",
        "yield which, step, alpha * self.x[which]",
        (PATH,),
    ),
    Mutant(
        "path with one place on it for a whole micro-batch",
        "explainers/_path.py",
        "alpha = alphas[step].view(-1,",
        "alpha = alphas[step[:1]].view(-1,",
        (PATH,),
    ),
    Mutant(
        "path whose points have the target of the first input",
        "explainers/_path.py",
        "targets.chosen([int(i) for i in which])",
        "targets.chosen([0 for _ in which])",
        (INTEGRATED,),
    ),
    # products and integrals
    Mutant(
        "input x gradient with the input's magnitude",
        "explainers/input_x_gradient.py",
        "x.to(gradient.dtype) * gradient",
        "x.to(gradient.dtype).abs() * gradient",
        (PRODUCT,),
    ),
    Mutant(
        "integral that is multiplied by the input instead of the way",
        "explainers/integrated_gradients.py",
        "scores = along.whole.double() * mean",
        "scores = x.double() * mean",
        (INTEGRATED,),
    ),
    Mutant(
        "weights of the interval from -1 to 1",
        "explainers/integrated_gradients.py",
        "return (at + 1) / 2, weights / 2",
        "return (at + 1) / 2, weights",
        (INTEGRATED,),
    ),
    Mutant(
        "weights in the order of the rows, not of the steps",
        "explainers/integrated_gradients.py",
        "torch.from_numpy(weights)[step]",
        "torch.from_numpy(weights)[: len(step)]",
        (INTEGRATED,),
    ),
    Mutant(
        "the left sum for the right one",
        "explainers/integrated_gradients.py",
        "np.arange(1, count + 1) / count",
        "np.arange(count) / count",
        (INTEGRATED,),
    ),
    Mutant(
        "the residual with the other sign",
        "explainers/integrated_gradients.py",
        "residual = scores.flatten(1).sum(1) - whole",
        "residual = whole - scores.flatten(1).sum(1)",
        (INTEGRATED,),
    ),
    # baselines drawn at random
    Mutant(
        "one number for the baseline and the place on the way",
        "explainers/_background.py",
        "torch.from_numpy(two[:, 1])",
        "torch.from_numpy(two[:, 0])",
        (EXPECTED,),
    ),
    Mutant(
        "the last baseline is never taken",
        "explainers/_background.py",
        "(where * len(starts))",
        "(where * (len(starts) - 1))",
        (EXPECTED,),
    ),
    Mutant(
        "each input's numbers from the stream of the first",
        "explainers/_background.py",
        "uniform(streams[b], i, 2)",
        "uniform(streams[0], i, 2)",
        (EXPECTED,),
    ),
    Mutant(
        "a background for what is held",
        "explainers/_background.py",
        "return found * mask + x * (1 - mask)",
        "return found + 0 * x * mask",
        (EXPECTED,),
    ),
    # the guided path
    Mutant(
        "the most negative gradient goes first",
        "explainers/guided_integrated_gradients.py",
        "size = gradient.abs().nan",
        "size = gradient.nan",
        (GUIDED,),
    ),
    Mutant(
        "the fraction is of the features that have not arrived",
        "explainers/guided_integrated_gradients.py",
        "self.fraction * (len(ranked) - 1)",
        "self.fraction * (int(free.sum()) - 1)",
        (GUIDED,),
    ),
    Mutant(
        "what falls behind stays behind",
        "explainers/guided_integrated_gradients.py",
        "self.at = torch.where(behind, slowest, self.at)",
        "self.at = torch.where(behind, self.at, self.at)",
        (GUIDED,),
    ),
    Mutant(
        "the way is gathered from its beginning each time",
        "explainers/guided_integrated_gradients.py",
        "self.gathered += (self.at - before) * gradient",
        "self.gathered += (self.at - self.start) * gradient",
        (GUIDED,),
    ),
    # the biases
    Mutant(
        "full-grad leaves the biases out of its sum",
        "explainers/full_grad.py",
        "for part in (own, *found.biases))",
        "for part in (own,))",
        (FULL,),
    ),
    Mutant(
        "full-grad divides by the largest number of the whole batch",
        "explainers/full_grad.py",
        "largest = above.amax(axes, keepdim=True)",
        "largest = above.amax()",
        (FULL,),
    ),
    Mutant(
        "full-grad stretches each channel",
        "explainers/full_grad.py",
        "axes = tuple(range(1, size.ndim))",
        "axes = tuple(range(2, size.ndim))",
        (FULL,),
    ),
    # layers
    Mutant(
        "at-layer takes black in pixels for a layer's baseline",
        "core/model.py",
        "rest.packing, rest.preprocess = first.packing, None",
        "rest.packing = first.packing",
        (AT_LAYER,),
    ),
    Mutant(
        "at-layer forgets the error",
        "explainers/at_layer.py",
        "standard_error=units(found.standard_error)",
        "standard_error=None",
        (AT_LAYER,),
    ),
    Mutant(
        "conductance with the slope at the near end alone",
        "explainers/conductance.py",
        "(gradient + slope) / 2 * (unit - before)",
        "slope * (unit - before)",
        (CONDUCTANCE,),
    ),
    Mutant(
        "conductance with the score's last step for its whole change",
        "explainers/conductance.py",
        "ends[i] = [*ends[i][:1], score]",
        "ends[i] = [*ends[i][-1:], score]",
        (CONDUCTANCE,),
    ),
]
