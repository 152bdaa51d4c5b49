"""Triton's interpreter without what it does anew at every call, a third of its time on small tiles."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def quick_interpreter():
    """In a process whose kernels are interpreted: its functions are put in the language's places once.

    There they stay; versions that take them out again return what does, and are left alone.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    from triton.runtime import interpreter

    patch_language, prepared = interpreter._patch_lang, set()

    def once(function):
        if function in prepared:
            return None
        undone = patch_language(function)
        if undone is None:
            prepared.add(function)
        return undone

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", once)
        yield
