"""The pictures that users ask for, with a toy network over small photos."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tests.oracles import Linear, conv_net, uniform

import pellucid as pl
from pellucid.core.recipe import Recipe
from pellucid.modalities.image import draw
from pellucid.modalities.image.draw import Panel
from pellucid.modalities.image.picture import method_caption, method_title, on_one_scale, taken, title_of
from pellucid.modalities.image.uncertainty import certain_blocks

CRIMSON = (220, 20, 60)  # reasons for a blank map
LABELS = ["cat", "dog", "crane"]
MODEL = pl.TorchModel(conv_net(), preprocess=pl.ImagePreprocess(size=16), labels=LABELS, name="toy")
WIDE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
SQUARE = WIDE[:, :20]
SMOOTH = pl.SmoothGrad(n_samples=4)


def explained(picture: np.ndarray = WIDE, target: object = 0, explain: pl.Explainer = SMOOTH) -> pl.Attribution:
    return explain(MODEL, MODEL.read(picture), target)


def with_scores(a: pl.Attribution, scores: torch.Tensor) -> pl.Attribution:
    """The attribution with another map, as if it came from the call."""
    batches = scores[:, None].repeat(1, 16, 1, 1, 1)
    state = {"batch_sums": 4 * batches, "draws": torch.tensor([64])}
    return replace(a, estimate=replace(a.estimate, values=scores, state=state))


def holds(drawing: pl.modalities.image.draw.Drawing, colour: tuple[int, int, int] = CRIMSON) -> bool:
    return bool((drawing.pixels == np.array(colour, dtype=np.uint8)).all(-1).any())


@pytest.fixture
def composed(monkeypatch) -> list:
    """What is handed to the drawing of pages: rows of panels, metadata, caption."""
    seen = []

    def compose(rows: list[list[Panel]], metadata: str, caption: str = "") -> draw.Drawing:
        seen.append((rows, metadata, caption))
        return real(rows, metadata, caption)

    real = draw.compose
    monkeypatch.setattr(draw, "compose", compose)
    return seen


# heatmap


def test_a_heatmap_of_several_inputs_is_a_row_with_the_decision_over_each(composed):
    a = pl.SimpleGradient()(MODEL, MODEL.read([WIDE, SQUARE]), ["dog", "cat"])
    pl.heatmap(a)
    (((first, second),), _, caption) = composed[0]
    assert [first.title, second.title] == [f"{d.label} {d.probability:.1%}" for d in a.decisions]
    assert first.title.startswith("dog ")
    assert first.bar.limit != second.bar.limit
    assert caption == "Simple Gradient, explaining toy"


def test_a_heatmap_can_be_given_its_scale(composed):
    pl.heatmap(explained(), channels="sum", limit=0.125)
    ((panel,),) = composed[0][0]
    assert (panel.bar.limit, panel.bar.signed, panel.bar.channels) == (0.125, True, "sum")


def test_maps_need_no_photo():
    a = pl.SmoothGrad(n_samples=4)(pl.TorchModel(Linear(uniform(2, 75))), uniform(1, 3, 5, 5))
    assert pl.heatmap(a).pixels.size
    assert pl.page([a]).pixels.size


@pytest.mark.doors
def test_a_table_has_no_heatmap():
    a = pl.SimpleGradient()(pl.TorchModel(Linear(uniform(2, 5))), uniform(1, 5))
    with pytest.raises(pl.ArgumentError, match=r"one image's map \(1, C, H, W\). Got \(1, 5\)"):
        pl.heatmap(a)


# overlay


@pytest.mark.parametrize("shape", [(20, 30), (1, 1), (2, 300), (300, 2), (500, 640)])
def test_an_overlay_has_exactly_the_photos_size(shape):
    picture = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert pl.overlay(explained(picture)).pixels.shape == (*shape, 3)


def test_an_overlay_hatches_what_the_model_did_not_see():
    """30 x 20 for a square input: columns 5 to 24 are seen. The hatching's lines have the grey value 190."""
    lines = (pl.overlay(explained(WIDE)).pixels == 190).all(-1).any(0)
    assert lines[:5].any()
    assert lines[25:].any()
    assert not lines[5:25].any()


