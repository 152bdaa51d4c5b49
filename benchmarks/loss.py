"""Time and peak memory of the loss, forward and backward, at the full size of two vocabularies.

  fused     nemo_xtoken.objective.terms.cross_tokenizer_loss with P-KL: logits tile by tile, gradient at once
  plain     the same loss the way one writes it first: both logits whole, two softmaxes, a sparse product with W, KL
            with a class REST, cross-entropy, autograd
  top-k     the public form: one set of the 8192 teacher tokens with the largest logits of the micro-batch, the
            student's projected probabilities renormalised within it, autograd
  products  the matrix products of output layers, hidden states and gradients alone

Hidden states and output layers are random, of the widths of Llama-3.2-1B and Qwen3-4B unless others are given.  Every
position is a chunk of one token; with --several a share of them has two tokens of the teacher, which the other forms,
that compare positions one by one, leave out.  --dtype bf16 is what training uses: products of bfloat16, all else in
float32.

What does not fit into the memory of the machine is left out and said so.  --kernels times the fused form with each of
the kernels named, of which --device cuda has two.

examples:
  python benchmarks/loss.py --student meta-llama/Llama-3.2-1B --teacher Qwen/Qwen3-4B
  python benchmarks/loss.py --student .. --teacher .. --positions 256 --hidden 64 64      the loss apart from products
  python benchmarks/loss.py --student .. --teacher .. --device cuda --dtype bf16 --several 0.1 --kernels triton torch
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from bench import Parser, in_turns, load_pair, machine_line, peak_memory, ratio, wide_console, write_json
from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.kernels.choice import KERNELS, kernels_for
from nemo_xtoken.kernels.tile_kernels import TileKernels
from nemo_xtoken.losses.base import ChunkLossConfig, ModelOutput, TeacherSignal
from nemo_xtoken.losses.p_kl import ProjectedKL
from nemo_xtoken.objective.terms import cross_tokenizer_loss
from nemo_xtoken.objective.tiles import rows_within
from nemo_xtoken.parallel.exchange import VocabularyExchange
from nemo_xtoken.parallel.head import OutputHead
from nemo_xtoken.parallel.ownership import reorder_rows
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.projection.build import build_projection
from nemo_xtoken.projection.matrix import ProjectionMatrix

MIB = 2**20
TOP_K = 8192
EPSILON = 1e-10
#: Tensors of [T, V] in float32 that the plain form has at its largest, for both vocabularies together; measured.
PLAIN_TENSORS = 4.5


class Problem:
    """Random hidden states, output layers and labels for a micro-batch of one sample."""

    def __init__(
        self,
        matrix: ProjectionMatrix,
        positions: int,
        hidden: tuple[int, int],
        device: str,
        dtype: torch.dtype = torch.float32,
        several: float = 0.0,
    ) -> None:
        random = torch.Generator().manual_seed(0)
        normal = lambda *shape: torch.randn(*shape, generator=random).to(device, dtype)  # noqa: E731
        self.matrix, self.positions, self.device = matrix, positions, device
        self.second = torch.rand(positions, generator=random).to(device) < several  # chunks of two teacher tokens
        taught = positions + int(self.second.sum())
        self.h_s, self.h_t = normal(positions, hidden[0]), normal(taught, hidden[1])
        # logits of a spread that language models have: a few tokens hold most of the mass
        self.w_s = normal(matrix.student_size, hidden[0]) * 3 / hidden[0] ** 0.5
        self.w_t = normal(matrix.teacher_size, hidden[1]) * 3 / hidden[1] ** 0.5
        labels = lambda size, count: torch.randint(size, (1, count), generator=random).to(device)  # noqa: E731
        self.labels = labels(matrix.student_size, positions)
        self.teacher_labels = labels(matrix.teacher_size, taught)

    def chunks(self) -> Tensor:
        """int64 ``[positions, 5]``."""
        at = torch.arange(self.positions, device=self.device)
        lengths = 1 + self.second.long()
        return torch.stack([torch.zeros_like(at), at, torch.ones_like(at), lengths.cumsum(0) - lengths, lengths], dim=1)

    @property
    def firsts(self) -> Tensor:
        """The teacher's hidden state at the first token of each chunk."""
        return self.h_t[self.chunks()[:, 3]]

    def leaves(self) -> tuple[Tensor, Tensor]:
        """The student's hidden states and output weight, fresh ones that want a gradient."""
        return self.h_s.detach().requires_grad_(), self.w_s.detach().requires_grad_()


