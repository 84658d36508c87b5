"""Endpoints as models: outputs in the order of the rows, nothing asked twice, nothing lost, nothing shown."""

import math
import re
import threading

import pytest
import torch
from tests.models.served import Asked, Reply, Served, serving, sums
from tests.oracles import uniform

import pellucid as pl
from pellucid.errors import ArgumentError, ModelError
from pellucid.models.http import Answers
from pellucid.models.inference_protocol import Plain

ONE = pl.Transport(micro_batch=1, connections=1, retries=0)
ROWS = torch.arange(12, dtype=torch.float32).reshape(6, 2)
SUMS = torch.stack([ROWS.sum(1), -ROWS.sum(1)], 1)


@pytest.fixture
def served():
    with serving(sums) as found:
        yield found


def model(served: Served, transport: pl.Transport = ONE, **settings) -> pl.HTTPModel:
    found = pl.HTTPModel(served.address + settings.pop("path", "/predict"), transport=transport, **settings)
    found.endpoint.sleep = lambda seconds: None
    return found


def v2(asked: Asked) -> Reply:
    """`twice` and `thrice` of the one input, or the difference of `a` and `b`."""
    if asked.method == "GET":
        return Reply({"name": "net", "inputs": [{"name": "pixels", "datatype": "FP64", "shape": [-1, 2]}]})
    by_name = {one["name"]: one for one in asked.body["inputs"]}
    shape = asked.body["inputs"][0]["shape"]
    if "a" in by_name:
        data = [x - y for x, y in zip(by_name["a"]["data"], by_name["b"]["data"], strict=True)]
        return Reply({"outputs": [{"name": "y", "shape": shape, "datatype": "FP32", "data": data}]})
    [only] = by_name.values()
    wanted = [one["name"] for one in asked.body.get("outputs", [])] or ["twice", "thrice"]
    outputs = [
        {"name": name, "shape": shape, "datatype": "FP32", "data": [(2 + (name != "twice")) * x for x in only["data"]]}
        for name in wanted
    ]
    return Reply({"outputs": outputs})


# What is asked, and what comes out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_outputs_are_the_endpoints(served, dtype):
    found = model(served).predict(ROWS.to(dtype)).outputs
    assert found.dtype == dtype
    assert torch.equal(found, SUMS.to(dtype))


def test_numbers_go_there_and_back_exactly(served):
    served.answer = lambda asked: Reply({"outputs": asked.rows})
    for dtype in (torch.float32, torch.float64):
        x = uniform(20, 3).to(dtype) / 3
        assert torch.equal(model(served).predict(x).outputs, x)


@pytest.mark.parametrize(("rows", "connections"), [(1, 1), (1, 3), (2, 2), (4, 1), (5, 4), (None, 2)])
def test_the_outputs_do_not_depend_on_how_rows_are_grouped(served, rows, connections):
    transport = pl.Transport(micro_batch=rows, connections=connections)
    assert torch.equal(model(served, transport).predict(ROWS).outputs, SUMS)
    assert sorted(served.rows) == ROWS.tolist()
    assert max(len(one.rows) for one in served.asked) <= (rows or 6)


def test_replies_in_another_order_leave_the_outputs_in_order(served):
    last = threading.Event()

    def answer(asked):
        if asked.rows[0] == ROWS[0].tolist():
            assert last.wait(10)  # the first is answered last
        reply = sums(asked)
        if asked.rows[0] == ROWS[5].tolist():
            last.set()
        return reply

    served.answer = answer
    assert torch.equal(model(served, pl.Transport(micro_batch=1, connections=2)).predict(ROWS).outputs, SUMS)


