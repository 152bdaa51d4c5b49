"""Texts of five kinds for benchmarks, from what every machine with Python has; as long as is asked for."""

import random
import sysconfig
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["KINDS", "text_of"]

SEED = 2605
# A sentence has one of each line: when, who, does, what, and the rest of it.
_CHINESE = """昨天 今天早上 去年 上个星期 明天 每天晚上 很久以前 三月份 周末 最近
我们 他们 老师 学生 研究人员 这个模型 小王 邻居 医生 记者 图书馆 那座城市 科学家 农民 母亲 孩子们
学习 讨论 发现 解释 参观 设计 翻译 比较 整理 记录 购买 修理 研究 介绍 喜欢 分析
语言 历史 新的方法 数学问题 一本旧书 这篇文章 城市的交通 人工智能 实验的结果 诗歌 机器 音乐 概率分布 词表 天气
，所以大家都很高兴。 ，但是没有人知道为什么。 。 ，并且写了一份报告。 ！ ，后来又改变了主意。 ，这是非常重要的。"""
_ACCENTED = """un été là-bas nous étions à la plage où le café était fermé der Fluß fließt größer und größer
el niño comió una piña mañana Ångström naïve plain words of no account"""


def _english() -> Iterator[str]:
    """The interpreter's own documentation."""
    from pydoc_data.topics import topics

    return (topics[name] for name in sorted(topics))


def _code() -> Iterator[str]:
    """The standard library's modules."""
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        yield file.read_text("utf-8", "replace")


def _chinese() -> Iterator[str]:
    """Sentences put together from word lists, which is why they mean little."""
    rng = random.Random(SEED)
    lists = [line.split() for line in _CHINESE.splitlines()]
    while True:
        sentences = ("".join(rng.choice(words) for words in lists) for _ in range(rng.randrange(2, 8)))
        yield "".join(sentences) + "\n"


def _digits() -> Iterator[str]:
    """Sums and tables of numerals."""
    rng = random.Random(SEED)
    while True:
        a, b = rng.randrange(10 ** rng.randrange(1, 9)), rng.randrange(10 ** rng.randrange(1, 9))
        yield rng.choice((f"{a} + {b} = {a + b}\n", f"{a:,}\t{b / 1000:.3f}\t{a * b}\n"))


def _decomposed() -> Iterator[str]:
    """European words whose accents are characters of their own (NFD): tokenizers that normalise give other bytes."""
    rng, words = random.Random(SEED), unicodedata.normalize("NFD", _ACCENTED).split()
    while True:
        yield " ".join(rng.choice(words) for _ in range(40)) + "\n"


KINDS: dict[str, Callable[[], Iterator[str]]] = {
    "English": _english,
    "code": _code,
    "Chinese": _chinese,
    "digits": _digits,
    "accents apart": _decomposed,
}


def text_of(kind: str, characters: int) -> str:
    """So many characters of a kind in `KINDS`; a source that ends starts anew."""
    parts: list[str] = []
    length = 0
    while length < characters:
        for part in KINDS[kind]():
            parts.append(part)
            length += len(part)
            if length >= characters:
                break
    return "".join(parts)[:characters]
