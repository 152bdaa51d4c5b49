"""Looking into W: tokens by text, expression and id; statistics; junk weights."""

import dataclasses

import numpy as np
import pytest
from nemo_rl_files import with_scale_trick
from tokenizer_zoo import zoo

from nemo_xtoken.errors import InputError
from nemo_xtoken.projection.build import RULES, ProjectionRule, build_projection
from nemo_xtoken.projection.inspection import find_tokens, statistics, unexpected_weights
from nemo_xtoken.projection.nemo_rl import read_nemo_rl


@pytest.fixture(scope="module")
def pair():
    return zoo()["llama"], zoo()["qwen"]


def test_tokens_are_found_by_text_expression_and_id(pair):
    student = pair[0]
    assert find_tokens(student, token="987") == [student.id_of_bytes[b"987"]]
    assert find_tokens(student, token=" the") == [student.id_of_bytes[b" the"]]
    assert find_tokens(student, token="\n") == find_tokens(student, token="\\n") == [student.id_of_bytes[b"\n"]]
    assert find_tokens(student, token="<bos>") == [student.bos_id]
    assert find_tokens(student, token="\\xE4") == [student.id_of_bytes[b"\xe4"]]
    assert find_tokens(student, id=5) == [5]
    hundreds = find_tokens(student, regex=r"^1\d\d$")
    assert [student.display(i) for i in hundreds] == sorted(
        map(str, range(100, 200)), key=lambda t: hundreds.index(student.id_of_bytes[t.encode()])
    )
    assert hundreds == sorted(hundreds)


@pytest.mark.parametrize(
    ("wanted", "message", "fix"),
    [
        ({"token": " 987"}, "no token ' 987'", "it has '987'"),
        ({"token": "98765"}, "no token '98765'", "'987' '65'"),
        ({"token": ""}, "no token ''", "try another"),
        ({"regex": "zzzzzz"}, "no token like 'zzzzzz'", "try another"),
        ({"regex": "("}, "regex='\\('", "quote"),
        ({"id": -1}, "id=-1", "change the id"),
        ({"id": 10**6}, "id=1000000", "change the id"),
    ],
)
def test_what_cannot_be_found_is_named(pair, wanted, message, fix):
    with pytest.raises(InputError, match=message) as error:
        find_tokens(pair[0], **wanted)
    assert fix in error.value.fix


def test_statistics_add_up(pair):
    student, teacher = zoo()["tiktoken"], zoo()["llama"]  # ids with gaps
    w = build_projection(student, teacher)
    told = statistics(w, student, teacher)
    assert sum(told["rows"].values()) + told["ids_without_token"] == student.size
    assert told["rows"]["exact"] == w.coverage["exact"]
    assert told["ids_without_token"] == 5
    assert sum(told["entries_per_row"].values()) == sum(told["rows"].values())
    assert sum(int(n) * count for n, count in told["entries_per_row"].items()) == told["entries"]
    teachers = told["teacher"]
    assert teachers["reached"] + teachers["unreached"] == teachers["tokens"] == teacher.size
    assert sum(teachers["unreached_by_class"].values()) == teachers["unreached"]
    assert sum(teachers["by_class"].values()) == teachers["tokens"]
    assert all(teachers["unreached_by_class"][c] <= teachers["by_class"][c] for c in teachers["unreached_by_class"])
    missed = [t["id"] for t in teachers["unreached_examples"]]
    assert missed == sorted(missed)
    assert not w.reached[missed].any()
    assert all(teacher.token_bytes[t] for t in missed)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("names", [("llama", "qwen"), ("sp_bpe", "llama"), ("tiktoken", "sp_unigram")])
def test_a_built_w_has_no_unexpected_weights(names, rule):
    student, teacher = (zoo()[name] for name in names)
    told = unexpected_weights(build_projection(student, teacher, ProjectionRule.named(rule)), student, teacher)
    assert (told["differing"], told["stray"], told["stray_weight"]) == (0, 0, 0.0)
    assert told["rule"]["gamma"] == ProjectionRule.named(rule).gamma


def test_junk_of_the_scale_trick_is_found(pair, tmp_path):
    student, teacher = pair
    paper, sink = build_projection(*pair), teacher.id_of_bytes[b"!"]
    matrix, _ = read_nemo_rl(with_scale_trick(paper, tmp_path / "w.pt", sink), *pair)
    told = unexpected_weights(matrix, student, teacher)
    assert told["compared_with"] == "the rule 'paper'"
    own = int((paper.ids == sink).any(1).sum())  # '!' is a piece of these
    filled = int(paper.empty_rows.sum())
    assert told["filled"] == filled > 0
    assert told["emptied"] == 0
    assert told["stray"] == student.size - own
    assert told["differing"] >= told["stray"]
    assert told["stray_tokens"] == [{"id": sink, "token": "!", "rows": told["stray"]}]
    share = (filled + (told["stray"] - filled) / 6) / told["stray"]
    assert told["stray_weight"] == pytest.approx(share, abs=0.003)
    assert told["examples"][0]["stray"] == 1.0  # rows of junk alone first
    assert told["examples"][0]["expected"] == []


def test_weights_that_moved_between_own_pieces_are_no_junk(pair):
    """A learned W differs from its rule, but names no other tokens."""
    student, teacher = pair
    paper = build_projection(*pair)
    used = paper.ids >= 0
    even = np.where(used, 1 / np.maximum(used.sum(1, keepdims=True), 1), 0).astype(np.float32)
    told = unexpected_weights(dataclasses.replace(paper, weights=even), student, teacher)
    assert told["differing"] == (used.sum(1) > 1).sum() > 0
    assert told["stray"] == 0


def test_first_pieces_of_long_tokens_are_their_own(pair):
    student, teacher = zoo()["qwen"], zoo()["sp_bpe"]
    cut = build_projection(student, teacher, ProjectionRule.named("paper"))
    whole = dataclasses.asdict(ProjectionRule.named("whole"))
    told = unexpected_weights(dataclasses.replace(cut, rule=whole), student, teacher)
    assert told["filled"] == cut.coverage["truncated"] > 0
    assert told["stray"] == 0


def test_lost_rows_are_counted(pair):
    paper = build_projection(*pair)
    ids, weights = paper.ids.copy(), paper.weights.copy()
    ids[:50], weights[:50] = -1, 0
    told = unexpected_weights(dataclasses.replace(paper, ids=ids, weights=weights), *pair)
    assert told["emptied"] == told["differing"] == 50
