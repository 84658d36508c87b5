"""Deliberate bugs: each a plausible slip in one place, with the tests that must fail for it."""

from tests.mutants import activation_family, attention, deep_lift, executed, gradient_family, layers, lrp
from tests.mutants.mutant import Mutant

__all__ = ["MUTANTS", "Mutant"]

GRADIENT = "tests/explainers/test_simple_gradient.py"
SMOOTH = "tests/explainers/test_smooth_grad.py"
SQUARED = "tests/explainers/test_smooth_grad_squared.py"
VARIANCE = "tests/explainers/test_var_grad.py"
NOISE = "tests/explainers/test_noise.py"
RANDOM = "tests/core/test_random.py"
ESTIMATE = "tests/core/test_estimate.py"
ESTIMATOR = "tests/core/test_estimator.py"
MOMENTS = "tests/core/test_moments.py"
STOPPING = "tests/core/test_stopping.py"
AHEAD = "tests/core/test_ahead.py"
HEAP = "tests/core/test_heap.py"
FOLDING = "tests/core/test_folding.py"
DEPTHWISE = "tests/core/test_depthwise.py"
CUTS = "tests/core/test_cuts.py"
FACTORED = "tests/core/test_factored.py"
WAVELET = "tests/modalities/image/test_wavelet.py"
SHRUNK = "tests/modalities/image/test_shrunk.py"
COMBINED = "tests/modalities/image/test_combined.py"
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
    Mutant(
        "gradient without its sign",
        "core/network.py",
        "        return found.detach()\n",
        "        return found.detach().abs()\n",
        (GRADIENT,),
    ),
    Mutant(
        "gradient of the whole batch's mean",
        "core/network.py",
        "            return begun.leaf, self._targets_of(begun, targets).sum()",
        "            return begun.leaf, self._targets_of(begun, targets).mean()",
        (GRADIENT, CONTRACT),
    ),
    Mutant(
        "gradient in training mode",
        "core/guard.py",
        "                module.training = False",
        "                pass",
        (MODEL,),
    ),
    Mutant(
        "parameters stay frozen after the call",
        "core/guard.py",
        "parameter.requires_grad_(required)",
        "parameter.requires_grad_(False)",
        (CONTRACT,),
    ),
    Mutant(
        "gradients of parameters are dropped",
        "core/guard.py",
        "if parameter.grad is not grad:",
        "if grad is parameter:",
        (GUARD,),
    ),
    Mutant(
        "modes are not restored after an error",
        "core/guard.py",
        'held["_modules"], held)',
        'held["_modules"])',
        (CONTRACT,),
    ),
    Mutant("buffers keep what training mode wrote", "core/guard.py", "buffer.copy_(before)", "pass", (MODEL,)),
    Mutant(
        "the global random state is used up",
        "core/guard.py",
        "undo.callback(np.random.set_state, np.random.get_state())",
        "np.random.get_state()",
        (CONTRACT,),
    ),
    Mutant("no lock on the network", "core/guard.py", "    with _lock:\n        yield", "    yield", (MODEL,)),
    Mutant(
        "no layout but channels_last",
        "core/network.py",
        'if "view size" not in str(error) or',
        'if "view size" in str(error) or',
        (GUARD,),
    ),
    Mutant(
        "the network writes into the caller's rows",
        "core/network.py",
        "return x.clone(memory_format=torch.channels_last)",
        "return x",
        (GUARD,),
    ),
    Mutant(
        "every accelerator is seeded",
        "core/guard.py",
        "torch.default_generator.manual_seed(seed)",
        "torch.manual_seed(seed)",
        (GUARD,),
    ),
    Mutant(
        "what forward caches stays",
        "core/guard.py",
        "for name in held.keys() - before.keys():",
        "for name in ():",
        (GUARD,),
    ),
    Mutant(
        "a method takes what the model does not offer",
        "core/model.py",
        "if Needs.GRADIENTS not in self.offers:\n            return super().gradient(",
        "if not self.offers:\n            return super().gradient(",
        (GUARD,),
    ),
    Mutant(
        "maps in half precision",
        "core/network.py",
        "torch.promote_types(gradient.dtype, torch.float32)",
        "gradient.dtype",
        (GUARD,),
    ),
    Mutant(
        "micro-batch ignored",
        "core/abstract_model.py",
        "return self._fitting(x, self.micro_batch, together, maps)",
        "return self._fitting(x, 2 * self.micro_batch, together, maps)",
        (CONTRACT,),
    ),
    Mutant(
        "fingerprint of the names only",
        "core/fingerprint.py",
        "digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)",
        "pass",
        (MODEL,),
    ),
    # SmoothGrad
    Mutant(
        "sigma is the variance",
        "explainers/_noise.py",
        "noise.mul_(sigma[inputs, None])",
        "noise.mul_(sigma[inputs, None] ** 2)",
        (SMOOTH,),
    ),
    Mutant(
        "sigma is a fraction of the standard deviation",
        "core/packing.py",
        "return x.amax(axes, keepdim=True) - x.amin(axes, keepdim=True)",
        "return x.std(axes, keepdim=True)",
        (SMOOTH, NOISE),
    ),
    Mutant(
        "range over the whole batch",
        "core/packing.py",
        "return x.amax(axes, keepdim=True) - x.amin(axes, keepdim=True)",
        "return x.max() - x.amin(axes, keepdim=True)",
        (SMOOTH, NOISE),
    ),
    Mutant(
        "the noise is added once to all copies",
        "explainers/_noise.py",
        "normal(streams[b], i, shape, out=place)",
        "normal(streams[b], 0, shape, out=place)",
        (SMOOTH,),
    ),
    Mutant(
        "the noise accumulates without the input",
        "explainers/_noise.py",
        ".add_(x[inputs, None])",
        ".add_(0 * x[inputs, None])",
        (SMOOTH,),
    ),
    Mutant(
        "copies take the first input's target",
        "explainers/_noise.py",
        "targets.chosen(inputs).repeat(len(draws) * how.size)",
        "targets.chosen([0]).repeat(len(copies))",
        (SMOOTH,),
    ),
    Mutant(
        "inner keys are those of the input",
        "explainers/_noise.py",
        "streams[b].child(i) for b in inputs for i",
        "streams[b] for b in inputs for i",
        (SMOOTH,),
    ),
    Mutant(
        "target settled after the noise",
        "core/explainer.py",
        "estimate = self.attribute(quiet, placed, targets, Call(",
        "estimate = self.attribute(quiet, placed, settle(None, prediction), Call(",
        (SMOOTH, GRADIENT),
    ),
    Mutant(
        "captum without the absolute value",
        "explainers/smooth_grad.py",
        "base=Absolute(base=base or SimpleGradient())",
        "base=base or SimpleGradient()",
        (SMOOTH,),
    ),
    Mutant(
        "pair with the absolute value",
        "explainers/smooth_grad.py",
        "base=Squared(base=base or SimpleGradient())",
        "base=Absolute(base=base or SimpleGradient())",
        (SMOOTH,),
    ),
    Mutant(
        "zennit's clean copy is a twenty-first",
        "explainers/smooth_grad.py",
        "else self.n_samples - self._clean",
        "else self.n_samples",
        (SMOOTH,),
    ),
    Mutant("zennit's error over all copies", "explainers/smooth_grad.py", "error * share", "error", (SMOOTH,)),
    Mutant(
        "squared after the mean",
        "explainers/smooth_grad_squared.py",
        "base=Squared(base=self.base)",
        "base=self.base",
        (SQUARED,),
    ),
    # random
    Mutant("the seed is ignored", "explainers/_noise.py", "key.stream(self.seed)", "key.stream(0)", (SMOOTH,)),
    Mutant(
        "the index stands in the lowest word",
        "core/random.py",
        "counter=[0, 0, 0, index])\n    return np.random.Generator(bits).standard_normal",
        "counter=[index, 0, 0, 0])\n    return np.random.Generator(bits).standard_normal",
        (RANDOM,),
    ),
    Mutant("every input has the same key", "core/random.py", "content.tobytes())", "b'')", (RANDOM,)),
    Mutant("the key forgets the shape", "core/random.py", 'shape.encode() + b";"', 'b";"', (RANDOM,)),
    Mutant(
        "the key follows the layout",
        "core/random.py",
        "np.ascontiguousarray(x.detach()",
        "np.asarray(x.detach().permute(*reversed(range(x.ndim)))",
        (RANDOM,),
    ),
    Mutant(
        "noise from torch's global generator",
        "core/random.py",
        "return np.random.Generator(bits).standard_normal(shape, dtype=np.float32, out=out)",
        "drawn = torch.randn(shape).numpy()\n    if out is not None:\n        out[...] = drawn\n    return drawn",
        (RANDOM, CONTRACT),
    ),
    # estimate
    Mutant(
        "standard error of the samples",
        "core/moments.py",
        "max(self.count - 1, 1) / self.count",
        "max(self.count - 1, 1)",
        (MOMENTS,),
    ),
    Mutant(
        "biased variance in the standard error",
        "core/moments.py",
        "self.central[1] / max(self.count - 1, 1)",
        "self.central[1] / self.count",
        (MOMENTS,),
    ),
    Mutant(
        "biased VarGrad",
        "core/estimator.py",
        "variance = m2 / max(n - 1, 1)",
        "variance = m2 / n",
        (ESTIMATOR, VARIANCE),
    ),
    Mutant("wrong fourth moment", "core/moments.py", "- 4 * step * m3", "+ 4 * step * m3", (MOMENTS,)),
    Mutant(
        "sums in single precision",
        "core/moments.py",
        "torch.zeros(like.shape, dtype=torch.float64",
        "torch.zeros(like.shape, dtype=torch.float32",
        (ESTIMATOR,),
    ),
    Mutant(
        "batches of neighbours",
        "core/moments.py",
        "self.sums[:, before % BATCHES]",
        "self.sums[:, before // 4 % BATCHES]",
        (ESTIMATE,),
    ),
    Mutant(
        "the last block is lost",
        "core/estimator.py",
        "for at in range(start, count, size)]",
        "for at in range(start, count - size + 1, size)]",
        (ESTIMATOR,),
    ),
    Mutant(
        "a power that holds the noise",
        "core/estimator.py",
        "own = per_input(values.square()) - squared",
        "own = per_input(values.square())",
        (ESTIMATOR,),
    ),
    Mutant(
        "the jackknife without its factor",
        "core/moments.py",
        "(spread * (k - 1) / k).sqrt()",
        "(spread / k).sqrt()",
        (MOMENTS,),
    ),
    # stopping
    Mutant(
        "noise counts as converged",
        "core/estimator.py",
        "self.power > 2 * self.power_error",
        "self.power > -torch.inf",
        (ESTIMATOR,),
    ),
    Mutant(
        "the error is looked at after every sample",
        "core/stopping.py",
        "_FIRST, _FACTOR = 16, 1.5",
        "_FIRST, _FACTOR = 16, 1.01",
        (STOPPING,),
    ),
    Mutant(
        "the first look is too early",
        "core/stopping.py",
        "_FIRST, _FACTOR = 16, 1.5",
        "_FIRST, _FACTOR = 4, 1.5",
        (STOPPING, ESTIMATOR),
    ),
    Mutant(
        "at most is exceeded by whole draws",
        "core/stopping.py",
        "end = max(n_samples.at_most // size, 1, least)",
        "end = max(-(-n_samples.at_most // size), 1, least)",
        (STOPPING,),
    ),
    Mutant(
        "all inputs stop with the first",
        "core/estimator.py",
        "if not going:\n                return",
        "if ready:\n                return",
        (ESTIMATOR,),
    ),
    Mutant(
        "the wrong inputs leave",
        "core/estimator.py",
        "moments.rows(ready), [why[row] for row in ready]",
        "moments.rows(ready[::-1]), [why[row] for row in ready]",
        (ESTIMATOR,),
    ),
    Mutant(
        "further samples replace the rest",
        "core/stopping.py",
        "further=n_samples.further + more",
        "further=more",
        (STOPPING,),
    ),
    Mutant(
        "an extension begins anew",
        "core/estimator.py",
        "moments = self._resumed(wave) if taken else None",
        "moments = None",
        (ESTIMATOR,),
    ),
    Mutant(
        "an error of the squared error",
        "core/estimator.py",
        "torch.finfo(torch.float64).tiny)).sqrt()",
        "torch.finfo(torch.float64).tiny))",
        (ESTIMATOR,),
    ),
    Mutant(
        "more needed by the square root",
        "core/estimator.py",
        "squared=lambda times: squared / times,",
        "squared=lambda times: squared / times**0.5,",
        (ESTIMATOR,),
    ),
    # engine
    Mutant(
        "what was drawn ahead is drawn again",
        "core/ahead.py",
        "waiting = self._waiting.pop(name, None)",
        "waiting = None",
        (AHEAD,),
    ),
    Mutant(
        "threads are left behind",
        "core/ahead.py",
        "self._worker.shutdown(wait=True, cancel_futures=True)",
        "pass",
        (AHEAD,),
    ),
    Mutant(
        "the heap is never given back",
        "core/heap.py",
        "if _free_bytes(libc) > _LEFT:",
        "if _free_bytes(libc) > _NEVER * _NEVER:",
        (HEAP,),
    ),
    Mutant(
        "the settings of the heap stay", "core/heap.py", "_set(libc, mmap_max=65536,", "_set(libc, mmap_max=0,", (HEAP,)
    ),
    Mutant(
        "an inner call ends the outer one's heap", "core/heap.py", "if _depth[0] == 0:", "if _depth[0] >= 0:", (HEAP,)
    ),
    # target
    Mutant(
        "negative classes count from the end",
        "core/target.py",
        "if not 0 <= spec < count:",
        "if not -count <= spec < count:",
        (TARGET,),
    ),
    Mutant(
        "margin the wrong way round",
        "core/target.py",
        "outputs[:, self.index] - outputs[:, self.against]",
        "outputs[:, self.against] - outputs[:, self.index]",
        (GRADIENT,),
    ),
    Mutant(
        "softmax twice",
        "core/target.py",
        "(torch.softmax(outputs, 1) if kind is OutputKind.LOGITS else outputs)[:, self.index]",
        "torch.softmax(outputs, 1)[:, self.index]",
        (TARGET,),
    ),
    Mutant(
        "mixed targets in the order of their groups",
        "core/target.py",
        "torch.cat(parts)[order.argsort()]",
        "torch.cat(parts)[order]",
        (TARGET,),
    ),
    Mutant(
        "the least likely class is explained",
        "core/target.py",
        "prediction.outputs[0].argmax()",
        "prediction.outputs[0].argmin()",
        (TARGET,),
    ),
    # rendering
    Mutant(
        "channels reduced with their sign",
        "modalities/image/heatmap.py",
        "reduced = np.abs(values).max(0)",
        "reduced = values.max(0)",
        (HEATMAP,),
    ),
    Mutant(
        "sum of magnitudes is the magnitude of the sum",
        "modalities/image/heatmap.py",
        "reduced = np.abs(values).sum(0)",
        "reduced = np.abs(values.sum(0))",
        (HEATMAP,),
    ),
    Mutant(
        "a shared limit is ignored",
        "modalities/image/heatmap.py",
        "scale = found if limit is None else limit",
        "scale = found",
        (HEATMAP,),
    ),
    Mutant(
        "blank maps are drawn in silence",
        "modalities/image/heatmap.py",
        "if not finite.any():",
        "if finite is None:",
        (HEATMAP,),
    ),
    Mutant("zero is not neutral", "modalities/image/draw.py", ".resampled(257)", ".resampled(256)", (DRAW,)),
    Mutant(
        "the overlay is shifted by half a feature",
        "modalities/image/heatmap.py",
        "np.arange(pixels) + 0.5 - low",
        "np.arange(pixels) - low",
        (DRAW,),
    ),
    Mutant(
        "the overlay's corners are aligned",
        "modalities/image/heatmap.py",
        "* cells - 0.5, 0, cells - 1)",
        "* (cells - 1), 0, cells - 1)",
        (DRAW,),
    ),
    Mutant(
        "rows and columns of the crop are swapped",
        "modalities/image/preprocess.py",
        "return (left, top, wide - left, high - top)",
        "return (top, left, wide - top, high - left)",
        (PREPROCESS,),
    ),
    Mutant(
        "mean and std of 0 .. 255",
        "modalities/image/preprocess.py",
        "(values / 255 - self._mean)",
        "(values - self._mean)",
        (PREPROCESS,),
    ),
    Mutant(
        "colours in the wrong order",
        "modalities/image/preprocess.py",
        'if self.channels == "bgr":',
        'if self.channels == "rgb":',
        (PREPROCESS,),
    ),
    Mutant(
        "every sign pattern counts as reached",
        "modalities/image/uncertainty.py",
        "between.T >= found - slack",
        "between.T >= found - 1e9",
        (UNCERTAINTY,),
    ),
    Mutant(
        "no correction for many blocks",
        "modalities/image/uncertainty.py",
        "false_discovery_control(p.ravel())",
        "p.ravel()",
        (UNCERTAINTY,),
    ),
    # files
    Mutant(
        "recipes forget the key",
        "core/attribution.py",
        "return Key.from_hex(self.recipe.keys[0]) if self.recipe.keys != self.recipe.inputs else None",
        "return None",
        (ATTRIBUTION,),
    ),
    Mutant(
        "other weights are accepted",
        "core/attribution.py",
        "if found != self.recipe.weights:",
        "if not self.recipe.weights:",
        (ATTRIBUTION,),
    ),
    Mutant(
        "the metadata follows the order of the settings",
        "core/recipe.py",
        "json.dumps(vars(self), sort_keys=True,",
        "json.dumps(vars(self), sort_keys=False,",
        (RECIPE,),
    ),
    Mutant(
        "unknown classes are passed over",
        "core/recipe.py",
        "    if name not in _registry:\n        raise",
        "    if name not in _registry:\n        return None\n        raise",
        (RECIPE,),
    ),
    Mutant(
        "photos are not turned upright",
        "modalities/image/read.py",
        "upright = ImageOps.exif_transpose(image)",
        "upright = image",
        (READ,),
    ),
    Mutant(
        "16-bit greys are clipped",
        "modalities/image/read.py",
        "(values.astype(np.uint32) + 128) // 257",
        "np.minimum(values, 255)",
        (READ,),
    ),
    # model and diagnosis
    Mutant(
        "symmetric padding at stride two",
        "models/efficientnet_lite0.py",
        "return total // 2, total - total // 2",
        "return total - total // 2, total // 2",
        (LITE0,),
    ),
    Mutant("saturation is never told", "core/diagnosis.py", "_SATURATED = 0.99", "_SATURATED = 2.0", (DIAGNOSIS,)),
    Mutant(
        "the probe is made every time",
        "core/diagnosis.py",
        "or shape in model.sound:",
        "or shape is None:",
        (DIAGNOSIS,),
    ),
    Mutant(
        "copies with another prediction are kept",
        "metrics/stability.py",
        "if model.predict(copy).top(1)[0][2] == top:",
        "if top >= 0:",
        (STABILITY,),
    ),
    # where networks are cut
    Mutant(
        "the global pool is a place to cut", "core/cuts.py", " or all(side == 1 for side in after[2:]):", ":", (CUTS,)
    ),
    Mutant(
        "cuts where all before is linear", "core/cuts.py", " if not all(map(_is_linear, _upstream(node)))", "", (CUTS,)
    ),
    Mutant(
        "a max-pool is cut before",
        "core/cuts.py",
        '_name(after).startswith(("MaxPool", "AdaptiveMaxPool"))',
        '_name(after).startswith("MaxUnpool")',
        (CUTS,),
    ),
    Mutant("the first cuts in place of the last", "core/cuts.py", "found[-count:]", "found[:count]", (CUTS,)),
    Mutant("the narrowest within two activations", "core/cuts.py", "if bends > 1 or", "if bends > 2 or", (CUTS,)),
    Mutant("a way around a cut is overlooked", "core/cuts.py", "if len(open_) == 1:", "if len(open_) <= 2:", (CUTS,)),
    Mutant(
        "attention is cut", "core/cuts.py", 'name.startswith("Softmax") and len(_shape(node)) > 2', "False", (CUTS,)
    ),
    Mutant(
        "gates are cut",
        "core/cuts.py",
        'gate = name in _GATES or "Rnn" in name or (name not in _SUMS and len(inputs) > 1)',
        "gate = False",
        ("tests/core/test_cuts.py",),
    ),
    Mutant(
        "any tensor can be a named cut",
        "core/cuts.py",
        "if not cut.shape or cut.shape[0] != rows:",
        "if not cut.shape:",
        (CUTS,),
    ),
    Mutant(
        "groups of rows that are no neighbours",
        "core/cuts.py",
        "gradient.unflatten(0, (-1, group))",
        "gradient.unflatten(0, (group, -1))",
        (CUTS,),
    ),
    Mutant(
        "the sum over a group for its mean",
        "core/cuts.py",
        "rows.mean(1, keepdim=True, dtype=",
        "rows.sum(1, keepdim=True, dtype=",
        (CUTS,),
    ),
    Mutant(
        "averaging outlasts its block", "core/cuts.py", "            handle.remove()", "            handle.id", (CUTS,)
    ),
    # factored means and their bias
    Mutant(
        "groups that part a pair",
        "core/factored.py",
        "size = 2 * max(-(-n_samples // (2 * groups)), 1)",
        "size = max(-(-n_samples // groups), 1)",
        (FACTORED,),
    ),
    Mutant(
        "more samples forget their group",
        "core/factored.py",
        "return replace(self, group=size)",
        "return self",
        (FACTORED,),
    ),
    Mutant(
        "the noise of the gaps counts as bias",
        "core/factored.py",
        ".flatten(1).sum(1) - moments.gap_power",
        ".flatten(1).sum(1)",
        (FACTORED,),
    ),
    Mutant(
        "products of a gap with itself are counted",
        "core/factored.py",
        "(products / (k * (k - 1)) / size)",
        "(products / (k * k) / size)",
        (FACTORED,),
    ),
    Mutant(
        "the error is without its bias",
        "core/factored.py",
        "squared=lambda times: noise / times + bias,",
        "squared=lambda times: noise / times,",
        (FACTORED,),
    ),
    Mutant(
        "the bias falls with more samples",
        "core/factored.py",
        "squared=lambda times: noise / times + bias,",
        "squared=lambda times: (noise + bias) / times,",
        (FACTORED,),
    ),
    Mutant(
        "the plain error counts the signal",
        "core/factored.py",
        "(moments.plain_power / k / size - power)",
        "(moments.plain_power / k / size)",
        (FACTORED,),
    ),
    Mutant(
        "a plain map with every group",
        "core/factored.py",
        "return index < _DENSE or index % _EVERY == 0",
        "return index >= 0",
        (FACTORED,),
    ),
    Mutant(
        "the gap lacks the plain map",
        "core/moments.py",
        "gap = plain.double() - draw",
        "gap = draw.double()",
        (FACTORED,),
    ),
    Mutant(
        "the plain power is that of the gap",
        "core/moments.py",
        "self.plain_power += plain.double().square()",
        "self.plain_power += gap.square()",
        (FACTORED,),
    ),
    Mutant(
        "stored gaps are taken for all draws",
        "core/moments.py",
        "part[_GAP], int(part[_GAPS][0])",
        "part[_GAP], moments.count",
        (FACTORED,),
    ),
    Mutant(
        "the error of the power is that of one batch",
        "core/moments.py",
        "(spread * (k - 1) / k).sqrt()",
        "(spread / k).sqrt()",
        (SHRUNK,),
    ),
    # pairs and groups of noise
    Mutant(
        "each call begins with the first pair",
        "explainers/_noise.py",
        "pairs = range(first // 2, last // 2)",
        "pairs = range((last - first) // 2)",
        (FACTORED,),
    ),
    Mutant(
        "pairs are not mirrored",
        "explainers/_noise.py",
        "np.stack([half, -half], 2)",
        "np.stack([half, half], 2)",
        (FACTORED,),
    ),
    Mutant(
        "the halves of a pair stand far apart",
        "explainers/_noise.py",
        "np.stack([half, -half], 2)",
        "np.concatenate([half, -half], 1)",
        (FACTORED,),
    ),
    Mutant(
        "all inputs have the noise of the first",
        "explainers/_noise.py",
        "normal(streams[b], j, shape)",
        "normal(streams[0], j, shape)",
        (FACTORED,),
    ),
    Mutant(
        "plain maps of other rows",
        "explainers/_noise.py",
        "for i in draws for _ in range(how.size)] * len(inputs)",
        "for _ in range(how.size) for i in draws] * len(inputs)",
        (FACTORED,),
    ),
    Mutant(
        "plain and factored are exchanged",
        "explainers/_noise.py",
        "torch.stack([other, factored], 2)",
        "torch.stack([factored, other], 2)",
        (COMBINED,),
    ),
    # wavelets
    Mutant(
        "edges are continued by zeros",
        "modalities/image/wavelet.py",
        '"sym4", 4, "symmetric"',
        '"sym4", 4, "zero"',
        (WAVELET,),
    ),
    Mutant(
        "half of the draws is left out",
        "modalities/image/wavelet.py",
        "(sums[:half] + sums[half:])",
        "(2 * sums[:half])",
        (WAVELET,),
    ),
    Mutant(
        "colours by rows that are columns",
        "modalities/image/wavelet.py",
        "@ white)[1].T @ white",
        "@ white)[1] @ white",
        (WAVELET,),
    ),
    Mutant(
        "the power of a colour is summed the other way",
        "modalities/image/wavelet.py",
        "(self.back**2).sum(0)",
        "(self.back**2).sum(1)",
        (WAVELET,),
    ),
    Mutant(
        "a few draws that agree are sure",
        "modalities/image/wavelet.py",
        " & (mean**2 > _SURE**2 * around)",
        "",
        ("tests/modalities/image/test_wavelet.py",),
    ),
    Mutant(
        "few draws know their own noise as well as many",
        "modalities/image/wavelet.py",
        "stdtrit(max(draws - 1, 1), ",
        "stdtrit(1e9, ",
        ("tests/modalities/image/test_wavelet.py",),
    ),
    Mutant(
        "a cut off the path is taken",
        "core/cuts.py",
        "if not any(node is cut.node for node in _upstream(score.grad_fn)):",
        "if False:",
        ("tests/core/test_cuts.py",),
    ),
    Mutant("three standard errors are sure", "modalities/image/wavelet.py", "_SURE = 5.0", "_SURE = 3.0", (WAVELET,)),
    # shrunk maps
    Mutant(
        "noise counts as signal",
        "modalities/image/shrunk.py",
        "s = np.maximum((m * m).sum((-2, -1)) - v, 0.0)",
        "s = (m * m).sum((-2, -1))",
        (SHRUNK,),
    ),
    Mutant(
        "the noise of a draw for that of the mean",
        "modalities/image/shrunk.py",
        "/ ((len(counts) - 1) * n)",
        "/ (len(counts) - 1)",
        (SHRUNK,),
    ),
    Mutant(
        "values that are kept have no error",
        "modalities/image/shrunk.py",
        "self.sure * (1 - left)",
        "0 * (1 - left)",
        (SHRUNK,),
    ),
    Mutant(
        "gains do not change with more draws",
        "modalities/image/shrunk.py",
        "noise = self.noise / times",
        "noise = self.noise / 1",
        (SHRUNK,),
    ),
    Mutant(
        "a bias is not shrunk",
        "modalities/image/shrunk.py",
        "bias = inner.bias * torch.tensor([row.passed for row in rows])",
        "bias = inner.bias * torch.tensor([1.0 for row in rows])",
        (SHRUNK,),
    ),
    # plain and factored together
    Mutant(
        "the factored map is taken for the truth",
        "modalities/image/combined.py",
        "truth = max(across[0, 0], 0.0)",
        "truth = max(across[1, 1], 0.0)",
        (COMBINED,),
    ),
    Mutant(
        "products of a group with itself are counted",
        "modalities/image/combined.py",
        "across = (n * n * second - own) / (n * n - (counts**2).sum())",
        "across = second",
        (COMBINED,),
    ),
    Mutant(
        "the bias has no part in the weights",
        "modalities/image/combined.py",
        "goal = np.array([truth, (across[0, 1] + across[1, 0]) / 2])",
        "goal = np.array([truth, across[1, 1]])",
        (COMBINED,),
    ),
    Mutant(
        "the error that stays falls too",
        "modalities/image/combined.py",
        "return self.fixed + self.falling / times",
        "return (self.fixed + self.falling) / times",
        (COMBINED,),
    ),
    Mutant(
        "one backward pass is counted",
        "modalities/image/combined.py",
        "backward=2 * once.forward",
        "backward=once.forward",
        (COMBINED,),
    ),
    # folding
    Mutant(
        "a norm in training mode is folded", "core/folding.py", "return not module.training and", "return", (FOLDING,)
    ),
    Mutant(
        "what another takes is folded away",
        "core/folding.py",
        "or takers[inputs[0]] != 1:",
        "or takers[inputs[0]] < 1:",
        (FOLDING,),
    ),
    Mutant(
        "the folded weights stay", "core/folding.py", "undo.callback(held.update, dict(held))", "dict(held)", (FOLDING,)
    ),
    Mutant(
        "the mean of a norm is forgotten",
        "core/folding.py",
        "shift = -norm.running_mean.double() * gain",
        "shift = 0 * gain",
        (FOLDING,),
    ),
    Mutant(
        "outputs are not compared",
        "core/folding.py",
        "return found if float(off) <=",
        "return found if True or float(off) <=",
        (FOLDING,),
    ),
    Mutant(
        "pairs are sought in bfloat16",
        "core/model.py",
        "first = replace(apart.networks.each[0], bfloat16=False)",
        "first = apart.networks.each[0]",
        (FOLDING,),
    ),
    Mutant(
        "folded weights outlast the network's own",
        "core/model.py",
        "asked = self._hashed and self._hashed[1], pairs",
        "asked = 0, pairs",
        (FOLDING,),
    ),
    Mutant(
        "all folded weights there ever were are kept",
        "core/model.py",
        "            self.folds.clear()\n",
        "",
        (FOLDING,),
    ),
    Mutant(
        "folded weights stay under a memory limit",
        "core/model.py",
        "if self.budget.limit is None and asked[0] is not None:",
        "if asked[0] is not None:",
        (FOLDING,),
    ),
    Mutant(
        "rough outputs are compared",
        "core/folding.py",
        "eps > _TELLING",
        "eps > 10 * _TELLING * 1e3",
        (FOLDING,),
    ),
    # depthwise
    Mutant(
        "strided depthwise convolutions round to bfloat16",
        "core/depthwise.py",
        "forward(x.float())",
        "forward(x.bfloat16().float())",
        (DEPTHWISE,),
    ),
    Mutant(
        "every strided convolution is in float32",
        "core/depthwise.py",
        "== module.in_channels > 1",
        ">= 1",
        (DEPTHWISE,),
    ),
    Mutant(
        "the wide forward stays",
        "core/depthwise.py",
        'undo.callback(vars(module).pop, "forward")',
        "pass",
        (DEPTHWISE,),
    ),
    Mutant(
        "rows are counted, not their bytes",
        "core/model.py",
        "return 2 if self.bfloat16 else x.element_size()",
        "return 4",
        ("tests/core/test_model.py",),
    ),
    # found by review
    Mutant(
        "gates of one operand are cut",
        "core/cuts.py",
        '_GATES = {"Glu"}',
        "_GATES = set()",
        ("tests/core/test_cuts.py",),
    ),
    Mutant(
        "a map that was shrunk to nothing is certain",
        "core/estimator.py",
        "self.still & (squared == 0)",
        "squared == 0",
        (SHRUNK, COMBINED),
    ),
    Mutant(
        "pairs are trusted as they were found",
        "core/model.py",
        " or not all(is_plain(module) for module in known)",
        "",
        (FOLDING,),
    ),
    Mutant(
        "further samples are taken again",
        "core/estimator.py",
        "self._leave(wave, moments, why, stop)  # it had",
        "self._leave(wave, moments, why, moments.count)  # it had",
        (ATTRIBUTION,),
    ),
    Mutant(
        "one test of the precision serves all",
        "core/model.py",
        "kind = (self._kind(x), self._hashed and self._hashed[1], about)",
        "kind = (self._kind(x),)",
        ("tests/core/test_precision.py",),
    ),
    Mutant(
        "a variance may be rounded",
        "core/precision.py",
        " and (r < _SYSTEMATIC or not spread)",
        "",
        ("tests/core/test_precision.py",),
    ),
    Mutant(
        "squares of tiny maps are nothing",
        "core/moments.py",
        "flat.abs().amax((1, 2)).clamp(min=torch.finfo(flat.dtype).tiny)[:, None, None]",
        "torch.ones(len(flat), 1, 1)",
        ("tests/core/test_moments.py",),
    ),
    Mutant(
        "moments in float64 are counted as single",
        "core/memory.py",
        "digit = max(size, 4)",
        "digit = 4",
        ("tests/core/test_memory.py",),
    ),
    Mutant(
        "a smaller error forgets the least",
        "core/stopping.py",
        "return replace(more, at_least=max(more.at_least, n_samples.at_least))",
        "return more",
        ("tests/core/test_stopping.py",),
    ),
    *layers.MUTANTS,
    *gradient_family.MUTANTS,
    *activation_family.MUTANTS,
    *attention.MUTANTS,
    *executed.MUTANTS,
    *lrp.MUTANTS,
    *deep_lift.MUTANTS,
]
