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


def losses(student_logits, teacher_logits, batch, w, merge, tau):
    """(cross-entropy sum, distillation sum) of logits [b, T, V] (the tokenizers' true sizes)."""
    ls, lt = batch["student_labels"], batch["teacher_labels"]
    log_p1 = torch.log_softmax(student_logits, -1)
    ce = -sum(log_p1[i, t, ls[i, t]] for i, t in torch.nonzero(ls != -100).tolist())
    log_s = torch.log_softmax(student_logits / tau, -1)
    log_t = torch.log_softmax(teacher_logits / tau, -1)
    total = torch.zeros((), dtype=torch.float64)
    for i, a, n, c, m in batch["chunks"].tolist():
        if merge == "mean":
            total = total + projected_kl(log_s[i, a : a + n].exp().mean(0), log_t[i, c : c + m].exp().mean(0), w)
            continue
        first = projected_kl(log_s[i, a].exp(), log_t[i, c].exp(), w)
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
