"""What test_torchrun starts on each rank: a distillation of two steps at TP=2."""

import sys

if __name__ == "__main__":
    from jobs import Job, train

    root, student, teacher = sys.argv[1:]
    train(Job(root=root, name="torchrun", tp=2, steps=2, save_every=2, start=student, teacher=teacher))