@pytest.mark.doors
@pytest.mark.parametrize(
    ("x", "words"),
    [
        (uniform(1, 3, 16, 16), r"Got 1 input\(s\) given as a bare tensor: read the picture with model.read"),
        (MODEL.read([WIDE, SQUARE]), r"one image's map|Got 2 input\(s\)"),
    ],
)
def test_an_overlay_is_over_one_photo(x, words):
    with pytest.raises(pl.ArgumentError, match=words):
        pl.overlay(SMOOTH(MODEL, x))


# blank maps


@pytest.mark.parametrize("value", [0.0, float("nan")])
@pytest.mark.parametrize(
    "draw_it", [pl.heatmap, pl.overlay, lambda a: pl.page([a])], ids=["heatmap", "overlay", "page"]
)
def test_a_blank_or_broken_map_is_never_drawn_without_its_reason(draw_it, value):
    picture = np.full((200, 200, 3), 128, dtype=np.uint8)
    a = explained(picture)
    assert not holds(draw_it(a))
    assert holds(draw_it(with_scores(a, torch.full_like(a.scores, value))))


def test_the_reason_is_the_findings_own(composed):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Threshold(1e9, 0.0))  # constant, though it has a gradient
    model = pl.TorchModel(net, preprocess=pl.ImagePreprocess(size=16))
    pl.heatmap(pl.SimpleGradient()(model, model.read(WIDE), 0))
    ((panel,),) = composed[0][0]
    assert panel.bar.blank.startswith("No gradient reaches the input")


def test_a_blank_map_beside_others_leaves_the_page_whole(composed):
    a = explained()
    pl.page([a, with_scores(a, torch.zeros_like(a.scores)), a])
    rows = composed[0][0]
    assert [len(row) for row in rows] == [3, 3, 3]
    assert [bool(panel.bar.blank) for panel in rows[1]] == [False, True, False]


# page


def test_a_page_of_one_target_is_overlay_map_and_uncertainty_side_by_side(composed):
    a = explained()
    pl.page([a])
    ((over, plain, tested),), _, _ = composed[0]
    assert over.title == title_of(a)
    assert over.pixels.shape == WIDE.shape
    assert over.note == "hatched: outside the model's crop"
    assert (over.bar, plain.title, plain.bar.certain) == (None, "map", None)
    assert tested.title.startswith("beyond sampling error: ")
    assert tested.bar.certain is not None


def test_a_page_of_three_targets_has_a_column_for_each_on_one_scale(composed):
    a = SMOOTH(MODEL, pl.Input(MODEL.read(WIDE).tensor.repeat(3, 1, 1, 1), views=MODEL.read(WIDE).views * 3), [0, 1, 2])
    page = pl.page(list(a))
    rows, _, caption = composed[0]
    assert caption.count("Uncertainty: ") == 1
    assert [panel.title.rpartition(" ")[0] for panel in rows[0]] == LABELS
    assert [len(row) for row in rows] == [3, 3, 3]
    assert len({panel.bar.limit for row in rows[1:] for panel in row}) == 1
    assert page.pixels.shape[0] > page.pixels.shape[1] * 0.9


def test_the_share_in_the_title_is_that_of_the_certain_pixels(composed):
    """All batches agree in the left half and are zero in the right: half of the 16 x 16 pixels in blocks of 8."""
    a = explained()
    scores = torch.zeros_like(a.scores)
    scores[..., :8] = 1
    a = with_scores(a, scores)
    pl.page([replace(a, estimate=replace(a.estimate, samples=(16,)))])
    tested = composed[0][0][0][2]
    assert tested.title == "beyond sampling error: 50% of the area"
    assert tested.bar.certain[:, :8].all()
    assert not tested.bar.certain[:, 8:].any()


