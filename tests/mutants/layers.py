"""Deliberate bugs in what reaches into a network: layers, tails, several inputs, targets."""

from tests.mutants.mutant import Mutant

LAYER = "tests/core/test_layer.py"
FOLDING = "tests/core/test_folding.py"
TAIL = "tests/core/test_tail.py"
BIAS = "tests/core/test_bias.py"
GRID = "tests/core/test_grid.py"
PACKING = "tests/core/test_packing.py"
OUTPUT = "tests/core/test_output.py"
TARGET = "tests/core/test_target.py"
BASELINE = "tests/core/test_baseline.py"

MUTANTS: list[Mutant] = [
    Mutant(
        "a layer's runs counted from zero",
        "core/layer.py",
        "tap = runs[(wanted or 1) - 1]",
        "tap = runs[wanted or 0]",
        (LAYER,),
    ),
    Mutant(
        "an activation that the next module overwrites",
        "core/layer.py",
        "return with_first(output, given.clone())",
        "return with_first(output, given)",
        (LAYER,),
    ),
    Mutant(
        "a tap that drops a dict's other tensors",
        "core/layer.py",
        "        return changed\n",
        "        return tensor\n",
        (LAYER,),
    ),
    Mutant(
        "a buffer made part of the graph",
        "core/layer.py",
        "(given if any(given is arg for arg in args) else given.detach()).requires_grad_()",
        "given.requires_grad_()",
        (LAYER,),
    ),
    Mutant(
        "a graph without a leaf at the layer",
        "core/network.py",
        "tapped(self.net, ask.layers, leaves=ask.gradients)",
        "tapped(self.net, ask.layers)",
        (LAYER,),
    ),
    Mutant(
        "maps made of what a class token alone reads",
        "core/layer.py",
        "bool(grid.maps(gradient).any())",
        "bool(gradient.any())",
        (LAYER,),
    ),
    Mutant(
        "maps made of a pool",
        "core/layer.py",
        "plain = [ran for ran in among if ran.cut is not None and not is_pool(ran.cut.node)] or among",
        "plain = among",
        (LAYER,),
    ),
    Mutant(
        "maps made of a segmentation's outputs",
        "core/layer.py",
        "(own or ran.cut.node not in ends)]",
        "True]",
        (LAYER,),
    ),
    Mutant(
        "maps made of a branch",
        "core/layer.py",
        "for among in ([ran for ran in told if ran.cut is not None and ran.cut.node in passed], told):",
        "for among in (told,):",
        (LAYER,),
    ),
    Mutant(
        "a block that gives what a norm after it gives",
        "core/layer.py",
        "own = set(module.modules())",
        "own = {module}",
        (FOLDING,),
    ),
    Mutant(
        "a folded convolution that is taken for its own",
        "core/folding.py",
        "                held.update(passing.before)\n",
        "",
        (FOLDING,),
    ),
    Mutant(
        "a tail that skips nothing",
        "core/tail.py",
        "self._take(recording, _skippable(recording, runs[self.number]), 1)",
        "self._take(recording, (), 1)",
        (TAIL,),
    ),
    Mutant(
        "a tail that is not compared with the network",
        "core/tail.py",
        "            if not self._same(ends):\n                self.skipped, self.idle, self.turn = {}, {}, self.number + 1\n",
        "",
        (TAIL,),
    ),
    Mutant(
        "a tail whose shortcuts are of the first inputs",
        "core/tail.py",
        "self._digits(t[rows.to(t.device)]), gave)",
        "self._digits(t[: len(rows)]), gave)",
        (TAIL,),
    ),
    Mutant(
        "a tail that keeps inputs which were written to",
        "core/tail.py",
        "return recording, self.call(x.clone())",
        "return recording, self.call(x)",
        (TAIL,),
    ),
    Mutant(
        "a tail that counts runs which are skipped",
        "core/tail.py",
        "self.turn = sum(not _within(run, whole) for run in recording.runs[self.module][: self.number + 1])",
        "self.turn = self.number + 1",
        (TAIL,),
    ),
    Mutant(
        "a tail that forgets a recurrent layer's state",
        "core/tail.py",
        "self.alone = len(runs) == 1 and isinstance(runs[0].gave, Tensor)",
        "self.alone = len(runs) == 1",
        (TAIL,),
    ),
    Mutant(
        "a tail of folded convolutions",
        "core/tail.py",
        "            stack.enter_context(unfolded(self.parts))\n",
        "",
        (TAIL,),
    ),
    Mutant(
        "a norm's shift without its mean",
        "core/bias.py",
        "shift = -module.running_mean.double() * gain",
        "shift = 0 * gain",
        (BIAS,),
    ),
    Mutant(
        "a norm's bias in training mode as in evaluation",
        "core/bias.py",
        " and not module.training and",
        " and",
        (BIAS,),
    ),
    Mutant(
        "biases in single precision",
        "core/bias.py",
        "bias.detach().view(shape).to(_digits(output))",
        "bias.detach().view(shape).float()",
        (BIAS,),
    ),
    Mutant(
        "biases of folded convolutions", "core/bias.py", "        stack.enter_context(unfolded(modules))\n", "", (BIAS,)
    ),
    Mutant(
        "tokens of nearly a picture's proportions first",
        "core/grid.py",
        "next(iter(exact or near), None)",
        "next(iter(near), None)",
        (GRID,),
    ),
    Mutant(
        "channels last wherever the first axes look like a picture",
        "core/grid.py",
        "_alike((first, second), sides) and not _alike((second, third), sides, within=_CUT_OFF)",
        "_alike((first, second), sides)",
        (GRID,),
    ),
    Mutant(
        "whole numbers in half precision",
        "core/packing.py",
        "[part.dtype if part.is_floating_point() else torch.float32 for part in parts]",
        "[part.dtype for part in parts if part.is_floating_point()]",
        (PACKING,),
    ),
    Mutant(
        "whole numbers cut off", "core/packing.py", "part.round().to(_type(name))", "part.to(_type(name))", (PACKING,)
    ),
    Mutant(
        "gradients of held inputs",
        "core/packing.py",
        "torch.full((size,), not held)",
        "torch.full((size,), True)",
        (PACKING,),
    ),
    Mutant(
        "rows of a tensor taken for its outputs",
        "core/output.py",
        "chosen = None if isinstance(result, Tensor) else result[select]",
        "chosen = result[select]",
        (OUTPUT,),
    ),
    Mutant(
        "a region turned inside out",
        "core/target.py",
        "inside = torch.arange(len(self.runs)) % 2 == 1",
        "inside = torch.arange(len(self.runs)) % 2 == 0",
        (TARGET,),
    ),
    Mutant(
        "a box's union that counts the overlap twice",
        "core/target.py",
        "overlap = inside / (area + (own[2:] - own[:2]).prod() - inside)",
        "overlap = inside / (area + (own[2:] - own[:2]).prod())",
        (TARGET,),
    ),
    Mutant(
        "a box's score of the best overlap",
        "core/target.py",
        "return (overlap * outputs[..., 4 + self.index]).amax(1)",
        "return overlap.amax(1) * outputs[..., 4 + self.index].amax(1)",
        (TARGET,),
    ),
    Mutant(
        "neurons read from the outputs",
        "core/target.py",
        "if target.reads is None or layers is None else layers[target.reads]",
        "if True else {}[target.reads]",
        (TARGET,),
    ),
    Mutant(
        "held inputs replaced by a baseline",
        "core/baseline.py",
        "for name, part in packing.explained(x).items()}",
        "for name, part in packing.parts(x).items()}",
        (BASELINE,),
    ),
    Mutant(
        "the default layer is looked for among folded norms",
        "core/layer.py",
        "        stack.enter_context(unfolded(set(known)))\n",
        "",
        ("tests/core/test_layer.py",),
    ),
    Mutant(
        "a tail keeps what nothing takes",
        "core/tail.py",
        "            self.idle = {module: self.skipped.pop(module) for module in set(self.skipped) - used}\n",
        "",
        ("tests/core/test_tail.py",),
    ),
    Mutant(
        "a tail's activation is that before the user's hooks",
        "core/tail.py",
        "        self.layer.append(None if given is None else given.clone())\n",
        "        self.layer.append(first_tensor(self.runs[module][-1].gave))\n",
        ("tests/core/test_tail.py",),
    ),
    Mutant(
        "the method's pass draws on where the prediction's ended",
        "core/explainer.py",
        "            quiet.restart()",
        "            pass",
        ("tests/core/test_model.py",),
    ),
    Mutant(
        "the prediction's pass serves for other rows",
        "core/model.py",
        "clean.x is not x or ",
        "",
        ("tests/core/test_model.py", "tests/contract/test_methods.py"),
    ),
]
