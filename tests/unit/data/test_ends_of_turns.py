"""Which tokens are labels where one reaches over the beginning or the end of a turn, by byte counts."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_conversations import TEXT
from tokenizer_zoo import zoo

from nemo_xtoken.data.conversation.chat import Message
from nemo_xtoken.data.templates import ChatTemplate

#: Template's text in front of and behind a user's message, in front of an assistant's, and what ends its turn.
FORMS = {
    "line breaks": ("\n", "\n", "", "\n"),
    "paragraphs": ("\n\n", "\n\n", "", "\n\n"),
    "nothing ends a turn": ("\n", "\n", "", ""),
    "no text of its own": ("", "", "", ""),
    "brackets": ("(", ")", "(", ")"),
    "blanks": (" ", " ", " ", " "),
    "a blank before the next": (" ", "\n", "", ""),
    "names": ("u: ", "\n", "a: ", "\n"),
    "a line break before the name": ("\nu: ", "\n", "a: ", ""),
    "digits": ("1", "2", "3", "4"),
    "part of a character": ("", "é", "", "é"),
}
SAID = st.one_of(TEXT, st.sampled_from(["yes)", "no.", "¡", "今", "🙂", "12", "a", ").", "it's", "été", "\u0301"]))
NAMES = ("qwen", "llama", "tiktoken")


def template(form):
    user, asked, assistant, ended = (repr(text) for text in FORMS[form])
    return (
        f"{{% for m in messages %}}{{% if m.role == 'user' %}}{{{{ {user} + m.content + {asked} }}}}"
        f"{{% else %}}{{{{ {assistant} + m.content + {ended} }}}}{{% endif %}}{{% endfor %}}"
    )


def wanted(side, form, conversation):
    """Ids and labels: from where a prompt differs, tokens that begin before a turn's end and hold no other message."""
    user, asked, assistant, ended = FORMS[form]
    data, others, turns = b"", [], []
    for m in conversation:
        before, behind = (user, asked) if m.role == "user" else (assistant, ended)
        data += before.encode()
        start = len(data)
        data += m.text.encode()
        others.append((start, len(data)))
        data += behind.encode()
        if m.role == "assistant":
            turns.append((start, len(data), len(others) - 1))
    ids = side.encode(data.decode()).tolist()
    ends = np.cumsum([0, *(len(side.token_bytes[i]) for i in ids)]).tolist()
    assert ends[-1] == len(data)
    labels = np.zeros(len(ids), bool)
    for start, end, number in turns:
        prompt = side.encode(data[:start].decode()).tolist()
        common = next((k for k, (a, b) in enumerate(zip(prompt, ids, strict=False)) if a != b), len(prompt))
        for k in range(common, len(ids)):
            alone = all(ends[k + 1] <= a or ends[k] >= b for i, (a, b) in enumerate(others) if i != number and a < b)
            labels[k] |= ends[k] < end and alone
    return ids, labels.tolist()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_labels_are_the_turns_and_no_other_messages(name, form):
    side = zoo()[name]
    rendering = ChatTemplate(side, template(form))

    @settings(max_examples=25, deadline=None)
    @example([("q", "yes)"), (")", "z.")])
    @example([("q", "¡"), ("1", "2")])
    @example([("a", "b"), ("c", "d")])
    @given(st.lists(st.tuples(SAID, SAID), min_size=1, max_size=3))
    def check(said):
        said = [(question.strip() or "?", answer.strip() or "!") for question, answer in said]
        conversation = [Message(r, t) for pair in said for r, t in zip(("user", "assistant"), pair, strict=True)]
        (found,) = rendering([conversation])
        ids, labels = wanted(side, form, conversation)
        assert found.ids.tolist() == ids
        learned = np.zeros(len(ids), bool)
        for start, end in found.turns.values():
            learned[start:end] = True
        assert learned.tolist() == labels

    check()


def labels_of(side, form, said):
    conversation = [Message(r, t) for pair in said for r, t in zip(("user", "assistant"), pair, strict=True)]
    (found,) = ChatTemplate(side, template(form))([conversation])
    return [side.decode_bytes(found.ids[start:end]) for start, end in found.turns.values()]


def test_a_token_over_the_end_of_a_turn_is_of_the_turn_unless_it_holds_text_of_another_message():
    side = zoo()["qwen"]
    assert side.id_of_bytes[b")\n"]
    assert side.id_of_bytes[b"es"]
    # `)` and the next message's line break are one token
    assert labels_of(side, "nothing ends a turn", [("q", "yes)"), ("q", "z)")]) == [b"yes)\n", b"z)"]
    # `e` and the `s` of the next question are one token
    assert labels_of(side, "no text of its own", [("q?", "(e"), ("s?", "(z")]) == [b"(", b"(z"]


def test_every_byte_of_the_last_character_is_a_label():
    """Transformers' mask ends with the first token of it."""
    side = zoo()["qwen"]
    for character in "¡今":
        assert len(side.encode(character)) == 2
        said = labels_of(side, "nothing ends a turn", [("q", character), ("q", "z")])
        assert said == [character.encode(), b"z"]
