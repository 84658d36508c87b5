"""A prediction endpoint as a model: rows are sent as JSON, outputs come back, and nothing that came back is lost."""

import hashlib
import json
import math
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import Cost, Needs
from pellucid.core.checks import check_choice
from pellucid.core.input import Preprocess
from pellucid.core.model import UNKNOWN, Model
from pellucid.core.output import check_outputs
from pellucid.core.packing import Packing
from pellucid.core.prediction import OutputKind
from pellucid.core.random import Key
from pellucid.core.tuning import Tuning
from pellucid.errors import ArgumentError, ModelError
from pellucid.models.at_once import together
from pellucid.models.endpoint import Connection, Endpoint, Transport
from pellucid.models.inference_protocol import V2, Plain, Protocol, parsed
from pellucid.models.told import in_short

__all__ = ["HTTPModel"]

_MOST_KEPT = 256 * 2**20  # bytes of answers that are kept
_MOST_ROWS = 64  # of a request, where `micro_batch` is left out: progress shows, and Ctrl-C loses little
_OF_AN_ANSWER = 200  # bytes of its key and its place, beside its numbers
_V2_PATH = re.compile(r"(.*/v2/models/[^/]+(?:/versions/[^/]+)?)(?:/infer)?/?")


class Answers:
    """The outputs of rows that were answered, by the hash of the row; the oldest go once there are too many bytes."""

    def __init__(self, most: int = _MOST_KEPT) -> None:
        self.most, self.bytes = most, 0
        self._held: OrderedDict[bytes, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: bytes) -> Tensor | None:
        """The outputs of that row, if they are kept."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)

    def keep(self, key: bytes, outputs: Tensor) -> None:
        """Keep them; a row that was answered by NaN or infinity is asked again."""
        if not bool(outputs.isfinite().all()):
            return
        with self._lock:
            if key not in self._held:
                self.bytes += outputs.nbytes + _OF_AN_ANSWER
            self._held[key] = outputs
            while self.bytes > self.most and self._held:
                self.bytes -= self._held.popitem(last=False)[1].nbytes + _OF_AN_ANSWER

    def clear(self) -> None:
        """Forget them all."""
        with self._lock:
            self._held.clear()
            self.bytes = 0


class HTTPModel(Model):
    """An endpoint that predicts, as a model of inputs (B, *features): its outputs, and nothing else of it.

    `protocol` is "plain", `{"inputs": [row, ...]}` answered by `{"outputs": [row, ...]}`, or "v2", the Open Inference
    Protocol at `.../v2/models/NAME`; left out, the address says which. Of v2, `input_name` is asked of the endpoint if
    left out, `select` names its outputs where it has several, and several inputs go by name. `headers` hold what it
    wants to know of you; they are sent and never shown. Answers are kept by this object, so that after a failure the
    same call in this process asks only for what is missing; `forget()` drops them, for instance when another model has
    been put behind the address.

    Raises:
        ArgumentError: an address that is none, or a setting that does not exist.
        ModelError: httpx is not installed. Calls raise it for what the endpoint does not do as it should.

    Example:
        >>> import json, threading, torch, pellucid as pl
        >>> from http.server import BaseHTTPRequestHandler, HTTPServer
        >>> class Sums(BaseHTTPRequestHandler):
        ...     def do_POST(self):
        ...         rows = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["inputs"]
        ...         self.send_response(200)
        ...         self.end_headers()
        ...         self.wfile.write(json.dumps({"outputs": [[sum(row)] for row in rows]}).encode())
        ...     def log_message(self, *told): pass
        >>> with HTTPServer(("127.0.0.1", 0), Sums) as server:
        ...     threading.Thread(target=server.serve_forever, daemon=True).start()
        ...     model = pl.HTTPModel(f"http://127.0.0.1:{server.server_port}/predict", output="regression")
        ...     print(model.predict(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).outputs)
        ...     server.shutdown()
        tensor([[3.],
                [7.]])
    """

    offers = Needs.SCORES

    def __init__(
        self,
        url: str,
        *,
        protocol: Literal["plain", "v2"] | None = None,
        input_name: str | None = None,
        select: str | int | None = None,
        headers: Mapping[str, str] | None = None,
        transport: Transport | None = None,
        preprocess: Preprocess | None = None,
        labels: Sequence[str] | None = None,
        output: Literal["logits", "probabilities", "regression", "segmentation", "detection"] | None = None,
    ) -> None:
        how = Transport() if transport is None else transport
        if not isinstance(how, Transport):
            raise ArgumentError(f"`transport` is a pl.Transport. Got {type(transport).__name__}.")
        if protocol is not None:
            check_choice("protocol", protocol, ("plain", "v2"))
        at_once = None if how.micro_batch is None else how.micro_batch * how.connections
        super().__init__(preprocess=preprocess, labels=labels, output=output, micro_batch=at_once)
        self.width = how.connections
        self.endpoint = Endpoint(url, headers, how)
        self.name = self.endpoint.shown
        v2 = _V2_PATH.fullmatch(self.endpoint.path)
        if protocol == "v2" and v2 is None:
            raise ArgumentError(f"{self.name}: expected an address .../v2/models/NAME for protocol='v2'.")
        self.base = None if v2 is None or protocol == "plain" else v2[1]
        if self.base is None and (input_name, select) != (None, None):
            raise ArgumentError(f"{self.name}: `input_name` and `select` are for protocol='v2'; plain has no names.")
        self.protocol: Protocol = (
            Plain(public=self.endpoint.public) if self.base is None else V2(select, public=self.endpoint.public)
        )
        self.input_name = input_name
        self.answers: Answers | None = Answers()  # shared with copies
        self.described: dict[str, str] = {}  # the type of its input by name, as it was told; shared with copies
        self.connection: Connection | None = None  # within a call

    def place(self, x: Tensor) -> Tensor:
        return x.detach().cpu()

    def fingerprint(self) -> str:
        return UNKNOWN

    def forget(self) -> None:
        """Drop the answers that are kept."""
        if self.answers is not None:
            self.answers.clear()
        self.described.clear()

    @contextmanager
    def undisturbed(self, key: Key, packing: Packing | None = None) -> Iterator[Self]:
        with super().undisturbed(key, packing) as quiet:
            if quiet.connection is not None:
                quiet.answers = None  # a call inside a call is to see whether the same answers come again
                yield quiet
                return
            with self.endpoint.connected() as quiet.connection:
                yield quiet

    def _tuned(self, x: Tensor) -> Tuning:
        self.answers = None  # equal rows are asked each time
        return super()._tuned(x)

    def rows(self, x: Tensor, together: int = 1, maps: int = 0) -> int:
        found = super().rows(x, together, maps)
        said = self.micro_batch is not None or self.recorded_rows is not None
        return found if said else min(found, max(_MOST_ROWS * self.width, together))

    def outputs(self, x: Float[Tensor, "b *features"]) -> Float[Tensor, "b *k"]:
        keys = self._keys(x)
        found = {key: kept for key in keys if (kept := self._kept(key)) is not None}
        first: dict[bytes, int] = {}
        for i, key in enumerate(keys):
            if key not in found:
                first.setdefault(key, i)
        missing = list(first.values())
        size = min(math.ceil(self.rows(x) / self.width), math.ceil(len(missing) / self.width)) or 1
        pieces = [missing[start : start + size] for start in range(0, len(missing), size)]
        self.passes += Cost(forward=len(x))  # also those that were answered before, so that a budget means the same
        try:
            for piece, answer in zip(pieces, self._answered(x, keys, pieces), strict=True):
                found |= {keys[i]: row for i, row in zip(piece, answer, strict=True)}
        except ModelError as error:
            raise ModelError(self.endpoint.public(f"{self.name}: {error}{self._done(keys)}")) from error.__cause__
        if len(shapes := {tuple(row.shape) for row in found.values()}) > 1:
            raise ModelError(f"{self.name}: expected as many outputs for each row, but got {sorted(shapes)}.")
        return torch.stack([found[key] for key in keys])

    def _kept(self, key: bytes) -> Tensor | None:
        return None if self.answers is None else self.answers.get(key)

    def _keys(self, x: Tensor) -> list[bytes]:
        """What stands for each row; where answers are not kept, each row for itself."""
        if self.answers is None:
            return [i.to_bytes(8, "big") for i in range(len(x))]
        kind = repr((tuple(x.shape[1:]), x.dtype, self.packing)).encode()
        rows = x.flatten(1).contiguous().view(torch.uint8).numpy()
        return [hashlib.blake2b(kind + row.tobytes(), digest_size=16).digest() for row in rows]

    def _done(self, keys: Sequence[bytes]) -> str:
        done, kept = sum(self._kept(key) is not None for key in keys), len(self.answers or ())
        if not kept:
            return ""
        return (
            f" {done} of these {len(keys)} rows are answered and kept, {kept} in all: make the same call again in this "
            "process, and it asks only for what is missing."
        )

    def _answered(self, x: Tensor, keys: Sequence[bytes], pieces: Sequence[Sequence[int]]) -> list[Tensor]:
        """The outputs of each piece, several asked at once. If one fails, those that are under way are still kept."""
        if not pieces:
            return []
        stop = threading.Event()
        name = self._input(stop)

        def one(piece: Sequence[int]) -> Tensor:
            answer = self._ask(x[list(piece)], name, stop)
            for i, row in zip(piece, answer, strict=True):
                if self.answers is not None:
                    self.answers.keep(keys[i], row.clone())
            return answer

        try:
            return together(one, pieces, at_once=self.width, stop=stop)
        except KeyboardInterrupt:  # it waits for nobody
            self._connected().close()
            raise

    def _input(self, stop: threading.Event) -> str:
        """The name of the one input, if it needs one: asked of the endpoint, once."""
        if self.packing is not None and (self.base is None or not self.packing.by_name):
            raise ModelError("Several inputs go by name: a dict of tensors, and protocol='v2'.")
        if self.base is None or self.packing is not None:
            return ""
        if self.input_name is not None:
            return self.input_name
        if not self.described and isinstance(self.protocol, V2):
            name, datatype = self.protocol.only_input(
                parsed(self._connected().fetch(None, self.base, stop), self.endpoint.public)
            )
            self.described[name] = datatype
        return next(iter(self.described))

    def _ask(self, x: Tensor, name: str, stop: threading.Event) -> Tensor:
        """The outputs of these rows, of one request."""
        parts = {name: x} if self.packing is None else dict(zip(self.packing.names, self.packing.given(x), strict=True))
        try:
            request = self.protocol.request(parts, self.described.get(name))
            body = json.dumps(request, allow_nan=False, separators=(",", ":")).encode()
        except ValueError as error:
            raise ModelError("The rows hold NaN or infinite values, which JSON has not.") from error
        reply = self._connected().fetch(body, None if self.base is None else f"{self.base}/infer", stop)
        outputs = torch.from_numpy(self.protocol.outputs(parsed(reply, self.endpoint.public))).to(x.dtype)
        outputs = outputs[:, None] if outputs.ndim == 1 else outputs
        _check(outputs, len(x), self.output)
        return outputs

    def _connected(self) -> Connection:
        assert self.connection is not None  # noqa: S101  # within a call
        return self.connection


def _check(outputs: Tensor, rows: int, kind: OutputKind | None) -> None:
    """Raises ModelError unless these are outputs of so many rows."""
    got = f"the endpoint returned {in_short(str(tuple(outputs.shape)), 60)}"
    of_places = kind in (OutputKind.SEGMENTATION, OutputKind.DETECTION)
    if outputs.ndim == 0 or len(outputs) != rows or not (of_places or outputs.ndim in (2, 4)[: 1 + (kind is None)]):
        raise ModelError(
            f"Expected outputs (B, K) for {rows} inputs, but {got}. It has to answer each row that it is sent by one "
            "row of numbers; for (B, K, ...) say output='segmentation', for boxes (B, N, 4 + K) output='detection'."
        )
    if outputs.numel() == 0:
        raise ModelError(f"Expected at least one output for each row, but {got}.")
    check_outputs(outputs, rows, kind, "the endpoint")