def fused(problem: Problem, tile_mib: int | None, kernels: TileKernels) -> Callable[[], tuple[Tensor, Tensor]]:
    """The library's loss; what is done once a run is done here."""
    shard = VocabularyShard(problem.matrix.student_size, problem.matrix.student_size)
    divergence = ProjectedKL(VocabularyExchange.co_sharded(problem.matrix, shard, kernels)).to(problem.device)
    own = divergence.ownership
    held = VocabularyShard(problem.matrix.teacher_size, problem.matrix.teacher_size)
    head = OutputHead(reorder_rows(problem.w_t, held, own), own.shard, torch.from_numpy(own.owned).to(problem.device))
    teacher = ModelOutput(problem.h_t, head)
    signal = TeacherSignal(teacher, problem.teacher_labels, problem.chunks(), divergence, ChunkLossConfig())

    def run() -> tuple[Tensor, Tensor]:
        h, w = problem.leaves()
        student = OutputHead(w, shard)
        rows = rows_within(tile_mib, student, [head])
        terms = cross_tokenizer_loss(ModelOutput(h, student), problem.labels, [signal], tile_rows=rows, kernels=kernels)
        terms.objective.backward()
        assert h.grad is not None
        return terms.objective.detach(), h.grad

    return run


def sparse_w(matrix: ProjectionMatrix, rest: bool, device: str) -> Tensor:
    """W transposed, as a sparse tensor; with REST as one more row for the empty rows."""
    student, slot = np.nonzero(matrix.ids >= 0)
    teacher, weights = matrix.ids[student, slot].astype(np.int64), matrix.weights[student, slot]
    if rest:
        empty = np.flatnonzero(matrix.empty_rows)
        student, teacher = np.append(student, empty), np.append(teacher, np.full(len(empty), matrix.teacher_size))
        weights = np.append(weights, np.ones(len(empty), np.float32))
    shape = matrix.teacher_size + rest, matrix.student_size
    indices = torch.from_numpy(np.stack([teacher, student]))
    return torch.sparse_coo_tensor(indices, torch.from_numpy(weights), shape).coalesce().to_sparse_csr().to(device)


def plain(problem: Problem) -> Callable[[], tuple[Tensor, Tensor]]:
    """Whole logits and autograd."""
    w = sparse_w(problem.matrix, rest=True, device=problem.device)
    reached = torch.from_numpy(problem.matrix.reached).to(problem.device)

    def run() -> tuple[Tensor, Tensor]:
        h, weight = problem.leaves()
        z = (h @ weight.t()).float()
        ce = torch.nn.functional.cross_entropy(z, problem.labels[0], reduction="sum")
        q = (w @ torch.softmax(z, -1).t()).t()
        with torch.no_grad():
            p = torch.softmax((problem.firsts @ problem.w_t.t()).float(), -1)
            p = torch.cat([p.where(reached, 0), p.where(~reached, 0).sum(1, keepdim=True)], 1)
        loss = ce + (torch.xlogy(p, p) - p * q.clamp_min(torch.finfo(q.dtype).tiny).log()).sum()
        loss.backward()
        assert h.grad is not None
        return loss.detach(), h.grad

    return run


def top_k(problem: Problem) -> Callable[[], tuple[Tensor, Tensor]]:
    """The public form on a set of teacher tokens."""
    w = sparse_w(problem.matrix, rest=False, device=problem.device)

    def run() -> tuple[Tensor, Tensor]:
        h, weight = problem.leaves()
        z = (h @ weight.t()).float()
        ce = torch.nn.functional.cross_entropy(z, problem.labels[0], reduction="sum")
        with torch.no_grad():
            z_t = (problem.firsts @ problem.w_t.t()).float()
            chosen = z_t.amax(0).topk(min(TOP_K, z_t.shape[1])).indices
            log_p = z_t[:, chosen] - z_t.logsumexp(-1, keepdim=True)
            rows = torch.sparse_coo_tensor(w.to_sparse_coo().indices(), w.values(), w.shape).index_select(0, chosen)
        q = torch.sparse.mm(rows.coalesce().to_sparse_csr(), torch.softmax(z, -1).t()).t()
        log_q = (q / (q.sum(1, keepdim=True) + EPSILON) + EPSILON).log()
        loss = ce + (log_p.exp() * (log_p - log_q)).sum()
        loss.backward()
        assert h.grad is not None
        return loss.detach(), h.grad

    return run


def products(problem: Problem) -> Callable[[], tuple[Tensor, Tensor]]:
    """The matrix products alone, each once and whole: what no form with whole vocabularies can go under."""

    def run() -> tuple[Tensor, Tensor]:
        z = problem.h_s @ problem.w_s.t()
        problem.h_t @ problem.w_t.t()
        by_hidden, by_weight = z @ problem.w_s, z.t() @ problem.h_s
        return by_weight.sum(), by_hidden

    return run


def free_memory(device: str) -> int:
    """Bytes that can be had without swapping (Linux), or on the GPU."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def peak(call: Callable[[], Any], device: str) -> tuple[Any, int | None]:
    """`peak_memory`, of the GPU on one."""
    if device != "cuda":
        return peak_memory(call)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    return call(), torch.cuda.max_memory_allocated() - before


def waited_for(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call, and the wait for the GPU to have done it."""

    def run() -> None:
        call()
        torch.cuda.synchronize()

    return run