def test_so_many_requests_are_under_way_at_once_and_no_more(served):
    together, lock, counts = threading.Barrier(3), threading.Lock(), [0, 0]

    def answer(asked):
        with lock:
            counts[0] += 1
            counts[1] = max(counts)
        together.wait(10)
        with lock:
            counts[0] -= 1
        return sums(asked)

    served.answer = answer
    model(served, pl.Transport(micro_batch=1, connections=3)).predict(ROWS)
    assert counts[1] == 3


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_few_rows_are_divided_among_all_connections(served, count):
    model(served, pl.Transport(micro_batch=64, connections=3)).predict(ROWS[:count])
    assert len(served.asked) == min(count, 3)
    assert max(len(one.rows) for one in served.asked) == -(-count // 3)


def test_without_a_micro_batch_a_request_has_so_many_rows_and_no_more(served):
    found = model(served, pl.Transport(connections=2))
    x = uniform(300, 2)
    assert found.rows(x) == 128
    assert found.rows(x, together=200) == 200
    assert torch.allclose(found.predict(x).outputs[:, 0], x.sum(1))
    assert max(len(one.rows) for one in served.asked) == 64


def test_connections_are_kept_for_a_call(served):
    model(served).predict(ROWS)
    assert len(served.asked) == 6
    assert served.connections == 1


def test_a_number_for_each_row_is_one_output(served):
    served.answer = lambda asked: Reply({"outputs": [sum(row) for row in asked.rows]})
    assert model(served, output="regression").predict(ROWS).outputs.tolist() == SUMS[:, :1].tolist()


@pytest.mark.parametrize("value", ["null", "NaN"])
def test_what_json_has_not_is_nan_and_asked_again(served, value):
    served.answer = lambda asked: Reply(b'{"outputs": [[1.0, %s]]}' % value.encode())
    found = model(served)
    outputs = found.predict(ROWS[:1]).outputs
    assert outputs[0, 0] == 1
    assert math.isnan(outputs[0, 1])
    served.answer = sums
    assert torch.equal(found.predict(ROWS[:1]).outputs, SUMS[:1])


def test_headers_and_the_query_are_sent(served):
    model(served, path="/predict?key=4711", headers={"Authorization": "Bearer abcd"}).predict(ROWS[:1])
    assert served.asked[0].headers["authorization"] == "Bearer abcd"
    assert served.asked[0].path == "/predict?key=4711"


def test_of_the_query_nothing_is_lost_in_the_second_format(served):
    served.answer = v2
    model(served, path="/v2/models/net/infer?key=4711", select="twice").predict(ROWS[:1])
    assert [one.path for one in served.asked] == ["/v2/models/net?key=4711", "/v2/models/net/infer?key=4711"]


# The second format


@pytest.mark.parametrize("path", ["/v2/models/net", "/v2/models/net/infer", "/a/v2/models/net/versions/3/"])
def test_the_address_tells_the_format_and_the_endpoint_its_input(served, path):
    served.answer = v2
    found = model(served, path=path, select="thrice")
    assert torch.equal(found.predict(ROWS).outputs, 3 * ROWS)
    base = path.removesuffix("/infer").rstrip("/")
    assert [(one.method, one.path) for one in served.asked[:2]] == [("GET", base), ("POST", f"{base}/infer")]
    [sent] = served.asked[1].body["inputs"]
    assert sent == {"name": "pixels", "shape": [1, 2], "datatype": "FP64", "data": [0.0, 1.0]}
    assert [one.method for one in served.asked].count("GET") == 1


def test_an_input_that_is_named_is_not_asked_for(served):
    served.answer = v2
    found = model(served, path="/v2/models/net", select=1, input_name="x")
    assert torch.equal(found.predict(ROWS).outputs, 3 * ROWS)
    assert {one.method for one in served.asked} == {"POST"}
    assert served.asked[0].body["inputs"][0]["datatype"] == "FP32"


def test_several_inputs_go_by_name(served):
    served.answer = v2
    x = {"a": ROWS, "b": ROWS.flip(1).contiguous()}
    assert torch.equal(model(served, path="/v2/models/net").predict(x).outputs, x["a"] - x["b"])


@pytest.mark.doors
def test_several_inputs_without_names_are_refused(served):
    for found, x in [(model(served), {"a": ROWS}), (model(served, path="/v2/models/net"), (ROWS, ROWS))]:
        with pytest.raises(ModelError, match="Several inputs go by name"):
            found.predict(x)
    assert not served.asked


# Nothing is lost


def failing_at(row, status=400):
    def answer(asked):
        if row.tolist() in asked.rows:
            return Reply({"error": "out of memory"}, status)
        return sums(asked)

    return answer


def test_after_a_failure_only_what_is_missing_is_asked(served):
    served.answer = failing_at(ROWS[3])
    found = model(served)
    with pytest.raises(
        ModelError, match=r"3 of these 6 rows are answered and kept, 3 in all: make the same call again in this p"
    ):
        found.predict(ROWS)
    served.asked.clear()
    served.answer = sums
    assert torch.equal(found.predict(ROWS).outputs, SUMS)
    assert served.rows == ROWS[3:].tolist()


def test_what_was_under_way_when_another_request_failed_is_kept(served):
    refused = threading.Event()

    def answer(asked):
        if asked.rows[0] == ROWS[1].tolist():
            return Reply("no", 400)
        assert refused.wait(10)
        return sums(asked)

    served.answer = answer
    found = model(served, pl.Transport(micro_batch=1, connections=2))
    timer = threading.Timer(0.05, refused.set)
    timer.start()
    with pytest.raises(ModelError, match="1 of these 2 rows are answered and kept"):
        found.predict(ROWS[:2])
    timer.join()


def test_the_reason_is_that_of_the_request_that_failed_first(served):
    refused = threading.Event()

    def answer(asked):
        if asked.rows[0] == ROWS[1].tolist():
            refused.set()
            return Reply("the second is odd", 400)
        assert refused.wait(10)
        return Reply("busy", 503)

    served.answer = answer
    found = model(served, pl.Transport(micro_batch=1, connections=2, retries=50))
    found.endpoint.sleep = None  # so that the end ends the wait
    with pytest.raises(ModelError, match="the second is odd"):
        found.predict(ROWS[:2])


def test_an_explanation_goes_on_where_it_failed(served):
    def explain(found):
        return pl.Occlusion()(found, uniform(1, 9), 0)

    whole = explain(model(served))
    once, asked = len(served.asked), 0
    found = model(served)
    for _ in range(2):
        served.asked.clear()
        served.answer = lambda one: Reply("no", 400) if len(served.asked) == 4 else sums(one)
        with pytest.raises(ModelError, match="make the same call again"):
            explain(found)
        asked += len(served.asked) - 1
    served.asked.clear()
    served.answer = sums
    again = explain(found)
    assert torch.equal(again.scores, whole.scores)
    assert again.cost == whole.cost
    asked += len(served.asked)
    assert asked == once + 2  # the diagnosis asks each time whether the same answer comes again


def test_equal_rows_are_asked_once_and_known_ones_not_again(served):
    found = model(served)
    x = ROWS[[0, 1, 0, 1]]
    assert torch.equal(found.predict(x).outputs, SUMS[[0, 1, 0, 1]])
    found.predict(ROWS[:2])
    assert served.rows == ROWS[:2].tolist()
    found.forget()
    found.predict(ROWS[:1])
    assert served.rows == ROWS[[0, 1, 0]].tolist()


def test_rows_of_other_shapes_and_types_are_others(served):
    served.answer = lambda asked: Reply({"outputs": [[float(len(row))] for row in asked.rows]})
    found = model(served, output="regression")
    assert found.predict(torch.zeros(1, 4)).outputs.item() == 4
    assert found.predict(torch.zeros(1, 2, 2)).outputs.item() == 2
    assert found.predict(torch.zeros(1, 2, dtype=torch.float64)).outputs.dtype == torch.float64


def test_passes_are_counted_whether_or_not_a_row_was_known(served):
    found = model(served)
    for _ in range(2):
        with found.undisturbed(pl.Key.named("test")) as quiet:
            quiet.outputs(ROWS)
            assert quiet.passes.forward == 6


def test_a_call_inside_a_call_asks_anew(served):
    """The diagnosis asks the same rows twice to see whether the model draws."""
    found = model(served)
    with found.undisturbed(pl.Key.named("one")) as quiet:
        quiet.outputs(ROWS)
        with quiet.undisturbed(pl.Key.named("other")) as inner:
            inner.outputs(ROWS)
        quiet.outputs(ROWS)
    assert len(served.rows) == 12


def test_tuning_asks_each_row(served):
    found = model(served, pl.Transport(connections=1))
    found.clock = iter(range(10**6)).__next__
    found.tune(ROWS[:1])
    assert max(len(one.rows) for one in served.asked) > 1
    assert len(served.rows) > len(served.asked) > 1
    assert len(found.answers) == 0


def test_the_oldest_answers_go_first():
    kept = Answers(most=2 * (200 + 8))
    for key in (b"a", b"b"):
        kept.keep(key, torch.zeros(2))
    kept.get(b"a")
    kept.keep(b"c", torch.zeros(2))
    assert [kept.get(key) is not None for key in (b"a", b"b", b"c")] == [True, False, True]
    assert kept.bytes == kept.most
    kept.keep(b"c", torch.zeros(2))
    assert len(kept) == 2


def test_more_rows_than_can_be_kept_are_answered_all_the_same(served):
    found = model(served)
    found.answers = Answers(most=1)
    assert torch.equal(found.predict(ROWS).outputs, SUMS)


# Replies that are none


@pytest.mark.doors
@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(b"<html>"), "Expected JSON, but got '<html>'"),
        (Reply(b"[" * 100000), "Expected lists that are not so deep"),
        (Reply(b""), "Expected JSON, but got ''"),
        (Reply([1, 2]), r'Expected a reply {"outputs": \[\[...\], ...\]}, but got \'\[1, 2\]\''),
        (
            Reply({"outputs": [[1.0], [2.0]]}),
            r"Expected outputs \(B, K\) for 1 inputs, but the endpoint returned \(2, 1",
        ),
        (Reply({"outputs": []}), r"Expected outputs \(B, K\)"),
        (Reply({"outputs": 3.0}), r"Expected outputs \(B, K\)"),
        (Reply({"outputs": [[]]}), r"Expected at least one output for each row, but the endpoint returned \(1, 0\)"),
        (Reply({"outputs": [[[1.0]]]}), r"one row of numbers; for \(B, K, ...\) say output='segmentation'"),
        (Reply({"outputs": [["high"]]}), "Expected numbers, but got"),
        (Reply({"outputs": [[True]]}), "Expected numbers, but got"),
        (Reply({"outputs": [[1.0, [2.0]]]}), "Expected rows of one length"),
        (Reply({"outputs": [[None, "high"]]}), "Expected numbers, but got"),
    ],
)
def test_what_is_no_reply_is_told(served, reply, words):
    served.answer = lambda asked: reply
    with pytest.raises(ModelError, match=words) as told:
        model(served).predict(ROWS[:1])
    assert len(served.asked) == 1
    assert "Wrap the network" not in str(told.value)
    assert "make the same call again" not in str(told.value)  # nothing was kept


