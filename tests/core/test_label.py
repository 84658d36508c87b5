"""Names of classes: which one a person means, and when the answer must be a question."""

import pickle
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from pellucid.core.label import Labels
from pellucid.errors import ArgumentError, TargetError
from pellucid.models.imagenet import labels

IMAGENET = Labels(labels())
ANIMALS = Labels(("tabby, tabby cat", "tiger cat", "crane", "potter's wheel", "crane", "Bernese mountain dog"))


def message(of: Labels, text: str) -> str:
    with pytest.raises(TargetError) as caught:
        of.find(text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("tabby", 281),  # a synonym, though "tabby cat" has the word too
        ("tabby, tabby cat", 281),
        ("tiger cat", 282),
        ("golden retriever", 207),
        ("goldfish", 1),
        ("maillot_tank_suit", 639),  # all synonyms, as in the name of a file
    ],
)
def test_a_name_or_a_synonym_is_found(text: str, index: int) -> None:
    assert IMAGENET.find(text) == index


@pytest.mark.parametrize("text", ["Tiger Cat", "tiger-cat", "TIGER_CAT", "tigercat", " tiger  cat ", "tiger cat."])
def test_case_punctuation_and_spaces_do_not_matter(text: str) -> None:
    assert ANIMALS.find(text) == 1


@pytest.mark.parametrize("text", ["potter's wheel", "potters wheel", "potter\u2019s wheel"])
def test_an_apostrophe_does_not_matter(text: str) -> None:
    assert ANIMALS.find(text) == 3


@pytest.mark.parametrize("text", ["bernese", "Mountain dog", "dog, bernese"])
def test_words_that_one_class_alone_has_are_enough(text: str) -> None:
    assert ANIMALS.find(text) == 5


def test_a_word_loses_its_apostrophe_not_its_end() -> None:
    assert ANIMALS.find("potters") == 3


def test_a_part_of_a_word_is_not_enough() -> None:
    assert "Expected the name" in message(ANIMALS, "moun")


def test_words_spread_over_two_synonyms_are_not_enough() -> None:
    assert "Expected the name" in message(Labels(("husky, sled dog", "wolf")), "husky dog")


def test_a_whole_name_wins_over_words_of_another() -> None:
    assert Labels(("tiger cat", "cat")).find("cat") == 1


def test_an_exact_spelling_wins_where_punctuation_is_all_that_differs() -> None:
    assert [Labels(("<=50K", ">50K")).find(text) for text in ("<=50k", ">50K")] == [0, 1]


def test_names_that_differ_in_punctuation_only_are_ambiguous_without_it() -> None:
    assert message(Labels(("<=50K", ">50K")), "50K").startswith("'50K' fits 2 classes: 0 <=50K; 1 >50K.")


def test_a_name_without_any_letter_is_found() -> None:
    assert Labels(("-", "+")).find("+") == 1


def test_a_comma_between_digits_parts_no_synonyms() -> None:
    assert Labels(("1 dollar", "1,000 dollars")).short(1) == "1,000 dollars"


@pytest.mark.parametrize(("text", "index"), [("SCHÖN", 1), ("scho\u0308n", 1), ("schon", 0), ("虎猫!", 2)])
def test_letters_beyond_ascii_are_kept_apart(text: str, index: int) -> None:
    assert Labels(("schon", "schön", "虎猫")).find(text) == index


def test_vowel_signs_are_letters() -> None:
    # two syllables of Devanagari, ki and kii: one consonant, two signs; "!" leads past the exact spelling
    assert Labels(("\u0915\u093f", "\u0915\u0940")).find("\u0915\u0940!") == 1


@pytest.mark.parametrize("text", ["281", " 281 ", "+281"])
def test_digits_are_an_index(text: str) -> None:
    assert IMAGENET.find(text) == 281


def test_a_class_named_by_digits_wins_over_the_index() -> None:
    assert Labels(("3", "1", "7")).find("1") == 1
    assert Labels(("3", "7", "1")).find("1") == 2


@pytest.mark.parametrize("text", ["1000", "-1"])
def test_an_index_that_the_model_lacks_is_refused_with_the_range(text: str) -> None:
    assert message(IMAGENET, text) == f"The index of a class is 0 to 999 for this model. Got {text}."


def test_a_name_that_two_classes_share_is_refused_with_both() -> None:
    expected = "'crane' fits 2 classes: 134 crane; 517 crane. Name one by its index, for example '134'."
    assert message(IMAGENET, "crane") == expected


