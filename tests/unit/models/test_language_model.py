"""The language model inside another: what is its configuration, which weights are its own, what is said of the rest."""

import pytest

from nemo_xtoken.weights.language_model import is_inside, language_config, language_tensors, left_aside

#: How published models name their weights: the language model's prefix, its output layer, and what is beside it.
PUBLISHED = {
    "gemma3": ("language_model.model.", None, ["vision_tower.x", "multi_modal_projector.y"]),
    "mistral3": (
        "language_model.model.",
        "language_model.lm_head.weight",
        ["vision_tower.x", "multi_modal_projector.y"],
    ),
    "llama4": ("language_model.model.", "language_model.lm_head.weight", ["vision_model.x", "multi_modal_projector.y"]),
    "qwen3_5": ("model.language_model.", "lm_head.weight", ["model.visual.x", "mtp.y"]),
}
OWN = ["embed_tokens.weight", "layers.0.mlp.up_proj.weight", "norm.weight"]


@pytest.mark.parametrize("kind", PUBLISHED)
def test_the_weights_have_the_names_of_a_model_by_itself(kind):
    prefix, output, others = PUBLISHED[kind]
    expected = {f"model.{name}": prefix + name for name in OWN} | ({"lm_head.weight": output} if output else {})
    assert language_tensors([*expected.values(), *others]) == expected
    text = {"model_type": f"{kind}_text"}
    said = left_aside({"model_type": kind, "text_config": text}, [*expected.values(), *others])
    parts = ", ".join(sorted(name.rpartition(".")[0] for name in others))
    assert said == f"is a {kind}: its language model alone is used, and 2 other weights ({parts}) left aside"


def test_a_language_model_is_as_it_is():
    names = ["model.embed_tokens.weight", "lm_head.weight", "mtp.fc.weight"]
    assert language_tensors(names) == {name: name for name in names}
    assert language_config({"model_type": "llama"}) == {"model_type": "llama"}
    assert left_aside({"model_type": "llama"}, names) is None


@pytest.mark.parametrize(
    ("whole", "own", "tied"),
    [({}, {}, None), ({}, {"tie_word_embeddings": True}, True)]
    + [({"tie_word_embeddings": said}, {"tie_word_embeddings": not said}, said) for said in (True, False)],
)
def test_whether_the_output_layer_is_the_embedding_the_whole_model_says(whole, own, tied):
    """As transformers takes it; what the whole leaves out is its language model's own."""
    config = {"model_type": "gemma3", "hidden_size": 7, **whole, "text_config": {"model_type": "gemma3_text", **own}}
    assert is_inside(config)
    assert language_config(config).get("tie_word_embeddings") == tied
    assert "hidden_size" not in language_config(config)
