"""Jinja as chat templates are rendered by transformers: sandboxed, blocks trimmed, with its functions.

Jinja's sandbox keeps a template from the machine, not from its time and memory: ``'a' * 10**10``, a loop in a loop.
"""

import contextlib
import datetime
import functools
import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

__all__ = ["MOST_CHARACTERS", "limited_time", "template_environment"]

#: Of what a template makes, and of a string or list on the way there.
MOST_CHARACTERS = 100_000_000
SECONDS = 20.0  # for a conversation
_MOST_BITS = 10_000  # of a number
_WIDE = re.compile(r"%[^%a-zA-Z]*?(\d{5,}|\*)|\{[^{}]*?:[^{}]*?\d{5,}")  # a field in a format

#: What templates that write the date are told: rendering must not depend on the day.  Llama-3's own default.
_DATE = datetime.datetime(2024, 7, 26)


@functools.cache
def template_environment() -> Any:
    """As transformers renders templates: sandboxed, blocks trimmed."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks what the assistant generates; here that is known without it."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, **options)

    class Limited(ImmutableSandboxedEnvironment):
        """Refuses what would fill the memory in one step."""

        intercepted_binops = frozenset(["*", "**", "%", "+"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _check_operation(operator, left, right)
            return super().call_binop(context, operator, left, right)

        def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
            text = getattr(getattr(function, "__wrapped__", function), "__self__", None)
            if isinstance(text, str):
                _check_text_method(text, getattr(function, "__name__", ""), args)
            return super().call(context, function, *args, **kwargs)

    environment = Limited(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = to_json
    for name in ("center", "indent", "format", "batch", "wordwrap", "replace"):
        environment.filters[name] = _checked(environment.filters[name], name)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = _DATE.strftime
    return environment


class TooLargeError(Exception):
    """A template makes more than any conversation needs."""


def _check_operation(operator: str, left: Any, right: Any) -> None:
    if operator == "**" and isinstance(left, int) and isinstance(right, int):
        if left.bit_length() * max(right, 0) > _MOST_BITS:
            raise TooLargeError("a power with more digits than any conversation needs")
    elif operator == "%" and isinstance(left, str):
        _check_format(left)
    elif operator == "*":
        for one, times in ((left, right), (right, left)):
            if isinstance(times, int) and isinstance(one, (str, list, tuple)):
                _check_size(len(one) * times)
        if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > _MOST_BITS:
            raise TooLargeError("a product with more digits than any conversation needs")
    elif operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
        _check_size(len(left) + len(right))


def _check_text_method(text: str, name: str, args: tuple[Any, ...]) -> None:
    if name in ("format", "format_map"):
        _check_format(text)
    elif name == "join":
        pass  # of a list, whose items are there already
    elif name == "replace" and len(args) > 1:
        _check_size((text.count(str(args[0])) + 1) * len(str(args[1])) + len(text))
    for arg in args:
        if isinstance(arg, int):
            _check_size(arg)


def _check_format(text: str) -> None:
    if _WIDE.search(text):
        raise TooLargeError("a format with a field of 10,000 characters or more")


def _check_size(size: int) -> None:
    if size > MOST_CHARACTERS:
        raise TooLargeError(f"{size:,} characters or items, where at most {MOST_CHARACTERS:,} are allowed")


def _checked(function: Any, name: str) -> Any:
    """A filter whose first argument is a text."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        texts = [arg for arg in args if isinstance(arg, str)]
        if texts:
            _check_text_method(texts[0], name, (*texts[1:], *(a for a in args if isinstance(a, int)), *kwargs.values()))
        return function(*args, **kwargs)

    return call


@contextlib.contextmanager
def limited_time() -> Iterator[None]:
    """Ends what runs for more than `SECONDS`; in a process's main thread, unless another alarm is due before.

    Raises:
        TooLargeError: it does.
    """
    seconds, begun = SECONDS, time.monotonic()
    left = signal.getitimer(signal.ITIMER_REAL)[0]  # of somebody else's alarm, which gets its time back
    if threading.current_thread() is not threading.main_thread() or 0 < left <= seconds:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise TooLargeError(f"it takes more than {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left - (time.monotonic() - begun)))
