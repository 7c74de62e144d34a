"""Numbers on the command line, as types of argparse."""

import argparse
import math
from collections.abc import Callable
from typing import TypeVar

N = TypeVar("N", int, float)


def number(convert: Callable[[str], N], what: str, accepts: Callable[[N], bool]) -> Callable[[str], N]:
    """The type of an argument that is a finite number.

    Args:
        what: for the message, such as "a number above 0".
    """

    def parse(text: str) -> N:
        try:
            value = convert(text)
        except ValueError:
            value = None
        if value is None or not -math.inf < value < math.inf or not accepts(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return parse


above_0 = number(float, "a number above 0", lambda value: value > 0)
at_least_0 = number(float, "a number of at least 0", lambda value: value >= 0)
at_least_1 = number(int, "a whole number of at least 1", lambda value: value >= 1)
