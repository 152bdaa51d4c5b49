"""Every ordered pair of some tokenizers: W is built, texts are aligned and checked, coverage is audited.

For each pair it builds W by the paper's rule, audits its coverage, and aligns texts of many kinds: emoji of several
characters, Chinese, Arabic, Hindi, code with tabs, rare characters that are cut into bytes, numerals, accents apart
from their letters; each of them also with a BOS on one side only, with a special token that one side parses and the
other spells out, and cut short at another place than the other side's.  What the aligner returns is compared with what
a plain walk over both byte streams says must be there.  The exit status is 1 if anything is wrong.

examples:
  python benchmarks/sweep.py ~/tokenizers/*
  python benchmarks/sweep.py meta-llama/Llama-3.2-1B Qwen/Qwen3-4B --json sweep.json --markdown sweep.md
"""

import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from bench import Parser, machine_line, write_json

from nemo_xtoken.alignment import Aligner
from nemo_xtoken.files import atomic_path
from nemo_xtoken.losses.options import recommend
from nemo_xtoken.projection.audit import audit_coverage
from nemo_xtoken.projection.build import build_projection
from nemo_xtoken.vocab import Vocabulary, load_vocabulary

TEXTS = {
    "English": 'It was 201 BC. "Don\'t," she said, walking 42.195 km; nobody had asked her to.\n\nIndeed: nobody.',
    "emoji": "👩‍👩‍👧‍👦 and 🏳️‍🌈, 👍🏽 or 🙂🚀! 👨🏿‍🚒🇩🇪 ❤️‍🔥",
    "Chinese": "机器学习是人工智能的一个分支。今天天气很好，我们去公园散步吧！第3章，第201页。",
    "Arabic": "اللُّغَةُ العَرَبِيَّة جميلة، والنموذج الصغير يتعلم من الكبير في عام ٢٠١٧.",
    "Hindi": "हिन्दी में लिखा हुआ पाठ, क़लम और ज़िन्दगी। कुल १२३ पृष्ठ हैं।",
    "code": "def area(w, h):\n\tif w < 0:\n\t\traise ValueError('w')\n\treturn w * h  # m²\n\n    x[-1] += 0x1F\r\n",
    "bytes": "𠮷野家 ﷽ 🂡 ꙮ \u0378 ᚠᛇᚻ\u200b\u200d\ufeff \x00\x04\x7f 𒀀𒁀",
    "numerals": "1 12 123 1234 12345, 0.5% of 1,000,000 = 5000; 2026-11-22T07:05:09, ½ ² ٣ Ⅷ",
    "accents": "un e\u0301te\u0301 a\u0300 la plage, A\u030angstro\u0308m; the plain words after it are as they were.",
    "blanks": "  two\u00a0spaces   three\t\ttabs \n \n▁low line_ \u3000wide",
}
MARKER = "<|eot_id|>"


@dataclass(frozen=True)
class PairResult:
    """What a pair gave.

    Attributes:
        student, teacher: names.
        exact, multi, empty: rows of W by kind.
        reached, teacher_size: teacher tokens that W gives weight to, and all.
        loss: the audit's recommendation.
        texts: alignments that were checked.
        chunks, one_to_one: of all texts.
        seconds: to build W.
        problems: what is wrong, a sentence each.
    """

    student: str
    teacher: str
    exact: int
    multi: int
    empty: int
    reached: int
    teacher_size: int
    loss: str
    texts: int
    chunks: int
    one_to_one: int
    seconds: float
    problems: tuple[str, ...]