def measure(matrix: ProjectionMatrix, positions: int, given: argparse.Namespace) -> dict[str, Any]:
    """Seconds and bytes of each at one number of positions."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[given.dtype]
    problem = Problem(matrix, positions, tuple(given.hidden), given.device, dtype, given.several)
    calls: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {}
    for chosen in given.kernels:  # the first is what the ratios are of
        kernels = kernels_for(chosen, given.device == "cuda")
        name = f"fused, {kernels.name}" if calls else "fused"
        calls[name] = fused(problem, given.tile_mib, kernels)
    needed = int(PLAIN_TENSORS * 4 * positions * (matrix.student_size + matrix.teacher_size))
    left_out = needed > 0.9 * free_memory(given.device)
    if not left_out and not given.fused_only:
        calls |= {"plain": plain(problem), "top-k": top_k(problem), "products": products(problem)}
    results, peaks = {}, {}
    for name, call in calls.items():
        results[name], peaks[name] = peak(call, given.device)
    off = None  # the others leave second tokens out, and their gradient is another
    if "plain" in results and given.several == 0:
        ours, theirs = results["fused"][1], results["plain"][1]
        off = float((ours - theirs).norm() / theirs.norm())
    timed = {name: waited_for(call) for name, call in calls.items()} if given.device == "cuda" else calls
    clock = time.process_time if given.clock == "processor" else time.perf_counter
    seconds = in_turns(timed, given.rounds, clock)
    rows = {
        name: {"seconds": statistics.median(times), "least": min(times), "most": max(times), "memory": peaks[name]}
        | ({} if name == "fused" else {"ratio": ratio(seconds, "fused", name)})
        for name, times in seconds.items()
    }
    return {"positions": positions, "needed": needed if left_out else None, "gradients_differ": off, "methods": rows}


def show(results: list[dict[str, Any]], title: str) -> None:
    """Prints the table."""
    from rich.table import Table

    table = Table(title=title, title_style="bold", caption="ratios: fused over the other, median of the rounds")
    for name in ("positions", "method"):
        table.add_column(name, no_wrap=True)
    for name in ("median s", "least", "most", "ms a position", "time ratio", "extra MiB", "memory ratio"):
        table.add_column(name, justify="right")
    for result in results:
        own = result["methods"]["fused"]["memory"]
        for name, row in result["methods"].items():
            cells = [f"{row[k]:.3g}" for k in ("seconds", "least", "most")]
            cells.append(f"{1000 * row['seconds'] / result['positions']:.3g}")
            cells.append(f"{row['ratio']:.2f}" if "ratio" in row else "")
            known = own is not None and row["memory"]
            cells.append(f"{row['memory'] / MIB:,.0f}" if known else "?")
            cells.append(f"{own / row['memory']:.3f}" if known and name != "fused" else "")
            table.add_row(f"{result['positions']:,}" if name == "fused" else "", name, *cells)
        if result["needed"]:
            table.add_row("", f"plain, top-k: not run, {result['needed'] / 2**30:.0f} GiB", *[""] * 7)
        table.add_section()
    console = wide_console()
    console.print(table)
    for result in results:
        if result["gradients_differ"] is not None:
            off = f"{result['positions']:,} positions: fused and plain gradients differ by"
            text = f"{off} {result['gradients_differ']:.1e}"
            console.print(text, highlight=False, soft_wrap=True)


def main(arguments: list[str]) -> None:
    """Runs the benchmark."""
    parser = Parser(__doc__)
    parser.add_pair()
    parser.add_argument("--positions", type=int, nargs="+", default=[256, 1024, 4096], metavar="T")
    parser.add_argument("--hidden", type=int, nargs=2, default=[2048, 2560], metavar=("STUDENT", "TEACHER"))
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="of hidden states and output layers")
    parser.add_argument("--several", type=float, default=0.0, metavar="SHARE", help="of chunks with two teacher tokens")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is timed (default: 3)")
    parser.add_argument(
        "--clock",
        choices=["wall", "processor"],
        default="wall",
        help="processor: of this process alone, where others use the machine too (default: wall)",
    )
    parser.add_argument("--tile-mib", type=int, help="memory of a tile (default: what suits the device)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where it runs (default: cpu)")
    parser.add_argument(
        "--kernels", nargs="+", choices=KERNELS, default=["auto"], help="of the fused form (default: auto)"
    )
    parser.add_argument("--fused-only", action="store_true", help="leave the other forms out")
    parser.add_output()
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this PyTorch finds no GPU")
    try:
        for name in given.kernels:
            kernels_for(name, given.device == "cuda")
    except InputError as error:
        parser.error(f"--kernels: {error}")
    where = torch.cuda.get_device_name() if given.device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{machine_line()}; {where}; kernels {', '.join(given.kernels)}")
    student, teacher = load_pair(given)
    matrix = build_projection(student, teacher)
    title = f"{student.size:,} -> {teacher.size:,} tokens, hidden {given.hidden[0]} and {given.hidden[1]}"
    results = [measure(matrix, t, given) for t in given.positions]
    show(results, title)
    write_json(
        given.json,
        {"title": title, "device": given.device, "dtype": given.dtype, "kernels": given.kernels, "results": results},
    )


if __name__ == "__main__":
    main(sys.argv[1:])
