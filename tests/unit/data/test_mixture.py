import dataclasses
import json
import logging
import random
from collections import Counter
from fractions import Fraction

import pytest
import torch
from fakes import STUDENT, TEACHER
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_xtoken.data import DataConfig, SourceConfig, Tokenization
from nemo_xtoken.data.mixing import Schedule, shares_of
from nemo_xtoken.errors import InputError


@settings(max_examples=60)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=7), st.integers(0, 300), st.integers(1, 200))
def test_no_source_is_ever_a_sample_ahead_or_behind(shares, start, length):
    schedule, total = Schedule(shares), sum(shares)
    seen = Counter()
    for n in range(2 * total + 5):
        source, number = schedule[n]
        assert number == seen[source]  # each source's samples in order, none left out
        assert schedule.index_of(source, number) == n
        seen[source] += 1
        for k, share in enumerate(shares):
            assert abs(seen[k] - Fraction((n + 1) * share, total)) < 1
        assert schedule.counts(n + 1) == [seen[k] for k in range(len(shares))]
    window = Counter(schedule[i][0] for i in range(start, start + length))
    most = 1 if len(shares) == 2 else 2
    assert all(abs(window[k] - Fraction(length * share, total)) < most for k, share in enumerate(shares))


def test_shares_are_the_weights_as_written():
    assert shares_of({"a": 0.7, "b": 0.2, "c": 0.1}) == (7, 2, 1)
    assert shares_of({"a": 3, "b": 3}) == (1, 1)
    assert shares_of({"a": 0.333, "b": 0.667}) == (333, 667)
    assert shares_of({"a": 5e11, "b": 2.5e11}) == (2, 1)
    odd = {"a": 123456789.0, "b": 987654321.0, "c": 1.0}
    shares = shares_of(odd)
    assert sum(shares) == 2**16
    assert min(shares) == 1  # however small
    for share, weight in zip(shares, odd.values(), strict=True):
        assert abs(share / sum(shares) - weight / sum(odd.values())) < 1.6e-5
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"sources\.b\.weight"):
            shares_of({"a": 1.0, "b": wrong})


@pytest.fixture
def files(tmp_path):
    rng = random.Random(1)
    texts = {
        "web": [f"the cat {n} sat {'abc ' * rng.randrange(30)}" for n in range(60)],
        "code": [f"{n} = ab{n}; {'12 345 ' * rng.randrange(9)}" for n in range(25)],
    }
    for name, key in (("web", "text"), ("code", "content")):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({key: t}) + "\n" for t in texts[name]))
    return tmp_path


def config(files, **options):
    sources = {
        "web": SourceConfig([str(files / "web.jsonl")], weight=0.75),
        "code": SourceConfig([str(files / "code.jsonl")], weight=0.25, text_key="content"),
    }
    options = {"cache_dir": str(files), "progress": False, "sources": sources} | options
    return DataConfig(student_length=64, teacher_length=60, **options)


def same(a, b) -> bool:
    """But for the number of the sample."""
    pairs = zip((a.student, *a.teachers), (b.student, *b.teachers), strict=True)
    names = lambda side: [f.name for f in dataclasses.fields(side) if f.name != "samples"]  # noqa: E731
    return all(torch.equal(getattr(x, n), getattr(y, n)) for x, y in pairs for n in names(x))


def test_samples_come_from_their_sources_in_proportion(files):
    mixed, held_out = config(files).build(STUDENT, [Tokenization(TEACHER)], 400)
    assert held_out is None
    assert len(mixed) == 400
    alone = {
        name: DataConfig([str(files / f"{name}.jsonl")], 64, 60, text_key=key, cache_dir=str(files), progress=False)
        .build(STUDENT, [Tokenization(TEACHER)], 400)[0]
        for name, key in (("web", "text"), ("code", "content"))
    }  # fmt: skip
    used = Counter()
    for i in range(400):
        sample = mixed[i]
        (name,) = {piece["source"] for piece in mixed.describe(i)}
        assert same(sample, alone[name][used[name]])
        assert sample.student.samples.tolist() == sample.teachers[0].samples.tolist() == [i]
        used[name] += 1
    assert used == {"web": 300, "code": 100}
    assert mixed.epochs(400) == {name: used[name] / data.epoch_length for name, data in alone.items()}
    assert mixed.epochs(400)["code"] > mixed.epochs(400)["web"] > 1
    with pytest.raises(IndexError):
        mixed[400]


def test_without_a_number_all_of_every_source_is_there(files):
    mixed, _ = config(files).build(STUDENT, [Tokenization(TEACHER)])
    epochs = mixed.epochs(len(mixed))
    assert min(epochs.values()) == 1
    assert min(mixed.epochs(len(mixed) - 1).values()) < 1


def test_each_source_has_its_own_held_out_documents(files):
    mixed, held_out = config(files, held_out=3).build(STUDENT, [Tokenization(TEACHER)], 10)
    seen = {"web": set(), "code": set()}
    for i in range(len(held_out)):
        for piece in held_out.describe(i):
            seen[piece["source"]].add(piece["text_digest"])
        assert held_out[i].student.samples.tolist() == [i]
    assert {name: len(texts) for name, texts in seen.items()} == {"web": 3, "code": 3}
    for i in range(len(mixed)):
        assert not {piece["text_digest"] for piece in mixed.describe(i)} & (seen["web"] | seen["code"])


def test_the_fingerprint_is_of_weights_seed_and_sources(files):
    def fingerprint(weight=0.75, **options):
        made = config(files, **options)
        made.sources["web"].weight = weight
        return made.build(STUDENT, [Tokenization(TEACHER)], 10)[0].fingerprint

    assert fingerprint() == fingerprint()
    assert len({fingerprint(), fingerprint(weight=1.0), fingerprint(seed=3)}) == 3


def test_what_a_mixture_does_not_take(files):
    with pytest.raises(InputError, match="paths beside sources"):
        config(files, paths=["x"]).check()
    with pytest.raises(InputError, match="no data at '/absent'"):
        config(files, sources={"a": SourceConfig(["/absent"])}).check()
    with pytest.raises(InputError, match="weight"):
        config(files, sources={"a": SourceConfig([str(files)], weight=0)}).check()
    with pytest.raises(InputError, match="num_samples=0"):
        config(files).build(STUDENT, [Tokenization(TEACHER)], 0)


def test_the_mixture_is_told(files, caplog):
    caplog.set_level(logging.INFO, "nemo_xtoken")
    config(files, progress=True).build(STUDENT, [Tokenization(TEACHER)], 40)
    told = caplog.text
    assert "web: 75.00% of the samples" in told
    assert "code: 25.00%" in told


def test_sources_as_plain_data(files):
    plain = {name: {k: v for k, v in vars(s).items() if v} for name, s in config(files).sources.items()}
    assert config(files, sources=plain) == config(files)
    with pytest.raises(InputError, match=r"sources\.web has wait"):
        config(files, sources={"web": {"paths": [], "wait": 1}})
