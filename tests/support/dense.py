"""The losses written out in dense float64 torch with autograd: slow, plain, and made without the product's code."""

import torch


def dense_w(matrix, v_s, v_t):
    """W with REST as last column, [V_S, V_T + 1]."""
    w = torch.zeros(v_s, v_t + 1, dtype=torch.float64)
    for s in range(v_s):
        entries = [(int(t), float(x)) for t, x in zip(matrix.ids[s], matrix.weights[s], strict=True) if t >= 0]
        for t, x in entries:
            w[s, t] = x
        if not entries:
            w[s, v_t] = 1.0
    return w


def kl(p, q):
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum()


def projected_kl(p_s, p_t, w):
    """KL(p_T || W^T p_S) with REST; conditioned on the reached tokens when no row is empty."""
    q = p_s @ w
    reached = w[:, :-1].sum(0) > 0
    closed = torch.cat([torch.where(reached, p_t, torch.zeros_like(p_t)), p_t[~reached].sum().view(1)])
    if float(w[:, -1].sum()) > 0:
        keep = torch.cat([reached, torch.tensor([True])])
        return kl(closed[keep], q[keep])
    mass = closed[:-1].sum()
    return mass * kl(closed[:-1][reached] / mass, q[:-1][reached])


def js(p, q):
    middle = (p + q) / 2
    return (kl(p, middle) + kl(q, middle)) / 2


#: of the teacher's p and the student's q
DIRECTIONS = {"forward": kl, "reverse": lambda p, q: kl(q, p), "js": js}


def projected(p_s, p_t, w, direction):
    """`DIRECTIONS` between W^T p_S and p_T with REST; conditioned on what both can say where one side has no REST."""
    if direction == "forward":
        return projected_kl(p_s, p_t, w)
    q = p_s @ w
    reached = w[:, :-1].sum(0) > 0
    p = torch.cat([p_t[reached], p_t[~reached].sum().view(1)])
    rest = q[-1:] if float(w[:, -1].sum()) > 0 else q[-1:].detach()  # autograd gives xlogy(0, 0) no finite slope
    q = torch.cat([q[:-1][reached], rest])
    if direction == "reverse" and bool(reached.all()):
        return kl(q[:-1] / q[:-1].sum(), p[:-1])
    return DIRECTIONS[direction](p, q)


def largest(p, ids, k):
    """The k of these ids with the largest values, of equal ones the smaller id; and the others."""
    order = sorted(ids, key=lambda i: (-p[i].item(), i))
    return order[:k], order[k:]


def projected_top_k(p_s, p_t, w, direction, k):
    """`projected` where only the teacher's k largest of the reached tokens are classes, all others one."""
    q = p_s @ w
    reached = (w[:, :-1].sum(0) > 0).nonzero().squeeze(1).tolist()
    kept, others = largest(p_t, reached, k)
    if not others:
        return projected(p_s, p_t, w, direction)
    unreached = p_t.sum() - p_t[reached].sum()
    has_rest = float(w[:, -1].sum()) > 0
    if direction == "forward" and not has_rest:  # the teacher is conditioned
        mass = p_t[reached].sum()
        p = torch.cat([p_t[kept], p_t[others].sum().view(1)]) / mass
        return mass * kl(p, torch.cat([q[kept], q[others].sum().view(1)]))
    if direction == "reverse" and len(reached) == len(p_t):  # the student is conditioned
        u = torch.cat([q[kept], q[others].sum().view(1)]) / q[:-1].sum()
        return kl(u, torch.cat([p_t[kept], p_t[others].sum().view(1)]))
    p = torch.cat([p_t[kept], (p_t[others].sum() + unreached).view(1)])
    rest = q[others].sum() + (q[-1] if has_rest else 0)
    return DIRECTIONS[direction](p, torch.cat([q[kept], rest.view(1)]))


def strict_1to1(p_s, p_t, pairs, k):
    """Reverse KL over the pairs whose student token is among the k largest."""
    partner = dict(pairs)
    kept, _ = largest(p_s, list(partner), k)
    s, t = p_s[kept], p_t[[partner[i] for i in kept]]
    return kl(s / s.sum(), t / t.sum())


def partial_kl(p_s, p_t, pairs, form):
    """The KL over pairs of ids (s, t): as published, or closed by one class a side."""
    s, t = [torch.tensor([pair[i] for pair in pairs], dtype=torch.int64) for i in (0, 1)]
    inside = kl(p_t[t], p_s[s])
    if form == "paper":
        return inside
    student_rest, teacher_rest = p_s.sum() - p_s[s].sum(), p_t.sum() - p_t[t].sum()
    if len(pairs) == len(p_s):  # no room for the teacher's rest: condition on C
        return inside - torch.xlogy(p_t[t].sum(), p_t[t].sum())
    return inside + (kl(teacher_rest, student_rest) if len(pairs) < len(p_t) else 0)