def test_the_caption_names_method_settings_model_and_what_the_uncertainty_means(composed):
    a = explained()
    pl.page([a])
    assert composed[0][2] == (
        f"SmoothGrad, 4 samples at noise level 0.15, seed 0, relative error {float(a.estimated_error):.2f}, explaining "
        "toy. Uncertainty: sampling error only, n = 4, false discovery rate 5 %; more samples colour more blocks; grey "
        "does not mean unimportant."
    )


def test_a_page_of_an_exact_method_has_no_uncertainty(composed):
    pl.page([explained(explain=pl.SimpleGradient())])
    ((over, plain),), _, caption = composed[0]
    assert (over.bar, plain.title) == (None, "map")
    assert caption == "Simple Gradient, explaining toy."


def test_only_a_cropped_photo_is_said_to_be_hatched(composed):
    pl.page([explained(SQUARE)])
    pl.page([explained(SQUARE[:, :19])])
    assert [rows[0][0].note for rows, _, _ in composed] == ["", "hatched: outside the model's crop"]


@pytest.mark.parametrize("shape", [(1, 1), (4, 900), (900, 4), (1000, 1500)])
def test_a_page_of_an_extreme_photo_has_the_size_of_any_page(shape):
    plain = pl.SimpleGradient()  # whose caption has one length
    page = pl.page([explained(np.full((*shape, 3), 200, dtype=np.uint8), explain=plain)])
    assert page.pixels.shape == pl.page([explained(explain=plain)]).pixels.shape


def test_the_overlay_of_a_large_photo_is_drawn_at_the_size_that_the_page_shows(composed):
    """1000 x 1500 in a panel of 448: drawing six times as many pixels and reducing them would blur the hatching."""
    pl.page([explained(np.full((1000, 1500, 3), 200, dtype=np.uint8))])
    assert composed[0][0][0][0].pixels.shape == (299, 448, 3)


@pytest.mark.doors
def test_a_page_of_nothing_is_refused():
    with pytest.raises(pl.ArgumentError, match=r"at least one attribution\. Got none"):
        pl.page([])


# scales, titles, captions


def test_on_one_scale_the_limit_is_the_largest_of_all_and_each_map_keeps_its_share_of_it():
    a = explained()
    small, large = on_one_scale([with_scores(a, a.scores * 0.25), a])
    assert small.limit == large.limit == on_one_scale([a])[0].limit
    assert small.values.max() / small.limit == pytest.approx(0.25 * large.values.max() / large.limit)
    assert small.clipped == 0 < large.clipped


def test_maps_that_are_all_blank_have_a_common_scale_of_nothing():
    a = explained()
    zero = with_scores(a, torch.zeros_like(a.scores))
    assert [heat.limit for heat in on_one_scale([zero, zero])] == [0, 0]


def test_a_title_is_the_class_with_its_probability_or_the_score_of_a_regression():
    a = explained()
    assert title_of(a) == f"cat {a.decision.probability:.1%}"
    known = replace(a.decision, probability=None, score=0.123456)
    assert title_of(replace(a, decisions=(known,))) == "cat: 0.123"
    assert title_of(replace(a, decisions=(replace(known, score=None),))) == "cat"


def test_a_label_too_long_for_its_title_is_cut_but_not_its_probability():
    a = explained()
    long = replace(a, decisions=(replace(a.decision, label="x" * 500, probability=0.5),))
    assert title_of(long) == f"{'x' * 80}… 50.0%"