@pytest.mark.doors
def test_rows_with_other_counts_of_outputs_are_told(served):
    served.answer = lambda asked: Reply({"outputs": [[0.0] * int(1 + row[0]) for row in asked.rows]})
    with pytest.raises(ModelError, match="as many outputs for each row"):
        model(served).predict(ROWS)


@pytest.mark.doors
def test_rows_that_json_has_not_are_refused(served):
    with pytest.raises(ModelError, match="NaN or infinite values, which JSON has not"):
        model(served).predict(torch.full((1, 2), math.nan))
    assert not served.asked


# Doors


@pytest.mark.doors
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"protocol": "v3"}, "`protocol` is one of 'plain', 'v2'"),
        ({"protocol": "v2"}, r"expected an address .../v2/models/NAME"),
        ({"select": "y"}, "`input_name` and `select` are for protocol='v2'"),
        ({"input_name": "x"}, "`input_name` and `select` are for protocol='v2'"),
        ({"transport": 3}, "`transport` is a pl.Transport. Got int"),
        ({"output": "scores"}, "`output` is one of"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(ArgumentError, match=re.escape(words) if "NAME" not in words else words):
        pl.HTTPModel("http://127.0.0.1:1/predict", **settings)


def test_plain_can_be_said_of_any_address(served):
    found = model(served, path="/v2/models/net", protocol="plain")
    assert torch.equal(found.predict(ROWS).outputs, SUMS)
    assert served.asked[0].path == "/v2/models/net"


def test_it_offers_scores_only_and_its_weights_are_unknown(served):
    found = model(served)
    assert found.offers == pl.Needs.SCORES
    assert found.fingerprint() == "unknown"
    assert found.name == f"{served.address}/predict"


SECRETS = ("s3cr3t-token", "query-key-4711")


def test_credentials_stand_in_no_text(served):
    def answer(asked):
        return Reply(f"{asked.headers['authorization']} at {asked.path} is not known", 401)

    served.answer = answer
    headers = {"Authorization": f"Bearer {SECRETS[0]}"}
    found = model(served, path=f"/predict?key={SECRETS[1]}", headers=headers)
    with pytest.raises(ModelError, match="status 401") as told:
        found.predict(ROWS)
    served.answer = sums
    a = pl.Occlusion()(found, ROWS[:1], 0)
    for text in (str(told.value), repr(told.value), repr(found), str(found), found.name, repr(a.recipe), repr(a)):
        assert not any(secret in text for secret in SECRETS)


def test_what_any_part_of_it_says_is_masked_once_more(served):
    """What a server says is masked where it is read; should a part forget it, no text shows it."""

    class Repeats(Plain):
        def outputs(self, reply):
            raise ModelError(f"Expected numbers, but got {SECRETS[1]}.")

    found = model(served, path=f"/predict?key={SECRETS[1]}")
    found.protocol = Repeats()
    with pytest.raises(ModelError, match="Expected numbers, but got …") as told:
        found.predict(ROWS)
    assert SECRETS[1] not in str(told.value)
