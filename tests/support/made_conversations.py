"""Conversations that hypothesis makes: scripts, blanks, code, and words that look like markers."""

from hypothesis import strategies as st

from nemo_xtoken.data.conversation.chat import conversation_text, messages_of

__all__ = ["TOOLS", "conversations", "with_calls"]

TEXT = st.text(
    st.one_of(
        st.sampled_from("ab \n\t.,2019<|>_é今🙂\u00a0"),
        st.characters(max_codepoint=0x2FFF, exclude_categories=["Cs", "Co", "Cc"]),
    ),
    max_size=30,
)
SAID = st.one_of(
    TEXT, st.sampled_from(["Yes", " no", "<|end|>", "</s>", "<end_of_turn>x", "def f():\n    pass", "2 + 2\n"])
)


@st.composite
def conversations(draw):
    """Questions and answers in turn, sometimes behind a system message; the assistant says something."""
    said = draw(st.lists(st.tuples(SAID, SAID.filter(lambda text: text.strip() != "")), min_size=1, max_size=3))
    out = [{"role": "system", "content": draw(SAID)}] if draw(st.booleans()) else []
    for question, answer in said:
        out += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages_of(conversation_text(out, "here"))


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "of a place",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "a city"},
                    "days": {"type": "integer", "description": "how many"},
                },
                "required": ["city"],
            },
        },
    }
]
ARGUMENTS = st.fixed_dictionaries(
    {"city": TEXT},
    optional={"days": st.integers(-9, 99), "on": st.booleans(), "all": st.lists(TEXT, max_size=2), "of": st.none()},
)


@st.composite
def with_calls(draw):
    """Questions that are answered after reasoning, some of them after calls of a tool."""
    out = []
    for _ in range(draw(st.integers(1, 2))):
        out.append({"role": "user", "content": draw(SAID.filter(lambda text: text.strip() != ""))})
        for _ in range(draw(st.integers(0, 2))):
            call = {"type": "function", "function": {"name": "weather", "arguments": draw(ARGUMENTS)}}
            out.append({"role": "assistant", "content": draw(TEXT), "tool_calls": [call]})
            out.append({"role": "tool", "content": draw(TEXT.filter(lambda t: t.strip() != "")), "name": "weather"})
        answer = {"role": "assistant", "content": draw(SAID.filter(lambda text: text.strip() != ""))}
        if draw(st.booleans()):
            answer["reasoning_content"] = draw(TEXT)
        elif draw(st.booleans()):
            answer["content"] = "<think>\n" + draw(st.sampled_from(["So.", "a\n\nb", ""])) + "\n</think>\n\nYes"
        out.append(answer)
    return messages_of(conversation_text(out, "here", TOOLS if draw(st.booleans()) else None))
