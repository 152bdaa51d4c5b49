"""Which of a model's layers a person names.  Free of NumPy, for those who look before it is installed."""

import re

from nemo_xtoken.errors import InputError

__all__ = ["LAYERS", "chosen_layers"]

#: How layers are chosen, for error messages.
LAYERS = "a number (12: evenly spread), a list (0,1,5-9), or every n-th (::2)"


def chosen_layers(chosen: str, number: int) -> tuple[int, ...]:
    """The layers that a person names, ascending.

    Args:
        chosen: ``12``, so many, evenly spread, the first and the last among them; ``0,1,5-9``, these, both ends of a
            range included; ``::2`` or ``1::2``, every second, from the first or the second on.
        number: of the model's layers.

    Raises:
        InputError: it can be read in none of these ways, or names layers that there are not.
    """
    text, found = chosen.replace(" ", ""), list[int]()
    if text.isdecimal():
        last = int(text) - 1
        if 0 <= last < number:
            found = [round(i * (number - 1) / last) if last else 0 for i in range(last + 1)]
    elif (every := re.fullmatch(r"(\d*)::(\d+)", text)) and int(every[2]):
        found = list(range(int(every[1] or 0), number, int(every[2])))
    elif all(parts := [re.fullmatch(r"(\d+)(?:-(\d+))?", part) for part in text.split(",")]):
        ends = [(int(part[1]), int(part[2] or part[1])) for part in parts if part]
        if all(begin <= end < number for begin, end in ends):
            found = [layer for begin, end in ends for layer in range(begin, end + 1)]
    if not found or sorted(set(found)) != found:
        raise InputError(
            f"layers={chosen}",
            f"{LAYERS}, each once and ascending, of the model's {number} layers, 0 to {number - 1}",
            "choose other layers",
        )
    return tuple(found)