def sorted_l1(p_s, p_t, cap=None):
    """L1 of the sorted values; beyond the cap the difference of the masses."""
    n = max(len(p_s), len(p_t))
    a, b = [torch.nn.functional.pad(p.sort(descending=True).values, (0, n - len(p))) for p in (p_s, p_t)]
    cap = n if cap is None else min(cap, n)
    return (a[:cap] - b[:cap]).abs().sum() + (a[cap:].sum() - b[cap:].sum()).abs()


def gold(p_s, p_t, pairs, form, cap=None):
    """The partial KL, and the sorted L1 of what no pair names."""
    rest = [[i for i in range(len(p)) if i not in {x[k] for x in pairs}] for k, p in enumerate((p_s, p_t))]
    return partial_kl(p_s, p_t, pairs, form) + sorted_l1(p_s[rest[0]], p_t[rest[1]], cap)


def chunk_losses(student_logits, teacher_logits, batch, divergence, merge, tau):
    """(cross-entropy sum, distillation sum) of logits [b, T, V] (the tokenizers' true sizes)."""
    ls, lt = batch["student_labels"], batch["teacher_labels"]
    log_p1 = torch.log_softmax(student_logits, -1)
    ce = -sum(log_p1[i, t, ls[i, t]] for i, t in torch.nonzero(ls != -100).tolist())
    log_s = torch.log_softmax(student_logits / tau, -1)
    log_t = torch.log_softmax(teacher_logits / tau, -1)
    total = torch.zeros((), dtype=torch.float64)
    for i, a, n, c, m in batch["chunks"].tolist():
        if merge == "mean":
            total = total + divergence(log_s[i, a : a + n].exp().mean(0), log_t[i, c : c + m].exp().mean(0))
            continue
        first = divergence(log_s[i, a].exp(), log_t[i, c].exp())
        if merge == "first":
            total = total + first
            continue
        m_s = torch.stack([log_s[i, t, ls[i, t]] for t in range(a + 1, a + n)]).sum().exp() if n > 1 else None
        m_t = torch.stack([log_t[i, t, lt[i, t]] for t in range(c + 1, c + m)]).sum().exp() if m > 1 else None
        if m_t is None:
            m_t = torch.ones((), dtype=torch.float64)
        value = m_t * first
        if m_s is not None:
            value = value + torch.xlogy(m_t, m_t) - m_t * m_s.log()
            if m > 1:
                value = value + (1 - m_t) * ((1 - m_t).log() - (1 - m_s).log())
        total = total + value
    return ce, tau**2 * total


def nrl_chunk_means(x, batch, side):
    """Arithmetic means over each chunk's positions, [K, V]."""
    first, count = {"student": (1, 2), "teacher": (3, 4)}[side]
    return torch.stack([x[c[0], c[first] : c[first] + c[count]].mean(0) for c in batch["chunks"].tolist()])


def nrl_p_kl(student_logits, teacher_logits, batch, w, k, tau, reverse=False, eps=1e-10):
    """The public P-KL: on the k tokens with the largest logit anywhere in the micro-batch; a sum over chunks."""
    importance = teacher_logits.flatten(0, 1).max(0).values
    kept, _ = largest(importance, range(len(importance)), k)
    kept = torch.tensor(sorted(kept))
    projected = torch.softmax(student_logits / tau, -1) @ w[:, :-1]
    student = nrl_chunk_means(projected, batch, "student")[:, kept]
    student = (student / (student.sum(1, keepdim=True) + eps) + eps).log()
    teacher = nrl_chunk_means(torch.log_softmax(teacher_logits[..., kept] / tau, -1), batch, "teacher")
    if reverse:
        return tau**2 * (student.exp() * (student - teacher)).sum()
    return tau**2 * (teacher.exp() * (teacher - student)).sum()


def nrl_gold(student_logits, teacher_logits, batch, pairs, cap, tau, reverse=False):
    """The public GOLD and H-KL: means of log-probabilities, KL on the pairs, L1 of the largest others of each side."""
    student = nrl_chunk_means(torch.log_softmax(student_logits / tau, -1), batch, "student")
    teacher = nrl_chunk_means(torch.log_softmax(teacher_logits / tau, -1), batch, "teacher")
    s, t = [[pair[i] for pair in pairs] for i in (0, 1)]
    p, q = (student[:, s], teacher[:, t]) if reverse else (teacher[:, t], student[:, s])
    common = (p.exp() * (p - q)).sum()
    others = [[i for i in range(x.shape[1]) if i not in set(ids)] for x, ids in ((student, s), (teacher, t))]
    n = min(len(others[0]), len(others[1]), cap)
    a, b = (
        x[:, ids].exp().sort(1, descending=True).values[:, :n]
        for x, ids in ((student, others[0]), (teacher, others[1]))
    )
    return tau**2 * (common + (a - b).abs().sum())


def nrl_relaxed(matrix, least=0.6):
    """Pairs of the public H-KL, a teacher token after the other."""
    claims = {}
    for s in range(matrix.student_size):
        row = [(float(x), int(t)) for t, x in zip(matrix.ids[s], matrix.weights[s], strict=True) if t >= 0]
        if row and max(row)[0] >= least:
            weight, t = max(row)
            claims.setdefault(t, []).append((-weight, s))
    return sorted((min(found)[1], t) for t, found in claims.items())
