"""Jinja as chat templates are rendered by transformers: sandboxed, blocks trimmed, with its functions."""

import datetime
import functools
import json
from typing import Any, NoReturn

__all__ = ["template_environment"]

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

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = _DATE.strftime
    return environment
