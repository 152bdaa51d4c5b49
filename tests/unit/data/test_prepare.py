import json
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fakes import STUDENT, TEACHER, TEACHER_BOS, CountingAligner, vocabulary

from nemo_xtoken.alignment.aligner import Aligner
from nemo_xtoken.data import prepare, prepare_documents, workers
from nemo_xtoken.data.prepared import PreparedDocuments, split_documents
from nemo_xtoken.data.sources import Reading
from nemo_xtoken.errors import InputError
from nemo_xtoken.leftovers import host_name
from nemo_xtoken.progress import LOGGER

TEXTS = [f"the cat {n} sat abcde {n * 345}\n\n中文 é {'word ' * (n % 7)}" for n in range(150)]


@pytest.fixture
def data(tmp_path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    return path


def prepared(paths, tmp_path, aligner=None, **options) -> PreparedDocuments:
    reading = Reading(**{name: options.pop(name) for name in ("text_key", "text_split") if name in options})
    options = {"cache_dir": tmp_path / "cache", "progress": False, "reading": reading} | options
    return prepare_documents(paths, STUDENT, TEACHER, aligner, **options)


def content(documents: PreparedDocuments) -> list[tuple[bytes, ...]]:
    return [tuple(part.tobytes() for part in documents.document(i)) for i in range(len(documents))]


def shards(tmp_path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("alignment/*/shard-*"))


def test_documents_are_what_the_tokenizers_and_the_aligner_say(data, tmp_path):
    found = prepared(data, tmp_path)
    assert len(found) == len(TEXTS)
    aligner = CountingAligner(STUDENT, TEACHER)
    for i in (0, 7, 149):
        student, teacher, chunks = found.document(i)
        assert student.tolist() == [STUDENT.bos_id, *STUDENT.encode(TEXTS[i]), STUDENT.eos_id]
        assert teacher.tolist() == [*TEACHER.encode(TEXTS[i]), TEACHER.eos_id]
        np.testing.assert_array_equal(chunks, aligner.align(student, teacher))
        assert (found.student_lengths[i], found.teacher_lengths[i]) == (len(student), len(teacher))
        assert (found.chunk_counts[i], found.scored[i]) == (len(chunks), len(chunks) - 1)


@pytest.mark.parametrize("count", [1, 2])
def test_any_number_of_workers_gives_the_same(data, tmp_path, count, monkeypatch):
    monkeypatch.setattr(workers, "_BATCH_DOCUMENTS", 7)
    inline = prepared(data, tmp_path)
    main, environment = dict(vars(sys.modules["__main__"])), dict(os.environ)
    other = prepared(data, tmp_path, workers=count, cache_dir=tmp_path / "other")
    assert content(inline) == content(other)
    assert inline.digest == other.digest
    one, two = (sorted((tmp_path / name).glob("alignment/*/shard-*")) for name in ("cache", "other"))
    assert [path.name for path in one] == [path.name for path in two] != []
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    assert vars(sys.modules["__main__"]) == main
    assert dict(os.environ) == environment


def test_nothing_is_aligned_twice(data, tmp_path):
    first = CountingAligner(STUDENT, TEACHER)
    once = prepared(data, tmp_path, first)
    assert first.calls == len(TEXTS)
    again = CountingAligner(STUDENT, TEACHER)
    assert content(prepared(data, tmp_path, again)) == content(once)
    other = tmp_path / "other.jsonl"  # another file, in another order, with copies and one new text
    texts = [TEXTS[3], "new", TEXTS[100], "new", TEXTS[3]]
    other.write_text("".join(json.dumps({"body": t}) + "\n" for t in texts))
    found = prepared(other, tmp_path, again, text_key="body")
    assert again.calls == 1
    whole = content(once)
    assert [content(found)[i] for i in (0, 2, 4)] == [whole[3], whole[100], whole[3]]


def test_other_tokenizers_and_other_alignments_have_other_caches(data, tmp_path):
    prepared(data, tmp_path)
    prepare_documents(data, STUDENT, TEACHER_BOS, cache_dir=tmp_path / "cache", progress=False)
    assert len(list((tmp_path / "cache/alignment").iterdir())) == 2


def test_an_interrupted_preparation_goes_on_where_it_was(data, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "_SHARD_TOKENS", 1500)
    monkeypatch.setattr(workers, "_BATCH_DOCUMENTS", 16)
    with pytest.raises(KeyboardInterrupt):
        prepared(data, tmp_path, CountingAligner(STUDENT, TEACHER, fail_at=100))
    done = shards(tmp_path)
    assert len(done) > 1
    assert not list((tmp_path / "cache").rglob("*.tmp"))
    after = CountingAligner(STUDENT, TEACHER)
    found = prepared(data, tmp_path, after)
    kept = len(TEXTS) - after.calls
    assert 100 - 16 <= kept <= 100
    assert shards(tmp_path)[: len(done)] == done
    assert content(found) == content(prepared(data, tmp_path, cache_dir=tmp_path / "other"))


def test_a_damaged_shard_is_replaced(data, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(prepare, "_SHARD_TOKENS", 1500)
    monkeypatch.setattr(workers, "_BATCH_DOCUMENTS", 16)
    whole = content(prepared(data, tmp_path))
    count = len(shards(tmp_path))
    path = shards(tmp_path)[1]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    aligner = CountingAligner(STUDENT, TEACHER)
    caplog.clear()
    assert content(prepared(data, tmp_path, aligner)) == whole
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert path.name in record.getMessage()
    assert 0 < aligner.calls < len(TEXTS) / 2
    assert len(shards(tmp_path)) == count


def _prepare_in_process(data, tmp_path, barrier, queue):
    aligner = CountingAligner(STUDENT, TEACHER)
    barrier.wait()
    found = prepared(data, tmp_path, aligner)
    queue.put((aligner.calls, hash(tuple(content(found)))))


def test_processes_that_prepare_at_once_share_the_work(data, tmp_path):
    context = multiprocessing.get_context("fork")  # equal hashes need equal seeds
    barrier, queue = context.Barrier(3), context.Queue()
    arguments = (data, tmp_path, barrier, queue)
    processes = [context.Process(target=_prepare_in_process, args=arguments) for _ in range(3)]
    for p in processes:
        p.start()
    results = [queue.get(timeout=60) for _ in processes]
    for p in processes:
        p.join()
    assert sorted(calls for calls, _ in results) == [0, 0, len(TEXTS)]
    assert {h for _, h in results} == {hash(tuple(content(prepared(data, tmp_path))))}


_SCRIPT = """
import sys, time
sys.path.insert(0, {folder!r})
if __name__ != "__main__":
    print("IMPORTED AGAIN", flush=True)
import fakes
from nemo_xtoken.alignment.aligner import Aligner
from nemo_xtoken.data import prepare, prepare_documents, workers
prepare._SHARD_TOKENS = 1500
workers._BATCH_DOCUMENTS = 16
print("start", flush=True)
options = dict(cache_dir={cache!r}, workers={workers}, progress=False)
prepare_documents({data!r}, fakes.STUDENT, fakes.TEACHER, {aligner}, **options)
print("done", flush=True)
"""


def script(data, tmp_path, workers, aligner="None"):
    code = _SCRIPT.format(
        folder=str(Path(__file__).parent),
        data=str(data),
        cache=str(tmp_path / "cache"),
        workers=workers,
        aligner=aligner,
    )
    path = tmp_path / "script.py"
    path.write_text(code)
    return [sys.executable, str(path)]


def test_a_script_without_a_main_guard_is_not_run_again_by_its_workers(data, tmp_path):
    done = subprocess.run(script(data, tmp_path, 1), capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["start", "done"], done.stdout + done.stderr


def test_a_killed_preparation_leaves_whole_shards_and_no_lock_and_no_process(data, tmp_path):
    aligner = "fakes.SlowAligner(fakes.STUDENT, fakes.TEACHER)"
    process = subprocess.Popen(script(data, tmp_path, 1, aligner), stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not shards(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.communicate()
    kept = len(shards(tmp_path))
    assert kept
    after = CountingAligner(STUDENT, TEACHER)
    found = prepared(data, tmp_path, after)
    assert 0 < after.calls < len(TEXTS)
    assert content(found) == content(prepared(data, tmp_path, cache_dir=tmp_path / "other"))
    while any(_alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert children
    assert not any(_alive(pid) for pid in children)


def _alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("name", "data", "options"),
    [
        ("late.jsonl", b'{"text": "good"}\n' * 100 + b'{"text": "\xff"}\n', {}),
        ("a.txt", b"", {}),
        ("a.csv", b"text", {}),
        ("a.jsonl", b'{"body": "x"}\n', {}),
        ("a.txt", b"good", {"workers": -1}),
        ("a.txt", b"good", {"text_split": "word"}),
    ],
)
def test_bad_input_writes_nothing(tmp_path, name, data, options):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError):
        prepared(tmp_path / name, tmp_path, **options)
    assert not (tmp_path / "cache").exists()


def test_a_tokenizer_without_eos(data, tmp_path):
    other = vocabulary("no_eos", ["a"], eos=False)
    with pytest.raises(InputError, match="the teacher's tokenizer no_eos has no EOS"):
        prepare_documents(data, STUDENT, other, cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_cache_folder_that_cannot_be_written(data, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be used"):
        prepared(data, tmp_path, cache_dir=tmp_path / "file")


def test_an_error_in_a_worker_arrives(tmp_path, data):
    long = tmp_path / "long.txt"
    long.write_text("x" * 9000)
    with pytest.raises(InputError, match="8192"):
        prepared(long, tmp_path, Aligner(STUDENT, TEACHER, "dp"), workers=1)


class KilledAligner(Aligner):
    """Ends its process as the system does where memory is short, once a text says so."""

    def align_many(self, student_ids, student_lengths, teacher_ids, teacher_lengths):
        if b"memory" in self.student.decode_bytes(student_ids):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().align_many(student_ids, student_lengths, teacher_ids, teacher_lengths)


def test_a_worker_that_is_killed_is_one_error(tmp_path):
    path = tmp_path / "t.jsonl"
    texts = [f"text {number}" for number in range(2000)]  # as many as a worker gets at a time
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, "memory"]))
    with pytest.raises(InputError, match="worker process ended") as error:
        prepared(path, tmp_path, KilledAligner(STUDENT, TEACHER), workers=1)
    assert "fewer workers" in error.value.fix
    assert len(prepared(path, tmp_path)) == 2001


def test_the_view_can_be_pickled_and_selected(data, tmp_path):
    found = prepared(data, tmp_path)
    pickled = pickle.dumps(found)
    assert len(pickled) < 100 * len(TEXTS) + 4000
    assert content(pickle.loads(pickled)) == content(found)  # noqa: S301
    part = found.select(np.array([5, 3]))
    assert content(part) == [content(found)[i] for i in (5, 3)]
    assert part.digest != found.digest
    copy = pickle.loads(pickled)  # noqa: S301
    shards(tmp_path)[0].unlink()
    with pytest.raises(InputError, match="start again"):
        copy.document(0)


@pytest.mark.parametrize("held_out", [0.2, 20.0])
def test_held_out_documents_stay_held_out(tmp_path, held_out):
    def split(texts, seed=1):
        path = tmp_path / "t.jsonl"
        path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
        sides = split_documents(prepared(path, tmp_path), held_out, seed)
        return [{bytes(d) for d in side.digests} for side in sides], [len(side) for side in sides]

    (train, held), (n_train, n_held) = split(TEXTS)
    assert not train & held
    assert n_train + n_held == len(TEXTS)
    assert n_held == 20 if held_out > 1 else 15 <= n_held <= 45
    (train2, held2), counts = split(TEXTS[::-1] + TEXTS[:50])  # another order, and copies
    assert (train2, held2) == (train, held)
    assert sum(counts) == len(TEXTS) + 50
    if held_out < 1:
        (train3, held3), _ = split(TEXTS[::2])
        assert train3 <= train
        assert held3 <= held
    assert split(TEXTS, seed=2)[0][1] != held


@pytest.mark.parametrize("held_out", [-1.0, 1.5, 1e-9, 150.0, 1000.0, 0.9999999999])
def test_impossible_splits(data, tmp_path, held_out):
    with pytest.raises(InputError, match="held_out="):
        split_documents(prepared(data, tmp_path), held_out, 0)


def test_no_split(data, tmp_path):
    train, held = split_documents(prepared(data, tmp_path), 0, 0)
    assert (len(train), len(held)) == (len(TEXTS), 0)


@pytest.fixture
def nobody_listens(monkeypatch):
    """As in a script that has not set up logging; pytest has."""
    monkeypatch.setattr(LOGGER, "hasHandlers", lambda: False)


def test_who_waits_for_another_process_says_so(data, tmp_path, capsys, nobody_listens):
    cache = prepare.open_cache(STUDENT, TEACHER, Aligner(STUDENT, TEACHER), tmp_path / "cache")
    with cache.lock():
        waiting = threading.Thread(target=prepared, args=(data, tmp_path), kwargs={"progress": True})
        waiting.start()
        said, end = "", time.monotonic() + 30
        while not said and time.monotonic() < end:
            waiting.join(0.1)
            said = capsys.readouterr().err
        assert waiting.is_alive()
        who = f"process {os.getpid()} on {host_name()} (aligning text)"
        assert said.startswith(f"waiting for {who}, to write to {cache.folder}")
    waiting.join(30)
    assert not waiting.is_alive()
    assert shards(tmp_path)


@pytest.mark.parametrize(("workers", "little"), [(0, False), (1, False), (1, True)])
def test_progress_goes_to_the_error_output(data, tmp_path, capsys, nobody_listens, monkeypatch, workers, little):
    if not little:
        monkeypatch.setattr(prepare, "_WORTH_A_LINE", 1)
    prepared(data, tmp_path, progress=True, workers=workers)
    out = capsys.readouterr()
    assert out.out == ""
    begin = rf"aligning text \([\d,]+ characters, {len(TEXTS)} documents, {workers or 'no'} worker processes\)\n"
    assert re.fullmatch(
        rf"{'' if little else begin}"
        rf"aligning text: {len(TEXTS)} documents, [\d,]+ tokens, in \d+\.\d s \([\d,]+ tokens/s\)\n",
        out.err,
    )
    prepared(data, tmp_path, progress=True)
    assert capsys.readouterr().err == ""  # there was nothing to do


def test_without_progress_nothing_is_said(data, tmp_path, capsys, nobody_listens):
    prepared(data, tmp_path)
    assert capsys.readouterr().err == ""
