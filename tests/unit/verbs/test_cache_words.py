"""What `xtoken cache` makes of its words: the text as the run has it."""

import dataclasses
import json

import pytest

from nemo_xtoken.commands.verb import UsageError, parse_arguments
from nemo_xtoken.commands.verbs.cache import OWN, VERB, data_config
from nemo_xtoken.data.config import DataConfig

#: Another value than the default for every setting of the data.
OTHER = {
    "paths": ["texts"],
    "student_length": 512,
    "teacher_length": 256,
    "format": "chat",
    "text_key": "content",
    "messages_key": "talk",
    "tools_key": "functions",
    "learn": "answers",
    "chat_template": "template.jinja",
    "text_split": "line",
    "split": "test",
    "indexed_tokenizer": "tok",
    "on_error": "skip",
    "held_out": 0.25,
    "held_out_paths": ["other"],
    "pack": False,
    "sources": {},
    "seed": 7,
    "align": "dp",
    "workers": 3,
    "cache_dir": "elsewhere",
    "progress": False,
}


def config_of(*words):
    return data_config(parse_arguments(VERB, ["out=states", "teacher=t", "paths=texts", *words]))


def test_every_setting_of_the_data_is_heeded():
    assert [field.name for field in dataclasses.fields(DataConfig)] == list(OTHER)
    for name, value in OTHER.items():
        if name == "paths":
            continue
        for prefix in ("data.text.", *["data."] * (name not in OWN)):  # data.teacher_length is taken for a slip
            assert getattr(config_of(f"{prefix}{name}={json.dumps(value)}"), name) == value, name
    assert [getattr(config_of(f"{name}=300"), name) for name in OWN[1:]] == [300, 300]
    assert config_of() == DataConfig(["texts"])


@pytest.mark.parametrize("name", OWN)
def test_a_setting_is_given_once(name):
    own = [] if name == "paths" else [f"{name}=300"]
    with pytest.raises(UsageError, match=f"{name} is given twice"):
        config_of(*own, f"data.text.{name}=400")
    with pytest.raises(UsageError, match="seed is given twice"):
        config_of("data.seed=1", "data.text.seed=2")