def cases(student: Vocabulary, teacher: Vocabulary) -> Iterator[tuple[str, np.ndarray, np.ndarray, bool]]:
    """What is aligned: a name, the ids of both sides, and whether both texts end alike."""
    marker = next((s for s in ("eot", "eos", "turn") if s in student.id_of_role), None)
    for name, text in TEXTS.items():
        s, t = student.encode(text), teacher.encode(text)
        yield name, s, t, True
        if student.bos_id is not None:
            yield f"{name}, BOS of the student's", np.r_[student.bos_id, s], t, True
        if teacher.bos_id is not None:
            yield f"{name}, BOS of the teacher's", s, np.r_[teacher.bos_id, t], True
        if marker is not None:
            parsed = np.r_[s, student.id_of_role[marker], student.encode("The next one.")]
            spelled = np.r_[t, teacher.encode(MARKER), teacher.encode("The next one.")]
            yield f"{name}, a marker spelled out", parsed, spelled, True
        yield f"{name}, student's cut short", s[: len(s) * 2 // 3], t, False
        yield f"{name}, teacher's cut short", s, t[: len(t) // 2], False


def problems_of(
    student: Vocabulary, teacher: Vocabulary, s_ids: np.ndarray, t_ids: np.ndarray, chunks: np.ndarray, ends: bool
) -> list[str]:
    """What is wrong with the chunks of one text; nothing where all is well.

    Args:
        chunks: int ``[K, 4]`` of the aligner.
        ends: whether the texts are to agree at their ends as well as at their beginnings.

    Chunks must go forward, hold equal bytes or equal roles, have no common cut inside, and include all that a walk
    over the bytes from either end finds up to where the two sides differ.  Where they are equal, that is the text.
    """
    found = []
    at = [0, 0]
    for s0, s1, t0, t1 in chunks.tolist():
        if not (at[0] <= s0 < s1 <= len(s_ids) and at[1] <= t0 < t1 <= len(t_ids)):
            return [f"chunk {[s0, s1, t0, t1]} does not go forward"]
        at = [s1, t1]
        left, right = [student.token_bytes[i] for i in s_ids[s0:s1]], [teacher.token_bytes[i] for i in t_ids[t0:t1]]
        if None in left or None in right:
            roles = [student.roles.get(int(s_ids[s0])), teacher.roles.get(int(t_ids[t0]))]
            if s1 - s0 != 1 or t1 - t0 != 1 or roles[0] is None or roles[0] != roles[1]:
                found.append(f"chunk {[s0, s1, t0, t1]} has tokens without text: {roles}")
        elif b"".join(left) != b"".join(right):  # type: ignore[arg-type]
            found.append(f"chunk {[s0, s1, t0, t1]}: {left} is not {right}")
        elif set(_ends(left)[:-1]) & set(_ends(right)[:-1]):
            found.append(f"chunk {[s0, s1, t0, t1]} could be cut: {left}, {right}")
    sides = [[v.token_bytes[i] or b"" for i in ids] for v, ids in ((student, s_ids), (teacher, t_ids))]
    wanted = _walked(*sides)
    if ends:
        n, m = len(s_ids), len(t_ids)
        backwards = _walked(*([data[::-1] for data in side[::-1]] for side in sides))
        turned = {(n - s1, n - s0, m - t1, m - t0) for s0, s1, t0, t1 in backwards}
        last = max(wanted, default=(0, 0, 0, 0))
        wanted |= {c for c in turned if c[0] >= last[1] and c[2] >= last[3]}
    for missing in sorted(wanted - set(map(tuple, chunks.tolist()))):
        found.append(f"no chunk {list(missing)}: {sides[0][missing[0] : missing[1]]}")
    return found


def _ends(tokens: list[bytes | None]) -> list[int]:
    return np.cumsum([len(data or b"") for data in tokens]).tolist()


def _walked(left: list[bytes], right: list[bytes]) -> set[tuple[int, int, int, int]]:
    """The chunks between the common cuts of two lists of tokens, up to the first byte that differs.

    A space in front that only one side has (SentencePiece's) is passed over if more is equal after it.
    """
    a, b = b"".join(left), b"".join(right)
    skips = [(x, y) for x, y in ((0, 0), (1, 0), (0, 1)) if a[:x] in (b"", b" ") and b[:y] in (b"", b" ")]
    lengths = {(x, y): _common(a[x:], b[y:]) for x, y in skips}
    x, y = max(lengths, key=lambda skip: lengths[skip])
    cuts = []
    for tokens, skip in ((left, x), (right, y)):
        cut: dict[int, int] = {}  # byte offset -> number of tokens in front of it, those without text after it apart
        end = -skip
        cut[end] = 0
        for i, data in enumerate(tokens):
            end += len(data)
            if data:
                cut[end] = i + 1
        cuts.append(cut)
    common = sorted(o for o in cuts[0].keys() & cuts[1].keys() if 0 <= o <= lengths[x, y])
    out = set()
    for low, high in itertools.pairwise(common):
        ranges: list[int] = []
        for tokens, cut in zip((left, right), cuts, strict=True):
            first = next(i for i in range(cut[low], len(tokens)) if tokens[i])
            ranges += [first, cut[high]]
        s0, s1, t0, t1 = ranges
        if all(left[s0:s1]) and all(right[t0:t1]):  # a token without text inside breaks the chunk
            out.add((s0, s1, t0, t1))
    return out


def _common(a: bytes, b: bytes) -> int:
    """Length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def aligned(student: Vocabulary, teacher: Vocabulary) -> tuple[int, int, int, list[str]]:
    """Aligns and checks all `cases`: their number, the chunks, those of them that are 1 to 1, and the problems."""
    aligner = Aligner(student, teacher)
    texts = total = single = 0
    problems = []
    for name, s_ids, t_ids, ends in cases(student, teacher):
        chunks = aligner.align(s_ids, t_ids)
        problems += [f"{name}: {p}" for p in problems_of(student, teacher, s_ids, t_ids, chunks, ends)]
        texts, total = texts + 1, total + len(chunks)
        single += int(((chunks[:, 1] - chunks[:, 0] == 1) & (chunks[:, 3] - chunks[:, 2] == 1)).sum())
    return texts, total, single, problems


def measure(student: Vocabulary, teacher: Vocabulary) -> PairResult:
    """Builds, audits and aligns one pair."""
    start = time.perf_counter()
    matrix = build_projection(student, teacher)
    seconds = time.perf_counter() - start
    audit = audit_coverage(student, teacher, matrix)
    rows = {kind: sum(getattr(c, kind) for c in audit.classes) for kind in ("exact", "multi", "empty")}
    texts, chunks, single, problems = aligned(student, teacher)
    tokens = sum(data is not None or i in student.roles for i, data in enumerate(student.token_bytes))
    if sum(rows.values()) != tokens:
        problems.append(f"the audit counts {sum(rows.values())} of {tokens} tokens")
    return PairResult(
        student=student.name,
        teacher=teacher.name,
        **rows,
        reached=matrix.coverage["reached"],
        teacher_size=teacher.size,
        loss=recommend(audit).loss,
        texts=texts,
        chunks=chunks,
        one_to_one=single,
        seconds=seconds,
        problems=tuple(problems),
    )


def markdown(results: list[PairResult], names: dict[str, str]) -> str:
    """A table with a line per student and a column per teacher."""
    shown = list(names.values())
    cells: dict[tuple[str, str], str] = {}
    for r in results:
        loss = {"p_kl": "P", "h_kl": "H", "same_tokenizer": "="}[r.loss]
        share = 100 * r.exact / (r.exact + r.multi + r.empty)
        cells[names[r.student], names[r.teacher]] = f"{share:.0f} {loss}" + ("" if not r.problems else " !")
    lines = ["| student \\ teacher | " + " | ".join(shown) + " |", "|---|" + "---:|" * len(shown)]
    for s in shown:
        lines.append(f"| {s} | " + " | ".join(cells.get((s, t), "") for t in shown) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Runs the sweep; 1 where something is wrong."""
    from rich.progress import Progress

    parser = Parser(__doc__)
    parser.add_argument("tokenizers", nargs="+", help="folders, files or names on the Hugging Face hub; two or more")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table of coverage to this file")
    parser.add_output()
    given = parser.parse_args(arguments)
    print(machine_line())
    results = []
    with Progress() as progress:
        task = progress.add_task("loading", total=len(given.tokenizers))
        sides = []
        for source in given.tokenizers:
            sides.append(load_vocabulary(source))
            progress.advance(task)
        names = {v.name: Path(v.name).name for v in sides}
        if len(names) < 2 or len(set(names.values())) < len(sides):
            parser.error("two or more tokenizers with names of their own are needed")
        pairs = [(a, b) for a in sides for b in sides if a is not b]
        task = progress.add_task("pairs", total=len(pairs))
        for student, teacher in pairs:
            progress.update(task, description=f"{names[student.name]} -> {names[teacher.name]}")
            results.append(measure(student, teacher))
            for problem in results[-1].problems[:5]:
                progress.console.print(f"{names[student.name]} -> {names[teacher.name]}: {problem}", markup=False)
            progress.advance(task)
    table = markdown(results, names)
    wrong = sum(bool(r.problems) for r in results)
    print(f"Student tokens that are one teacher token (%), and the recommended loss (P-KL or H-KL):\n\n{table}")
    slowest = max(results, key=lambda r: r.seconds)
    print(
        f"{len(results)} pairs, {sum(r.texts for r in results):,} alignments; slowest W: {slowest.seconds:.2f} s "
        f"({names[slowest.student]} -> {names[slowest.teacher]}); pairs with something wrong: {wrong}"
    )
    if given.markdown is not None:
        with atomic_path(given.markdown) as temporary:
            temporary.write_text(table, encoding="utf-8")
        print(f"saved in {given.markdown}")
    write_json(given.json, {"pairs": [asdict(r) for r in results]})
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