@pytest.mark.parametrize(
    ("explain", "caption"),
    [
        (pl.SimpleGradient(), "Simple Gradient, explaining toy"),
        (pl.SmoothGrad(n_samples=3, noise_level=0.2, seed=7),
         "SmoothGrad, 3 samples at noise level 0.2, seed 7, relative error {}, explaining toy"),
        (pl.SmoothGrad.captum(seed=1),
         "SmoothGrad of |Simple Gradient|, 5 samples at sigma 1, seed 1, relative error {}, explaining toy"),
        (pl.SmoothGrad(n_samples=16, estimator=pl.Shrunk(pl.Antithetic())),
         "SmoothGrad (antithetic pairs, wavelet-shrunk), 16 samples at noise level 0.15, seed 0, relative error {}, "
         "explaining toy"),
    ],
)  # fmt: skip
def test_a_caption_names_the_method_with_its_settings(explain, caption):
    a = explained(explain=explain)
    error = "" if a.estimated_error is None else f"{float(a.estimated_error):.2g}"
    assert method_caption([a]) == caption.format(error)


def test_a_caption_says_where_there_is_no_signal_yet():
    a = explained(explain=pl.SmoothGrad(n_samples=2))
    assert ", no signal yet, explaining toy" in method_caption([a])


def sampled(a: pl.Attribution, *inputs: tuple[int, float]) -> pl.Attribution:
    """The same with so many samples and such errors."""
    samples, errors = zip(*inputs, strict=True)
    return replace(a, estimate=replace(a.estimate, samples=samples, error=torch.tensor(errors)))


@pytest.mark.parametrize(
    ("each", "words"),
    [
        ([[(4, 0.5), (4, 0.25)]], "4 samples at noise level 0.15, seed 0, relative error 0.25 to 0.5, explaining"),
        ([[(4, 0.5)], [(16, 1.25)]], "4 to 16 samples at noise level 0.15, seed 0, relative error 0.5 to 1.2, explain"),
        ([[(4, 0.5), (4, float("inf"))]], "seed 0, relative error 0.5, no signal yet in 1 of 2, explaining"),
        ([[(4, 0.00123)]], "relative error 0.0012, explaining"),
    ],
)
def test_a_caption_of_several_inputs_speaks_of_all(each, words):
    a = explained()
    assert words in method_caption([sampled(a, *inputs) for inputs in each])


def test_a_comparison_names_the_estimators():
    smooth = pl.SmoothGrad(n_samples=16, estimator=pl.Shrunk())
    assert method_title(smooth) == "SmoothGrad (wavelet-shrunk)"
    assert method_title(pl.SmoothGrad()) == "SmoothGrad"
    assert method_title(pl.SimpleGradient()) == "Simple Gradient"


# metadata


def test_the_recipes_are_in_the_file_and_can_be_run_again(tmp_path):
    a = explained()
    for drawing in (pl.heatmap(a), pl.overlay(a), pl.page([a])):
        with Image.open(drawing.save(tmp_path / "a.png")) as image:
            (recipe,) = json.loads(image.text["pellucid"])
        assert Recipe(**recipe) == a.recipe
    again = replace(a, recipe=Recipe(**recipe)).reproduce(MODEL, MODEL.read(WIDE))
    assert torch.equal(again.scores, a.scores)


def test_the_same_call_gives_the_same_file():
    assert pl.page([explained()]).png() == pl.page([explained()]).png()


# comparison


def test_a_comparison_has_a_row_a_method_and_a_column_for_the_input_and_each_copy(composed):
    results = pl.stability(MODEL, MODEL.read(WIDE), [pl.SimpleGradient(), SMOOTH], level=0.01, copies=2)
    pl.comparison_page(results, noise="Independent noise.")
    rows, metadata, caption = composed[0]
    assert [len(row) for row in rows] == [3, 3]
    assert [row[0].title.split("\n")[0] for row in rows] == ["Simple Gradient", "SmoothGrad"]
    assert all(len({panel.bar.limit for panel in row}) == 1 for row in rows)
    assert [recipe["explainer"]["type"] for recipe in json.loads(metadata)] == ["SimpleGradient", "SmoothGrad"]
    assert caption.endswith("Independent noise.")


