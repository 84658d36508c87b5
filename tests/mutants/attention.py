"""Deliberate bugs in methods of attention, excitation backpropagation, Guided Grad-CAM, DeepLIFT-SHAP, and the list of
rules.
"""

from tests.mutants.mutant import Mutant

ATTENTION = "tests/explainers/test_attention.py"
ROLLOUT = "tests/explainers/test_attention_rollout.py"
GRADIENT = "tests/explainers/test_gradient_x_attention.py"
EXCITATION = "tests/explainers/test_excitation_backprop.py"
GUIDED = "tests/explainers/test_guided_grad_cam.py"
SHAP = "tests/explainers/test_deep_lift_shap.py"
BACKGROUND = "tests/explainers/test_background.py"
RULED = "tests/explainers/test_ruled.py"

MUTANTS: list[Mutant] = [
    # which attentions there are
    Mutant(
        "any softmax is attention",
        "explainers/_attention.py",
        "if one.node in _attending(operations)}",
        'if one.what == "_softmax"}',
        (ATTENTION,),
    ),
    Mutant(
        "weights that something has moved are no attention",
        "explainers/_attention.py",
        "one.kind in (Kind.LAYOUT, Kind.SCALE)",
        "one.kind in ()",
        (ATTENTION,),
    ),
    Mutant(
        "weights that something has scaled are no attention",
        "explainers/_attention.py",
        "one.kind in (Kind.LAYOUT, Kind.SCALE)",
        "one.kind in (Kind.LAYOUT,)",
        (ATTENTION,),
    ),
    Mutant(
        "attention to other tokens is taken",
        "explainers/_attention.py",
        "if len(one.shape) < 3 or one.shape[-1] != one.shape[-2]:",
        "if len(one.shape) < 3:",
        (ATTENTION,),
    ),
    Mutant(
        "windows are as good as tokens",
        "explainers/_attention.py",
        " or len({one.shape[:-2] for one in found}) > 1",
        "",
        (ATTENTION,),
    ),
    Mutant(
        "no message goes past an attention",
        "explainers/_attention.py",
        "[Sent(None, operation.output), Sent(None, message), *derivative(operation, messages)]",
        "[Sent(None, operation.output), Sent(None, message)]",
        (ATTENTION, GRADIENT),
    ),
    # what layers make of each other
    Mutant(
        "the last layer first",
        "explainers/_attention.py",
        "return list(reversed(found.seen))",
        "return list(found.seen)",
        (ROLLOUT, GRADIENT),
    ),
    Mutant(
        "gradients for attentions",
        "explainers/_attention.py",
        "self.flow(together[1::2], together[::2])",
        "self.flow(together[::2], together[1::2])",
        (ROLLOUT,),
    ),
    Mutant(
        "the column of the class token",
        "explainers/_attention.py",
        "row = flow[:, 0] if grid.prefix else",
        "row = flow[:, :, 0] if grid.prefix else",
        (ATTENTION,),
    ),
    Mutant(
        "the class token even where there is none",
        "explainers/_attention.py",
        "row = flow[:, 0] if grid.prefix else _mean_of_read(flow, together[-2])",
        "row = flow[:, 0]",
        (ATTENTION,),
    ),
    Mutant(
        "what the mean of a sequence gives, for what it gets",
        "explainers/_attention.py",
        "rows = flow[read] if read.any() else flow[0]",
        "rows = flow.mT[read] if read.any() else flow[0].mT",
        (ROLLOUT, GRADIENT),
    ),
    Mutant(
        "rows that the head does not read",
        "explainers/_attention.py",
        "rows = flow[read] if read.any() else flow[0]",
        "rows = flow[0]",
        (ATTENTION,),
    ),
    Mutant(
        "tokens before a sequence that are its first steps",
        "explainers/_attention.py",
        "flow[:, 0, prefix:]",
        "flow[:, 0, : features[0]]",
        (ATTENTION,),
    ),
    Mutant(
        "rollout without the residual path",
        "explainers/attention_rollout.py",
        "(attention.mean(1) + identity_like(flow)) / 2",
        "attention.mean(1)",
        (ROLLOUT,),
    ),
    Mutant(
        "rollout with the first layer to the left",
        "explainers/attention_rollout.py",
        "flow = (attention.mean(1) + identity_like(flow)) / 2 @ flow",
        "flow = flow @ ((attention.mean(1) + identity_like(flow)) / 2)",
        (ROLLOUT,),
    ),
    Mutant(
        "rollout of the strongest head",
        "explainers/attention_rollout.py",
        "attention.mean(1)",
        "attention.amax(1)",
        (ROLLOUT,),
    ),
    Mutant(
        "heads are averaged before what speaks against is cut off",
        "explainers/gradient_x_attention.py",
        "(attention * gradient).clamp(min=0).mean(1)",
        "(attention * gradient).mean(1).clamp(min=0)",
        (GRADIENT,),
    ),
    Mutant(
        "what speaks against the target counts too",
        "explainers/gradient_x_attention.py",
        "(attention * gradient).clamp(min=0)",
        "(attention * gradient).abs()",
        (GRADIENT,),
    ),
    Mutant(
        "the identity stays in the map",
        "explainers/gradient_x_attention.py",
        "return flow - identity_like(flow)",
        "return flow",
        (GRADIENT,),
    ),
    Mutant(
        "layers that do not build on one another",
        "explainers/gradient_x_attention.py",
        ".mean(1) @ flow",
        ".mean(1)",
        (GRADIENT,),
    ),
    # chances
    Mutant(
        "a winner that has won with its score",
        "explainers/excitation_backprop.py",
        "found.messages / torch.where(whole == 0, 1, whole)",
        "found.messages",
        (EXCITATION,),
    ),
    Mutant(
        "a winner that has won with the size of its score",
        "explainers/excitation_backprop.py",
        "torch.where(whole == 0, 1, whole)",
        "torch.where(whole == 0, 1, whole.abs())",
        (EXCITATION,),
    ),
    Mutant(
        "biases win too",
        "explainers/excitation_backprop.py",
        "Relevance(Winner(), Winner(), None, ())",
        "Relevance(Winner(), __import__('pellucid').ZPlus(), None, ())",
        (EXCITATION,),
    ),
    Mutant(
        "convolutions by another rule than layers",
        "explainers/excitation_backprop.py",
        "Relevance(Winner(), Winner(), None, ())",
        "Relevance(__import__('pellucid').Epsilon(), Winner(), None, ())",
        (EXCITATION,),
    ),
    Mutant(
        "the residual of the whole batch",
        "explainers/excitation_backprop.py",
        "scores.flatten(1).sum(1).double() - 1",
        "scores.flatten(1).sum(1).double()",
        (EXCITATION,),
    ),
    # products of two maps
    Mutant(
        "Grad-CAM of the default layer",
        "explainers/guided_grad_cam.py",
        "Upsampled(base=GradCAM(layer=self.layer))",
        "Upsampled(base=GradCAM())",
        (GUIDED,),
    ),
    Mutant(
        "the gradient in place of guided backpropagation",
        "explainers/guided_grad_cam.py",
        "guided = GuidedBackprop().attribute",
        "guided = __import__('pellucid').SimpleGradient().attribute",
        (GUIDED,),
    ),
    Mutant(
        "of several inputs the first is weighed",
        "explainers/guided_grad_cam.py",
        "parts[packing.drawn] = parts[packing.drawn] * cam.values",
        "parts[0] = parts[0] * cam.values.mean((2, 3))",
        (GUIDED,),
    ),
    # baselines that are drawn
    Mutant(
        "one baseline for all samples",
        "explainers/_background.py",
        "uniform(streams[b], i, 2)",
        "uniform(streams[b], 0, 2)",
        (SHAP,),
    ),
    Mutant(
        "each input's baselines from the numbers of the first",
        "explainers/_background.py",
        "uniform(streams[b], i, 2)",
        "uniform(streams[0], i, 2)",
        (SHAP,),
    ),
    Mutant(
        "multipliers that are not multiplied by the way",
        "explainers/deep_lift_shap.py",
        "(x - start) * model.rule_pass",
        "x * model.rule_pass",
        (SHAP,),
    ),
    Mutant(
        "samples that have the target of another",
        "explainers/_background.py",
        "targets.chosen(rows.tolist())",
        "targets.chosen(sorted(rows.tolist(), reverse=True))",
        (SHAP,),
    ),
    Mutant(
        "another seed draws the same",
        "explainers/_background.py",
        "key.stream(self.seed)",
        "key.stream(0)",
        (SHAP,),
    ),
    Mutant(
        "a number that is rounded to one takes none",
        "explainers/_background.py",
        ".clamp(max=len(starts) - 1)",
        "",
        (BACKGROUND,),
    ),
    Mutant(
        "the baseline of the first input for all",
        "explainers/_background.py",
        "rows if starts.shape[1] > 1 else torch.zeros_like(rows)",
        "torch.zeros_like(rows)",
        (BACKGROUND, SHAP),
    ),
    Mutant(
        "any tuple is one of baselines",
        "explainers/_background.py",
        "all(isinstance(one, Baseline) for one in baselines)",
        "any(isinstance(one, Baseline) for one in baselines)",
        (BACKGROUND,),
    ),
    # the list of rules
    Mutant(
        "no operation of a list is refused",
        "core/network.py",
        "each.words, bool(each.refusal))",
        "each.words, False)",
        (RULED,),
    ),
    Mutant(
        "operations without the names of their modules",
        "core/network.py",
        "replace(book.keep, named=True)",
        "book.keep",
        (RULED,),
    ),
    Mutant(
        "all inputs run for a list",
        "explainers/_ruled.py",
        "given.tensor[:1]",
        "given.tensor",
        (RULED,),
    ),
    Mutant(
        "several inputs that are listed as one",
        "explainers/_ruled.py",
        'model.undisturbed(Key.named("operations"), given.packing)',
        'model.undisturbed(Key.named("operations"))',
        (RULED,),
    ),
]
