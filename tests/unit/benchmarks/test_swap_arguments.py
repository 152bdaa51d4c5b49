"""The command line of benchmarks/swap.py, as docs/models.md has it."""

import pytest
import swap


class Stop(Exception):
    pass


@pytest.mark.parametrize("before", [["run", "--model", "m"], ["--model", "m", "run"]])
@pytest.mark.parametrize("overrides", [[], ["trainer.max_steps=3", "log.name=x"]])
def test_settings_of_the_recipe_follow_two_dashes(before, overrides, monkeypatch):
    seen = []

    def train(given):
        seen.append(given)
        raise Stop

    monkeypatch.setattr(swap, "train", train)
    words = [*before, "--tokenizer", "t", "--text", "a", "b", "--on", "x=y", *(["--", *overrides] if overrides else [])]
    with pytest.raises(Stop):
        swap.main(words)
    [given] = seen
    assert (str(given.run), given.model, given.text, given.on) == ("run", "m", ["a", "b"], ["x=y"])
    assert given.overrides == overrides
