"""What test_torchrun starts on each rank: a distillation of two steps at TP=2."""

import sys

import nemo_xtoken  # noqa: F401  (before anything that imports NeMo, as in every program of one's own)

if __name__ == "__main__":
    from jobs import Job, train

    root, student, teacher = sys.argv[1:]
    train(Job(root=root, name="torchrun", tp=2, steps=2, save_every=2, start=student, teacher=teacher))
