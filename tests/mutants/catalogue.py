"""Deliberate bugs: each a plausible slip in one place, with the tests that must fail for it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """In `file` (under src/pellucid) the text `before`, which stands there once, becomes `after`."""

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]


GRADIENT = "tests/explainers/test_simple_gradient.py"
SMOOTH = "tests/explainers/test_smooth_grad.py"
SQUARED = "tests/explainers/test_smooth_grad_squared.py"
VARIANCE = "tests/explainers/test_var_grad.py"
NOISE = "tests/explainers/test_noise.py"
RANDOM = "tests/core/test_random.py"
ESTIMATE = "tests/core/test_estimate.py"
TARGET = "tests/core/test_target.py"
MODEL = "tests/core/test_model.py"
CONTRACT = "tests/contract/test_methods.py"
ATTRIBUTION = "tests/core/test_attribution.py"
RECIPE = "tests/core/test_recipe.py"
GUARD = "tests/core/test_guard.py"
DIAGNOSIS = "tests/core/test_diagnosis.py"
HEATMAP = "tests/modalities/image/test_heatmap.py"
DRAW = "tests/modalities/image/test_draw.py"
PREPROCESS = "tests/modalities/image/test_preprocess.py"
UNCERTAINTY = "tests/modalities/image/test_uncertainty.py"
READ = "tests/modalities/image/test_read.py"
LITE0 = "tests/models/test_efficientnet_lite0.py"
STABILITY = "tests/metrics/test_stability.py"

MUTANTS = [
    # gradient
    Mutant("gradient without its sign", "core/model.py", "materialize_grads=True)[0].detach()",
           "materialize_grads=True)[0].detach().abs()", (GRADIENT,)),
    Mutant("gradient of the whole batch's mean", "core/model.py", "score = targets.score(self._forward(leaf)).sum()",
           "score = targets.score(self._forward(leaf)).mean()", (GRADIENT, CONTRACT)),
    Mutant("gradient in training mode", "core/guard.py", "                module.training = False",
           "                pass", (MODEL,)),
    Mutant("parameters stay frozen after the call", "core/guard.py", "parameter.requires_grad_(required)",
           "parameter.requires_grad_(False)", (CONTRACT,)),
    Mutant("gradients of parameters are dropped", "core/guard.py", "if parameter.grad is not grad:", "if grad is parameter:",
           (GUARD,)),
    Mutant("modes are not restored after an error", "core/guard.py", "undo.callback(_put_back_names, held, dict(held))",
           "held.copy()", (CONTRACT,)),
    Mutant("buffers keep what training mode wrote", "core/guard.py", "buffer.copy_(before)", "pass", (MODEL,)),
    Mutant("the global random state is used up", "core/guard.py", "undo.callback(np.random.set_state, np.random.get_state())",
           "np.random.get_state()", (CONTRACT,)),
    Mutant("no lock on the network", "core/guard.py", "    with _lock:\n        yield", "    yield", (MODEL,)),
    Mutant("no layout but channels_last", "core/model.py", 'if "view size" not in str(error) or', 'if "view size" in str(error) or', (GUARD,)),
    Mutant("the network writes into the caller's rows", "core/model.py", "return x.clone(memory_format=torch.channels_last)", "return x",
           (GUARD,)),
    Mutant("every accelerator is seeded", "core/guard.py", "torch.default_generator.manual_seed(seed)", "torch.manual_seed(seed)", (GUARD,)),
    Mutant("what forward caches stays", "core/guard.py", "for name in held.keys() - before.keys():", "for name in ():", (GUARD,)),
    Mutant("a method takes what the model does not offer", "core/model.py", "if Needs.GRADIENTS not in self.offers:", "if not self.offers:", (GUARD,)),
    Mutant("maps in half precision", "core/model.py", "torch.promote_types(found.dtype, torch.float32)", "found.dtype", (GUARD,)),
    Mutant("micro-batch ignored", "core/model.py", "return self.micro_batch or min(", "return min(", (CONTRACT,)),
    Mutant("fingerprint of the names only", "core/model.py",
           "digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)", "pass", (MODEL,)),
    # SmoothGrad
    Mutant("sigma is the variance", "explainers/_noise.py", "sigma[inputs, None] * noise",
           "sigma[inputs, None] ** 2 * noise", (SMOOTH,)),
    Mutant("sigma is a fraction of the standard deviation", "explainers/_noise.py",
           "(x.amax(axes, keepdim=True) - x.amin(axes, keepdim=True))", "x.std(axes, keepdim=True)", (SMOOTH, NOISE)),
    Mutant("range over the whole batch", "explainers/_noise.py", "x.amax(axes, keepdim=True) - x.amin(axes, keepdim=True)",
           "x.max() - x.amin(axes, keepdim=True)", (SMOOTH, NOISE)),
    Mutant("the noise is added once to all copies", "explainers/_noise.py", "[normal(stream, i, shape) for i in indices]",
           "[normal(stream, 0, shape) for i in indices]", (SMOOTH,)),
    Mutant("the noise accumulates without the input", "explainers/_noise.py", "x[inputs, None] + sigma[inputs, None] * noise",
           "0 * x[inputs, None] + sigma[inputs, None] * noise", (SMOOTH,)),
    Mutant("copies take the first input's target", "explainers/_noise.py", "targets[inputs].repeat(len(indices))",
           "targets[0:1].repeat(len(copies.flatten(0, 1)))", (SMOOTH,)),
    Mutant("inner keys are those of the input", "explainers/_noise.py", "stream.child(i) for stream in streams[inputs] for i",
           "stream for stream in streams[inputs] for i", (SMOOTH,)),
    Mutant("target settled after the noise", "core/explainer.py", "estimate = self.attribute(quiet, placed, targets, Call(keys, report))",
           "estimate = self.attribute(quiet, placed, settle(None, prediction), Call(keys, report))", (SMOOTH, GRADIENT)),
    Mutant("captum without the absolute value", "explainers/smooth_grad.py", "base=Absolute(base=base or SimpleGradient())",
           "base=base or SimpleGradient()", (SMOOTH,)),
    Mutant("pair with the absolute value", "explainers/smooth_grad.py", "base=Squared(base=base or SimpleGradient())",
           "base=Absolute(base=base or SimpleGradient())", (SMOOTH,)),
    Mutant("zennit's clean copy is a twenty-first", "explainers/smooth_grad.py", "call, last))",
           "call, last + 1))", (SMOOTH,)),
    Mutant("zennit's error over all copies", "explainers/smooth_grad.py", "error * share", "error", (SMOOTH,)),
    Mutant("squared after the mean", "explainers/smooth_grad_squared.py", "base=Squared(base=self.base)", "base=self.base",
           (SQUARED,)),
    # random
    Mutant("the seed is ignored", "explainers/_noise.py", "key.stream(self.seed)", "key.stream(0)", (SMOOTH,)),
    Mutant("the index stands in the lowest word", "core/random.py", "counter=[0, 0, 0, index]", "counter=[index, 0, 0, 0]",
           (RANDOM,)),
    Mutant("every input has the same key", "core/random.py", "content.tobytes())", "b'')", (RANDOM,)),
    Mutant("the key forgets the shape", "core/random.py", "shape.encode() + b\";\"", "b\";\"", (RANDOM,)),
    Mutant("the key follows the layout", "core/random.py", "np.ascontiguousarray(x.detach()", "np.asarray(x.detach().permute(*reversed(range(x.ndim)))",
           (RANDOM,)),
    Mutant("noise from torch's global generator", "core/random.py",
           "return np.random.Generator(bits).standard_normal(shape, dtype=np.float32)",
           "return torch.randn(shape).numpy()", (RANDOM, CONTRACT)),
    # estimate
    Mutant("standard error of the samples", "core/estimate.py", "(m2 / max(moments.count - 1, 1) / moments.count).sqrt()",
           "(m2 / max(moments.count - 1, 1)).sqrt()", (ESTIMATE,)),
    Mutant("biased variance in the standard error", "core/estimate.py", "(m2 / max(moments.count - 1, 1) / moments.count)",
           "(m2 / moments.count / moments.count)", (ESTIMATE,)),
    Mutant("biased VarGrad", "core/estimate.py", "variance = m2 / max(n - 1, 1)", "variance = m2 / n", (ESTIMATE, VARIANCE)),
    Mutant("wrong fourth moment", "core/estimate.py", "- 4 * step * m3", "+ 4 * step * m3", (ESTIMATE,)),
    Mutant("sums in single precision", "core/estimate.py", "dtype=torch.float64, device=like.device", "dtype=torch.float32, device=like.device",
           (ESTIMATE,)),
    Mutant("batches of neighbours", "core/estimate.py", "before % BATCHES", "before // 4 % BATCHES", (ESTIMATE,)),
    Mutant("the last block is lost", "core/estimate.py", "range(0, self.count, max(size, 1))",
           "range(0, self.count - size + 1, max(size, 1))", (ESTIMATE,)),
    # target
    Mutant("negative classes count from the end", "core/target.py", "if not 0 <= spec < count:", "if not -count <= spec < count:",
           (TARGET,)),
    Mutant("margin the wrong way round", "core/target.py", "outputs[:, self.index] - outputs[:, self.against]",
           "outputs[:, self.against] - outputs[:, self.index]", (GRADIENT,)),
    Mutant("softmax twice", "core/target.py", "(torch.softmax(outputs, 1) if kind is OutputKind.LOGITS else outputs)[:, self.index]",
           "torch.softmax(outputs, 1)[:, self.index]", (TARGET,)),
    Mutant("mixed targets in the order of their groups", "core/target.py", "torch.cat(parts)[order.argsort()]",
           "torch.cat(parts)[order]", (TARGET,)),
    Mutant("the least likely class is explained", "core/target.py", "prediction.outputs[0].argmax()", "prediction.outputs[0].argmin()",
           (TARGET,)),
    # rendering
    Mutant("channels reduced with their sign", "modalities/image/heatmap.py", "reduced = np.abs(values).max(0)", "reduced = values.max(0)",
           (HEATMAP,)),
    Mutant("sum of magnitudes is the magnitude of the sum", "modalities/image/heatmap.py", "reduced = np.abs(values).sum(0)",
           "reduced = np.abs(values.sum(0))", (HEATMAP,)),
    Mutant("a shared limit is ignored", "modalities/image/heatmap.py", "scale = found if limit is None else limit", "scale = found",
           (HEATMAP,)),
    Mutant("blank maps are drawn in silence", "modalities/image/heatmap.py", "if not finite.any():", "if finite is None:", (HEATMAP,)),
    Mutant("zero is not neutral", "modalities/image/draw.py", ".resampled(257)", ".resampled(256)", (DRAW,)),
    Mutant("the overlay is shifted by half a feature", "modalities/image/draw.py", "np.arange(pixels) + 0.5 - low", "np.arange(pixels) - low",
           (DRAW,)),
    Mutant("the overlay's corners are aligned", "modalities/image/draw.py", "* cells - 0.5, 0, cells - 1)", "* (cells - 1), 0, cells - 1)", (DRAW,)),
    Mutant("rows and columns of the crop are swapped", "modalities/image/preprocess.py",
           "return (left, top, wide - left, high - top)", "return (top, left, wide - top, high - left)", (PREPROCESS,)),
    Mutant("mean and std of 0 .. 255", "modalities/image/preprocess.py", "(values / 255 - self._mean)", "(values - self._mean)", (PREPROCESS,)),
    Mutant("colours in the wrong order", "modalities/image/preprocess.py", 'if self.channels == "bgr":', 'if self.channels == "rgb":',
           (PREPROCESS,)),
    Mutant("every sign pattern counts as reached", "modalities/image/uncertainty.py", "between.T >= found - slack", "between.T >= found - 1e9",
           (UNCERTAINTY,)),
    Mutant("no correction for many blocks", "modalities/image/uncertainty.py", "false_discovery_control(p.ravel())", "p.ravel()",
           (UNCERTAINTY,)),
    # files
    Mutant("recipes forget the key", "core/attribution.py", "shared = Key.from_hex(recipe.keys[0]) if recipe.keys != recipe.inputs else None",
           "shared = None", (ATTRIBUTION,)),
    Mutant("other weights are accepted", "core/attribution.py", "if found != recipe.weights:", "if not recipe.weights:",
           (ATTRIBUTION,)),
    Mutant("the metadata follows the order of the settings", "core/recipe.py", 'json.dumps(vars(self), sort_keys=True,',
           'json.dumps(vars(self), sort_keys=False,', (RECIPE,)),
    Mutant("unknown classes are passed over", "core/recipe.py", "    if name not in _registry:\n        raise",
           "    if name not in _registry:\n        return None\n        raise", (RECIPE,)),
    Mutant("photos are not turned upright", "modalities/image/read.py", "upright = ImageOps.exif_transpose(image)", "upright = image", (READ,)),
    Mutant("16-bit greys are clipped", "modalities/image/read.py", "(values.astype(np.uint32) + 128) // 257", "np.minimum(values, 255)", (READ,)),
    # model and diagnosis
    Mutant("symmetric padding at stride two", "models/efficientnet_lite0.py", "return total // 2, total - total // 2",
           "return total - total // 2, total // 2", (LITE0,)),
    Mutant("saturation is never told", "core/diagnosis.py", "_SATURATED = 0.99", "_SATURATED = 2.0", (DIAGNOSIS,)),
    Mutant("the probe is made every time", "core/diagnosis.py", "or shape in model.sound:", "or shape is None:", (DIAGNOSIS,)),
    Mutant("copies with another prediction are kept", "metrics/stability.py", "if int(model.predict(copy).outputs[0].argmax()) == top:", "if top >= 0:",
           (STABILITY,)),
]  # fmt: skip