def test_a_synonym_that_is_another_classs_whole_name_is_refused_with_both() -> None:
    assert message(IMAGENET, "missile").startswith("'missile' fits 2 classes: 657 missile; 744 projectile, missile.")


def test_a_word_that_several_classes_have_is_refused_with_each() -> None:
    # by hand: the five cats, "Madagascar cat" and the lesser panda's "bear cat"; "polecat" is another word
    assert re.findall(r"\b(\d+) \w", message(IMAGENET, "cat"))[1:] == ["281", "282", "283", "284", "285", "383", "387"]


def test_a_word_that_many_classes_have_lists_eight_and_counts_the_rest() -> None:
    text = message(Labels(tuple(f"{kind} terrier" for kind in "abcdefghij")), "terrier")
    assert text.startswith("'terrier' fits 10 classes: 0 a terrier; 1 b terrier;")
    assert "; 7 h terrier; and 2 more. " in text


def test_eight_classes_are_listed_without_a_rest() -> None:
    text = message(Labels(tuple(f"{kind} terrier" for kind in "abcdefgh")), "terrier")
    assert "; 7 h terrier. Name one" in text


def test_an_unknown_name_is_refused_with_the_nearest_and_the_count() -> None:
    text = message(IMAGENET, "tabbi")
    assert text.startswith("Expected the name of one of the model's 1000 classes, or an index from 0 to 999. ")
    assert "Got 'tabbi'. The nearest names: 281 tabby, tabby cat" in text


def test_a_misspelled_word_of_a_longer_name_is_near() -> None:
    assert "207 golden retriever" in message(IMAGENET, "retreiver")


@pytest.mark.parametrize("text", ["", "  ", "?!", "qqqqzzzz"])
def test_a_text_like_no_name_is_refused_without_a_guess(text: str) -> None:
    assert message(IMAGENET, text).endswith(f"Got {text!r}. No name is spelled nearly so.")


@pytest.mark.parametrize("text", ["y" * 10_000, "9" * 10_000])
def test_a_long_text_is_clipped_in_the_error(text: str) -> None:
    assert len(message(IMAGENET, text)) < 300


def test_the_name_is_all_synonyms() -> None:
    assert IMAGENET.name(281) == "tabby, tabby cat"


def test_the_short_name_is_the_first_synonym() -> None:
    assert IMAGENET.short(281) == "tabby"


@pytest.mark.parametrize(("index", "short"), [(134, "crane (134)"), (517, "crane (517)"), (639, "maillot (639)")])
def test_a_short_name_that_two_classes_share_tells_its_index(index: int, short: str) -> None:
    assert IMAGENET.short(index) == short


def test_short_names_that_differ_in_case_only_tell_their_index() -> None:
    assert (IMAGENET.short(264), IMAGENET.short(474)) == ("Cardigan (264)", "cardigan (474)")


def test_all_short_names_differ() -> None:
    assert len({IMAGENET.short(index) for index in range(1000)}) == 1000


def test_a_short_name_with_its_index_is_found() -> None:
    assert IMAGENET.find("crane (517)") == 517


def test_a_class_without_a_name_is_called_by_its_index() -> None:
    assert Labels(("", "cat")).short(0) == "(0)"


def test_an_empty_text_does_not_mean_a_class_without_a_name() -> None:
    assert message(Labels(("", "cat")), "").startswith("Expected the name of one of the model's 2 classes")


@pytest.mark.parametrize("index", [-1, 6])
@pytest.mark.parametrize("ask", [Labels.name, Labels.short])
def test_an_index_outside_has_no_name(ask: Callable[[Labels, int], str], index: int) -> None:
    with pytest.raises(TargetError, match=f"0 to 5 for this model. Got {index}"):
        ask(ANIMALS, index)


@pytest.mark.parametrize("names", [(), "cat", ["cat"], ("cat", 1)])
def test_only_a_tuple_of_texts_names_the_classes(names: object) -> None:
    # past the constructor, where the type checker of the test run would answer first
    built = object.__new__(Labels)
    object.__setattr__(built, "names", names)
    with pytest.raises(ArgumentError, match="`names` is a tuple with a text for each class"):
        built.__post_init__()


def test_labels_stay_equal_after_use_and_pickling() -> None:
    used = Labels(("cat", "dog"))
    used.find("dog")
    assert pickle.loads(pickle.dumps(used)) == Labels(("cat", "dog"))


def test_neither_torch_nor_numpy_is_loaded() -> None:
    code = "import sys, pellucid.core.label; print({'torch', 'numpy'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
