"""Deliberate bugs in models of which only the outputs are known: ONNX files, endpoints, tables, functions."""

from tests.mutants.mutant import Mutant

ONNX = "tests/models/test_onnx.py"
SCREEN = "tests/models/test_onnx_screen.py"
HTTP = "tests/models/test_http.py"
ENDPOINT = "tests/models/test_endpoint.py"
PROTOCOL = "tests/models/test_inference_protocol.py"
SKLEARN = "tests/models/test_sklearn.py"
OWN = "tests/models/test_own_code.py"
LOAD = "tests/models/test_load_black_box.py"
DESCRIPTION = "tests/models/test_description.py"
FUNCTION = "tests/core/test_function_model.py"

_ONNX, _SCREEN = "models/onnx.py", "models/onnx_screen.py"
_AT_ONCE, _LINE = "models/at_once.py", "models/connection.py"
_HTTP, _ENDPOINT, _PROTOCOL = "models/http.py", "models/endpoint.py", "models/inference_protocol.py"

MUTANTS: list[Mutant] = [
    Mutant(
        "channels last are taken by their shape, not their order",
        _ONNX,
        "part.movedim(1, -1) if self.last else part",
        "part.reshape(len(part), *part.shape[2:], part.shape[1]) if self.last else part",
        (ONNX,),
    ),
    Mutant(
        "a layout that is said goes after the one that is shown",
        _ONNX,
        "(self.layout or self._layout(declared.name, shape))",
        "(self._layout(declared.name, shape) or self.layout)",
        (ONNX,),
    ),
    Mutant("an ambiguous layout is guessed", _ONNX, "        if first == last:\n", "        if False:\n", (ONNX,)),
    Mutant(
        "the rows that fill up a fixed batch stay in the outputs",
        _ONNX,
        "return torch.cat(found)[: len(x)]",
        "return torch.cat(found)",
        (ONNX,),
    ),
    Mutant(
        "pieces of a fixed batch overlap",
        _ONNX,
        "range(0, len(x), size):\n            rows",
        "range(0, len(x), max(size - 1, 1)):\n            rows",
        (ONNX,),
    ),
    Mutant(
        "inputs by name are taken by place",
        _ONNX,
        "parts = [by_name[name] for name in names]",
        "parts = list(by_name.values())",
        (ONNX,),
    ),
    Mutant(
        "the first output whatever is selected",
        _ONNX,
        "[result] = self._session.run([self._output], given)",
        "result = self._session.run(None, given)[0]",
        (ONNX,),
    ),
    Mutant(
        "threads are those of the first call",
        _ONNX,
        "if self._threads != torch.get_num_threads():",
        "if False:",
        (ONNX,),
    ),
    Mutant(
        "a file that was replaced is run as if it had not been",
        _ONNX,
        '"_hash", file.fingerprint) != file.fingerprint',
        '"_hash", file.fingerprint) is None',
        (ONNX,),
    ),
    Mutant(
        "outputs stay in the file's type",
        _ONNX,
        "return torch.cat(found).to(x.dtype)",
        "return torch.cat(found)",
        (ONNX,),
    ),
    Mutant(
        "operators of branches are not looked at",
        _SCREEN,
        '5: "tensor", 6: "graph", 10: "tensor"',
        '5: "tensor", 10: "tensor"',
        (SCREEN,),
    ),
    Mutant(
        "a function of the file stands for its whole domain",
        _SCREEN,
        "in operators - own if domain not in _DOMAINS",
        "in operators if domain not in _DOMAINS | {d for d, _ in own}",
        (SCREEN,),
    ),
    Mutant(
        "links lead out of the folder",
        _SCREEN,
        "file = (folder / location).resolve()",
        "file = (folder / location).absolute()",
        (SCREEN,),
    ),
    Mutant(
        "weights in another file are not hashed",
        _SCREEN,
        "            while block := opened.read(2**22):\n                digest.update(block)",
        "            opened.read(0)",
        (SCREEN,),
    ),
    Mutant("field numbers are cut to 32 bits", _SCREEN, "key >= 2**32 or", "", (SCREEN,)),
    Mutant("numbers in longer forms are read", _SCREEN, " or (at - begun > 1 and message[at - 1] == 0)", "", (SCREEN,)),
    Mutant("addresses in memory are files", _SCREEN, "if _IN_MEMORY in location:", "if False:", (SCREEN,)),
    Mutant("files of any number of parts are read", _SCREEN, "if self._parts > MOST_PARTS:", "if False:", (SCREEN,)),
    Mutant(
        "skops files are unpacked whatever they say",
        "models/sklearn.py",
        "if schema > _MOST_SCHEMA or",
        "if",
        (SKLEARN,),
    ),
    Mutant(
        "labels may lie anywhere",
        "models/description.py",
        "inside = file.is_relative_to(folder)",
        "inside = True",
        (DESCRIPTION,),
    ),
    Mutant(
        "outputs come in the order of the replies",
        _HTTP,
        "return torch.stack([found[key] for key in keys])",
        "return torch.stack(list(found.values()))",
        (HTTP,),
    ),
    Mutant(
        "what was answered before a failure is lost",
        _HTTP,
        "self.answers.keep(keys[i], row.clone())",
        "self.answers.get(keys[i])",
        (HTTP,),
    ),
    Mutant(
        "answers are kept under their place in the batch",
        _HTTP,
        "        if self.answers is None:\n            return [i",
        "        if True:\n            return [i",
        (HTTP,),
    ),
    Mutant(
        "one request at a time",
        _HTTP,
        "at_once=self.width",
        "at_once=1",
        (HTTP,),
    ),
    Mutant("the reason told is that of the last failure", _AT_ONCE, "raise failures[0]", "raise failures[-1]", (HTTP,)),
    Mutant("few rows go over one connection", _HTTP, "math.ceil(len(missing) / self.width))", "len(missing))", (HTTP,)),
    Mutant("requests grow with the budget", _HTTP, "return found if said else", "return found if True else", (HTTP,)),
    Mutant("after a failure a retry is promised that saves nothing", _HTTP, "if not kept:", "if False:", (HTTP,)),
    Mutant(
        "answers of NaN are kept for good",
        _HTTP,
        "        if not bool(outputs.isfinite().all()):\n            return\n",
        "",
        (HTTP,),
    ),
    Mutant(
        "the diagnosis is answered from what was kept",
        _HTTP,
        "quiet.answers = None  #",
        "quiet.answers = self.answers  #",
        (HTTP,),
    ),
    Mutant("passes are those that were asked", _HTTP, "Cost(forward=len(x))", "Cost(forward=len(missing))", (HTTP,)),
    Mutant("the newest answers go first", _HTTP, "popitem(last=False)", "popitem(last=True)", (HTTP,)),
    Mutant(
        "what a server repeats is shown",
        _HTTP,
        'self.endpoint.public(f"{self.name}: {error}{self._done(keys)}")',
        'f"{self.name}: {error}{self._done(keys)}"',
        (HTTP,),
    ),
    Mutant("the query stands in the name", _HTTP, "self.name = self.endpoint.shown", "self.name = url", (HTTP,)),
    Mutant("pauses do not grow", _ENDPOINT, "self.backoff * 2.0 ** min(attempt, 64)", "self.backoff", (ENDPOINT,)),
    Mutant("Retry-After is not read", _ENDPOINT, "asked = _asked_for(reply.headers)", "asked = None", (ENDPOINT,)),
    Mutant(
        "refusals are asked again",
        _ENDPOINT,
        "        if reply.status not in _RETRIED:\n",
        "        if reply.status == 400:\n",
        (ENDPOINT,),
    ),
    Mutant("redirects are followed", _ENDPOINT, "follow_redirects=False", "follow_redirects=True", (ENDPOINT,)),
    Mutant("replies of any length are read", _LINE, "if len(content) > MOST_REPLY:", "if False:", (ENDPOINT,)),
    Mutant(
        "the timeout is for each piece of a reply",
        _LINE,
        "if not exchange.ended.wait(seconds):",
        "exchange.ended.wait(seconds)\n        if False:",
        (ENDPOINT,),
    ),
    Mutant(
        "a reply that is given up is still read",
        _LINE,
        "self._socket.shutdown(socket.SHUT_RDWR)",
        "self._socket.fileno()",
        (ENDPOINT,),
    ),
    Mutant(
        "texts are cut before they are masked",
        _ENDPOINT,
        "one_line(self.endpoint.public(text[:_READ]), _SHOWN)",
        "self.endpoint.public(one_line(text[:_READ], _SHOWN))",
        (ENDPOINT,),
    ),
    Mutant(
        "replies are cut before they are masked",
        _PROTOCOL,
        "return repr(in_short(text, _SHOWN))",
        "return repr(public(in_short(value if isinstance(value, str) else repr(value), _SHOWN)))",
        (PROTOCOL, ENDPOINT),
    ),
    Mutant(
        "secrets are masked as they were given",
        "models/secrets.py",
        "for form in _FORMS}",
        "for form in [str]}",
        (ENDPOINT,),
    ),
    Mutant("the query is logged", "models/secrets.py", "logger.addFilter(mask)", "logger.filters", (ENDPOINT,)),
    Mutant("headers of the connection are taken", _ENDPOINT, "if name.lower() in _OUR_OWN:", "if False:", (ENDPOINT,)),
    Mutant(
        "a pause after the last attempt",
        _ENDPOINT,
        "if attempt == limit.retries or",
        "if attempt > limit.retries or",
        (ENDPOINT,),
    ),
    Mutant(
        "nested numbers are read column by column",
        _PROTOCOL,
        'numbers = self.numbers(chosen.get("data")).reshape(-1)',
        'numbers = self.numbers(chosen.get("data")).flatten("F")',
        (PROTOCOL,),
    ),
    Mutant(
        "rows are sent in the order of memory",
        _PROTOCOL,
        "part.flatten().tolist()",
        "part.as_strided((part.numel(),), (1,)).tolist()",
        (PROTOCOL,),
    ),
    Mutant(
        "truths pass for numbers", _PROTOCOL, 'found.dtype.kind not in "iuf"', 'found.dtype.kind not in "iufb"', (HTTP,)
    ),
    Mutant(
        "columns lose their names",
        "models/sklearn.py",
        "        if self.columns is None:\n            return rows\n",
        "        if True:\n            return rows\n",
        (SKLEARN,),
    ),
    Mutant(
        "unknown types are loaded without trust",
        "models/sklearn.py",
        "if others and not trust:",
        "if False:",
        (SKLEARN,),
    ),
    Mutant(
        "a function that predicts is called to build",
        "models/own_code.py",
        "_takes(build) == 1:",
        "_takes(build) == 3:",
        (OWN,),
    ),
    Mutant(
        "a layout in the TOML goes to the preprocessing",
        "models/description.py",
        'layout = given.pop("layout", None)',
        'layout = given.get("layout")',
        (LOAD,),
    ),
    Mutant(
        "settings of a network are taken and left unused",
        "models/load.py",
        "value is not None and value is not False]",
        "False]",
        (LOAD,),
    ),
    Mutant(
        "arrays of the function are shared with it",
        "core/function_model.py",
        'np.array(result, order="C")',
        "np.asarray(result)",
        (FUNCTION,),
    ),
]
