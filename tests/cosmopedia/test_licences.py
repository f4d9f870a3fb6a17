"""Licences: the strictest of several is named, and none is promised that the sources do not allow."""

import pytest

from cosmopedia.licences import LICENCES, front_matter, licence, terms, terms_of_model


@pytest.mark.parametrize(
    ("rows", "models", "hub"),
    [
        (["CC0-1.0"], ["mistralai/Mixtral-8x7B-Instruct-v0.1"], "apache-2.0"),
        (["CC0-1.0"], ["SmolLM2-135M-Instruct.Q4_1"], "apache-2.0"),
        (["CC0-1.0"], ["cosmopedia-smoke"], "cc0-1.0"),
        (["MIT", "ODC-By-1.0", "CC-BY-4.0"], ["HuggingFaceTB/SmolLM2-360M-Instruct"], "cc-by-4.0"),
        (["ODC-By-1.0", "cc-by-sa-4.0", "CC-BY-4.0"], ["Mixtral-8x7B-v0.1"], "cc-by-sa-4.0"),
        (["CC-BY-SA-3.0", "CC-BY-SA-4.0"], ["Mixtral-8x7B-v0.1"], "cc-by-sa-4.0"),  # adaptations of 3.0 may have 4.0
        (["CC-BY-NC-SA-3.0", "CC-BY-4.0"], ["Mixtral-8x7B-v0.1"], "cc-by-nc-sa-3.0"),
        (["CC-BY-4.0"], ["meta-llama/Llama-3.1-8B-Instruct"], "llama3.1"),
        (["CC-BY-SA-4.0"], ["meta-llama/Llama-3.1-8B-Instruct"], "other"),  # two licences that bind
        (["CC-BY-SA-4.0", "CC-BY-NC-SA-4.0"], ["Mixtral-8x7B-v0.1"], "other"),
        (["CC-BY-ND-4.0"], ["Mixtral-8x7B-v0.1"], "other"),
        (["All rights reserved"], ["Mixtral-8x7B-v0.1"], "other"),
        ([None], ["Mixtral-8x7B-v0.1"], "other"),
        (["CC0-1.0"], ["TinyLlama/TinyLlama-1.1B-Chat-v1.0"], "other"),  # no Llama of Meta's, and none in the table
        ([], [], "other"),
    ],
)
def test_the_strictest_of_rows_and_generator_is_the_licence(rows: list, models: list[str], hub: str):
    whole = terms(rows, models)
    assert front_matter(whole)["license"] == hub
    assert bool(whole.why_other()) == (hub == "other" and bool(rows))


def test_what_may_not_be_passed_on_is_named_with_the_reason():
    whole = terms(["CC-BY-ND-4.0", "other", "", "CC-BY-NC-4.0"], ["acme/secret-model", "Llama-2-7b-chat-hf"])
    assert whole.refusals() == {
        "(none)": "it is not known what it allows",
        "other": "it is not known what it allows",
        "acme/secret-model": "it is not known what it allows",
        "CC-BY-ND-4.0": "it allows no adaptation to be shared",
    }
    trained = whole.refusals(training=True)
    assert trained.keys() - whole.refusals().keys() == {"Llama 2 Community License"}


@pytest.mark.parametrize(
    ("model", "hub"),
    [
        ("meta-llama/Meta-Llama-3-70B-Instruct", "llama3"),
        ("meta-llama/Llama-3.3-70B-Instruct", "llama3.3"),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "llama4"),
        ("Qwen/Qwen2.5-7B-Instruct", "apache-2.0"),
        ("Qwen/Qwen2.5-3B-Instruct", None),  # the 3B has a research licence
        ("mistralai/Mistral-Large-Instruct-2407", None),
        ("microsoft/phi-4", "mit"),
    ],
)
def test_a_models_terms_go_by_its_id(model: str, hub: str | None):
    found = terms_of_model(model)
    assert (found.hub if found else None) == hub


def test_every_licence_is_found_by_its_spdx_name_and_the_hubs():
    for one in LICENCES:
        assert licence(one.spdx) is one and licence(one.hub.upper()) is one and one.url.startswith("https://")
    assert [one.spdx for one in LICENCES if one.share_alike and not one.attribution] == []
