import pytest

import pellucid as pl
from pellucid.catalogue import find, registered


def test_every_method_is_found_by_its_name_however_it_is_written():
    assert find("smooth-grad") is find("SmoothGrad") is find("smooth_grad") is find(" Smooth Grad ") is pl.SmoothGrad


def test_an_unknown_name_lists_the_near_ones():
    with pytest.raises(pl.ArgumentError, match=r"Did you mean smooth-grad"):
        find("smoth-grad")
    with pytest.raises(pl.ArgumentError, match=r"linear-explanation"):
        find("zzz")


def test_queries_partition_the_catalogue():
    for query in [{}, {"scope": "local"}, {"access": "black-box"}, {"budget": 2}, {"modality": "text"}]:
        found = pl.methods(**query)
        names = (*found.names, *(e.card.name for e in found.excluded))
        assert sorted(names) == sorted(registered())


def test_every_exclusion_has_all_its_reasons():
    found = pl.methods(scope="global", access="black-box")
    reasons = {e.card.name: e.reasons for e in found.excluded}
    assert reasons["smooth-grad"] == ("scope is local", "access is white-box")
    assert reasons["linear-explanation"] == ("access is white-box",)


def test_the_budget_counts_passes_there_and_back():
    assert "simple-gradient" in pl.methods(budget=2).names
    assert "simple-gradient" not in pl.methods(budget=1).names
    excluded = {e.card.name: e.reasons for e in pl.methods(budget=99).excluded}
    assert excluded["smooth-grad"] == ("takes 100 passes, more than 99",)


def test_the_taxonomys_reference_comes_out_of_the_query():
    axes = {"scope": "global", "access": "white-box", "stage": "intrinsic", "applicability": "model-specific"}
    assert pl.methods(**axes).names == ("linear-explanation",)


@pytest.mark.doors
def test_values_that_an_axis_does_not_have_are_refused():
    with pytest.raises(pl.ArgumentError, match=r"`scope` is one of 'local', 'global'. Got 'everywhere'"):
        pl.methods(scope="everywhere")


def test_methods_of_installed_packages_are_found(monkeypatch):
    import types

    from pellucid import catalogue

    module = types.ModuleType("elsewhere")

    class Mine(pl.SimpleGradient):
        @property
        def card(self):
            from dataclasses import replace

            return replace(super().card, name="mine")

    Mine.__module__ = "elsewhere"
    module.Mine = Mine
    entry = types.SimpleNamespace(load=lambda: module)
    monkeypatch.setattr(catalogue, "entry_points", lambda group: [entry] if group == "pellucid.explainers" else [])
    registered.cache_clear()
    try:
        assert find("mine") is Mine
    finally:
        registered.cache_clear()
