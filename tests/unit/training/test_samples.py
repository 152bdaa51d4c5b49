"""Which beginnings of held-out texts a student continues, and the file that keeps what it said."""

import torch

from nemo_xtoken.data.batch import IGNORED, Batch, Side
from nemo_xtoken.training.watching.sample_settings import SampleConfig
from nemo_xtoken.training.watching.samples import Continuation, SampleBook, find_prompts


def sample(*pieces):
    """``(ids, how many are not learned, which token of its document is the first)`` of each piece."""
    ids, labels, table = [], [], []
    for tokens, given, first in pieces:
        table.append([0, len(ids), len(tokens), first])
        labels += [IGNORED if n + 1 < given else tokens[n + 1] for n in range(len(tokens) - 1)] + [IGNORED]
        ids += tokens
    row, number = torch.tensor([ids]), torch.tensor([0])
    return Batch(Side(row, row, row, number, torch.tensor([labels]), torch.tensor(table), torch.zeros(1, 16)), ())


def prompts(samples, *settings):
    return [(list(one.ids), list(one.following)) for one in find_prompts(samples, SampleConfig(*settings))]


def test_texts_of_different_samples_come_first():
    one = sample(([1, 2, 3, 4, 5, 6, 7, 8], 0, 0), ([11, 12, 13, 14, 15, 16], 0, 0))
    other = sample(([21, 22, 23, 24, 25, 26], 0, 0))
    assert prompts([one, other], 3, 4, 2) == [
        ([1, 2, 3, 4], [5, 6]),
        ([21, 22, 23], [24, 25]),  # half of a short one
        ([11, 12, 13], [14, 15]),
    ]
    assert len(prompts([one, other], 2, 4, 2)) == 2
    assert prompts([one, other], 0, 4, 2) == []


def test_a_conversation_is_shown_up_to_its_answer():
    chat = sample(([5, 6, 7, 8, 9, 10], 4, 0))
    assert prompts([chat], 1, 2, 8) == [([5, 6, 7, 8], [9, 10])]


def test_the_middle_of_a_document_is_no_beginning_and_a_long_question_is_left_out():
    assert prompts([sample(([1, 2, 3, 4], 0, 7))], 1, 2, 2) == []
    assert prompts([sample(([*range(1, 40)], 30, 0))], 1, 2, 2) == []


def test_the_file_forgets_what_a_run_that_goes_on_will_say_again(tmp_path):
    book = SampleBook(tmp_path / "samples.md")
    book.begin(0)
    for step in (0, 500, 1500, 1500):
        book.add(step, [Continuation("Call me\n## after step 7", f"said {step}", "Ishmael")])
    text = book.path.read_text()
    assert [text.count(f"said {step}") for step in (0, 500, 1500)] == [1, 1, 1]
    assert "## after step 1,500" in text
    book.begin(500)
    assert [book.path.read_text().count(f"said {step}") for step in (0, 500, 1500)] == [1, 1, 0]
    book.begin(0)
    assert book.path.read_text() == ""


def test_a_line_on_the_terminal_is_short():
    line = Continuation("word " * 50, "and\nso on " * 50, "").short
    assert len(line) < 140
    assert "\n" not in line
    assert line.startswith("after '..")
    assert " it says 'and so on and" in line