def test_each_copy_is_titled_with_its_own_decision_and_its_similarity_to_the_input(composed):
    (result,) = pl.stability(MODEL, MODEL.read(WIDE), [SMOOTH], level=0.2, copies=2)
    assert len({title_of(a) for a in (result.original, *result.copies)}) == 3
    pl.comparison_page([result])
    first = np.abs(result.original.scores[0].numpy()).max(0)
    for panel, a, rank in zip(composed[0][0][0][1:], result.copies, result.rank_correlations, strict=True):
        alike = pl.structural_similarity(first, np.abs(a.scores[0].numpy()).max(0))
        assert panel.title == f"{title_of(a)}\nrank correlation {rank:.2f}, SSIM {alike:.2f}"


# gallery


def test_a_gallery_shows_the_crop_and_then_each_method_on_its_own_scale(composed):
    maps = [explained(explain=e) for e in (pl.SimpleGradient(), pl.GradCAM(), pl.IntegratedGradients(n_steps=5))]
    pl.gallery(maps)
    [[rows, _, caption]] = composed
    photo, simple, grad_cam, integrated = [panel for row in rows for panel in row]
    assert photo.pixels.shape == simple.pixels.shape == grad_cam.pixels.shape == (448, 448, 3)  # a square of 30 x 20
    assert photo.title.startswith("the photo as the model sees it")
    assert [p.title for p in (simple, grad_cam, integrated)] == ["Simple Gradient", "Grad-CAM", "Integrated Gradients"]
    assert not grad_cam.bar.signed
    assert integrated.bar.signed
    change, [residual] = maps[2].recipe.notes["change"][0], maps[2].residual.tolist()
    assert integrated.note == f"sums to {change + residual:.3g} of {change:.3g}"
    assert "99th percentile" in caption


def test_a_gallery_breaks_into_rows_of_four(composed):
    pl.gallery([explained(explain=pl.SimpleGradient())] * 6)
    assert [len(row) for row in composed[0][0]] == [4, 3]


@pytest.mark.doors
@pytest.mark.parametrize(
    ("error", "words"), [(0.46, ", error 0.46"), (float("inf"), "no signal yet"), (None, "n = 60")]
)
def test_a_gallery_tells_the_error_of_each_sampled_map(error, words):
    model = pl.FunctionModel(lambda rows: rows.mean((1, 2, 3)), output="regression")
    a = pl.LIME(segments=pl.Patches(2), budget=60)(model, uniform(1, 3, 8, 8))
    told = None if error is None else torch.tensor([error])
    assert taken(replace(a, estimate=replace(a.estimate, error=told))).endswith(words)


def test_a_gallery_of_nothing_or_of_a_bare_tensor_is_refused():
    with pytest.raises(pl.ArgumentError, match="at least one attribution"):
        pl.gallery([])
    with pytest.raises(pl.ArgumentError, match="read from a picture"):
        pl.gallery([pl.SimpleGradient()(MODEL, uniform(1, 3, 16, 16))])


# maps of cells


def test_a_map_of_cells_is_drawn_with_the_pixels_of_the_input(composed):
    a = explained(explain=pl.GradCAM())
    assert a.scores.shape[2:] == (7, 7)
    pl.page([a])
    [[panels]] = [rows for rows, _, _ in composed]
    assert panels[1].bar.values.shape == (16, 16)


def test_the_uncertainty_of_a_map_of_cells_is_that_of_its_cells():
    a = explained(explain=pl.SmoothGrad(base=pl.GradCAM(), n_samples=32))
    found = certain_blocks(a, block=2)
    assert found.pixels.shape == (16, 16)
    columns = (np.arange(16) + 0.5) * 7 // 16  # of which cell each pixel is
    for cell in range(7):
        assert (found.pixels[:, columns == cell] == found.pixels[:, columns == cell][:, :1]).all()


# comparison


@pytest.mark.doors
def test_a_comparison_of_nothing_is_refused():
    with pytest.raises(pl.ArgumentError, match=r"at least one method\. Got none"):
        pl.comparison_page([])
