"""Deliberate bugs in the methods that use activations."""

from tests.mutants.mutant import Mutant

BASE, PLACES = "explainers/_activation_map.py", "tests/contract/test_places.py"
FAMILY = "tests/explainers/test_activation_map.py"
GRAD, PLUS = "tests/explainers/test_grad_cam.py", "tests/explainers/test_grad_cam_plus_plus.py"
HIRES, XGRAD = "tests/explainers/test_hires_cam.py", "tests/explainers/test_xgrad_cam.py"
LAYER, CAM = "tests/explainers/test_layer_cam.py", "tests/explainers/test_cam.py"
EIGEN, SCORE = "tests/explainers/test_eigen_cam.py", "tests/explainers/test_score_cam.py"
ABLATION, RESAMPLED = "tests/explainers/test_ablation_cam.py", "tests/explainers/test_resampled.py"

MUTANTS: list[Mutant] = [
    # shared
    Mutant(
        "each channel is cut off by itself",
        BASE,
        "summed = (self.weights(a, g) * a).sum(1, keepdim=True)",
        "summed = (self.weights(a, g) * a).clamp(min=0).sum(1, keepdim=True)",
        (GRAD,),
    ),
    Mutant(
        "nothing is cut off",
        BASE,
        "maps.append(summed.clamp(min=0) if self.rectified else summed)",
        "maps.append(summed)",
        (GRAD,),
    ),
    Mutant(
        "tokens are weighed as they lie",
        BASE,
        "a, g = grid.maps(activation), grid.maps(gradient)",
        "a, g = grid.maps(activation), gradient",
        (FAMILY,),
    ),
    Mutant("cells are enlarged from corner to corner", BASE, "align_corners=False", "align_corners=True", (RESAMPLED,)),
    Mutant("enlarged maps lie aside", BASE, "align_corners=False", "align_corners=True", (PLACES,)),
    Mutant("several layers meet on the coarsest grid", BASE, "finest = max(", "finest = min(", (FAMILY,)),
    Mutant("several layers are summed", BASE, "return total / len(maps)", "return total", (FAMILY,)),
    Mutant(
        "of several layers one scale for the batch",
        BASE,
        "largest = one.abs().amax(tuple(range(1, one.ndim)), keepdim=True)",
        "largest = one.abs().amax()",
        (FAMILY,),
    ),
    Mutant(
        "an empty map among several is not a number",
        BASE,
        "one / torch.where(largest > 0, largest, 1)",
        "one / largest",
        (FAMILY,),
    ),
    # Grad-CAM and its kin
    Mutant(
        "gradients are summed",
        "explainers/grad_cam.py",
        "gradient.mean(over_cells(gradient), keepdim=True)",
        "gradient.sum(over_cells(gradient), keepdim=True)",
        (GRAD,),
    ),
    Mutant(
        "captum's map is cut off",
        "explainers/grad_cam.py",
        "return SignedGradCAM(layer=layer)",
        "return GradCAM(layer=layer)",
        (GRAD,),
    ),
    Mutant(
        "grad-cam stretches once",
        "explainers/grad_cam.py",
        "Upsampled(base=MinMax(base=cls(layer=layer)))",
        "Upsampled(base=cls(layer=layer))",
        (GRAD,),
    ),
    Mutant(
        "alpha of a plain score",
        "explainers/grad_cam_plus_plus.py",
        "below = 2 + gradient",
        "below = 1 + gradient",
        (PLUS,),
    ),
    Mutant(
        "alpha by the mean activation",
        "explainers/grad_cam_plus_plus.py",
        "activation.sum(cells, keepdim=True)",
        "activation.mean(cells, keepdim=True)",
        (PLUS,),
    ),
    Mutant(
        "negative gradients count in Grad-CAM++",
        "explainers/grad_cam_plus_plus.py",
        "(alpha * gradient.clamp(min=0))",
        "(alpha * gradient)",
        (PLUS,),
    ),
    Mutant(
        "alpha as it is printed",
        "explainers/grad_cam_plus_plus.py",
        "torch.where(below != 0, 1 / below, 0.0)",
        "gradient**2 / (gradient**2 * below + 1e-12)",
        (PLUS,),
    ),
    Mutant(
        "an infinite alpha counts",
        "explainers/grad_cam_plus_plus.py",
        "torch.where(below != 0, 1 / below, 0.0)",
        "1 / below",
        (PLUS,),
    ),
    Mutant(
        "HiResCAM is cut off",
        "explainers/hires_cam.py",
        "rectified: ClassVar[bool] = False",
        "rectified: ClassVar[bool] = True",
        (HIRES,),
    ),
    Mutant(
        "HiResCAM averages its gradients",
        "explainers/hires_cam.py",
        "return gradient",
        "return gradient.mean((2, 3), keepdim=True)",
        (HIRES,),
    ),
    Mutant(
        "XGrad-CAM is not weighed by the activation",
        "explainers/xgrad_cam.py",
        "(gradient * activation).sum",
        "gradient.sum",
        (XGRAD,),
    ),
    Mutant(
        "XGrad-CAM divides by nothing",
        "explainers/xgrad_cam.py",
        "torch.where(whole != 0, 1 / whole, 0.0)",
        "(1 / whole)",
        (XGRAD,),
    ),
    Mutant(
        "negative gradients count in LayerCAM",
        "explainers/layer_cam.py",
        "return gradient.clamp(min=0)",
        "return gradient",
        (LAYER,),
    ),
    # CAM
    Mutant(
        "CAM is Grad-CAM's share",
        "explainers/cam.py",
        "return gradient.sum(over_cells(gradient), keepdim=True)",
        "return gradient.mean(over_cells(gradient), keepdim=True)",
        (CAM,),
    ),
    Mutant(
        "CAM trusts a gradient that is alike",
        "explainers/cam.py",
        "((parts.sum(1) - expected).abs() > slack * largest).any()",
        "False",
        (CAM,),
    ),
    Mutant("CAM trusts a score that adds up", "explainers/cam.py", "if not alike or ", "if ", (CAM,)),
    Mutant(
        "CAM refuses scores that cancel",
        "explainers/cam.py",
        "torch.maximum(found.scores.abs(), parts.abs().sum(1))",
        "found.scores.abs()",
        (CAM,),
    ),
    Mutant(
        "CAM agrees to anything in half precision",
        "explainers/cam.py",
        "slack = min(_SAME * eps, _MOST)",
        "slack = _SAME * eps",
        (CAM,),
    ),
    # EigenCAM
    Mutant(
        "EigenCAM is centred",
        "explainers/eigen_cam.py",
        "torch.linalg.svd(a, ",
        "torch.linalg.svd(a - a.mean(0), ",
        (EIGEN,),
    ),
    Mutant(
        "EigenCAM forgets the singular value",
        "explainers/eigen_cam.py",
        "left[:, 0] * values[0]",
        "left[:, 0]",
        (EIGEN,),
    ),
    Mutant(
        "EigenCAM takes whichever sign",
        "explainers/eigen_cam.py",
        "return component if component.sum() >= 0 else -component",
        "return component",
        (EIGEN,),
    ),
    # Score-CAM
    Mutant(
        "masks are not stretched",
        "explainers/score_cam.py",
        "masks = (masks - least.view(shape)) * scale.view(shape)",
        "masks = masks * 1",
        (SCORE,),
    ),
    Mutant(
        "masks start where the channel does",
        "explainers/score_cam.py",
        "masks = (masks - least.view(shape)) * scale.view(shape)",
        "masks = masks * scale.view(shape)",
        (SCORE,),
    ),
    Mutant(
        "what is masked is zero",
        "explainers/score_cam.py",
        "return absent + (x - absent) * masks[:, None]",
        "return x * masks[:, None]",
        (SCORE,),
    ),
    Mutant(
        "dead channels weigh nothing",
        "explainers/score_cam.py",
        "scores[:] = model.scores(absent, targets).double()",
        'scores[:] = float("-inf")',
        (SCORE,),
    ),
    Mutant(
        "dead channels have a pass each",
        "explainers/score_cam.py",
        "live = torch.nonzero(high > low).flatten()",
        "live = torch.nonzero(high >= low).flatten()",
        (SCORE,),
    ),
    Mutant("scores are weights", "explainers/score_cam.py", "torch.softmax(scores, 0)", "scores", (SCORE,)),
    Mutant(
        "level masks are divided by nothing",
        "explainers/score_cam.py",
        "torch.where(span > _LEVEL * torch.finfo(a.dtype).eps * (high - low)[channels], 1 / span, 0.0)",
        "1 / span",
        (SCORE,),
    ),
    Mutant(
        "all parts of an input are masked alike",
        "explainers/score_cam.py",
        "drawn = packing.drawn",
        "drawn = 0",
        (FAMILY, SCORE),
    ),
    # Ablation-CAM
    Mutant(
        "what the score gains is the weight",
        "explainers/ablation_cam.py",
        "return whole - torch.cat(scores)",
        "return torch.cat(scores) - whole",
        (ABLATION,),
    ),
    Mutant(
        "all channels so far are ablated",
        "explainers/ablation_cam.py",
        "maps[torch.arange(len(some)), some] = 0",
        "maps[:, some] = 0",
        (ABLATION,),
    ),
    Mutant(
        "channels of tokens are sought among the tokens",
        "explainers/ablation_cam.py",
        'maps = grid.maps(rest.packing.parts(rows)["activation"])',
        'maps = rest.packing.parts(rows)["activation"]',
        (ABLATION,),
    ),
    # resampled
    Mutant(
        "each cell is a flat tile",
        BASE,
        "size=tuple(cells), mode=mode, align_corners=False",
        'size=tuple(cells), mode="nearest"',
        (RESAMPLED,),
    ),
    Mutant(
        "one range for the batch",
        "explainers/resampled.py",
        "axes = tuple(range(1, found.values.ndim))",
        "axes = tuple(range(found.values.ndim))",
        (RESAMPLED,),
    ),
    Mutant(
        "features are enlarged",
        "explainers/resampled.py",
        "if self.base.card.per is not Per.CELL:",
        "if False:",
        (RESAMPLED,),
    ),
    Mutant(
        "several inputs are enlarged to their row",
        "explainers/resampled.py",
        "model.features(x)[1:]",
        "x.shape[2:]",
        (RESAMPLED,),
    ),
]
