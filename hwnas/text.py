"""Text as windows of tokens: the words or characters of a file, one <eos> a line, numbered by a vocabulary of the most frequent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Int32, Int64
from torch import Tensor

from hwnas.errors import DataError

UNKNOWN, END = "<unk>", "<eos>"
"""Tokens 0 and 1 of every vocabulary: what is not in it, and the end of a line."""

Level = Literal["word", "character"]


def read(path: Path, level: Level) -> list[str]:
    """The words between blanks, or the characters, of every line of a UTF-8 file, each line with `END` behind it.

    Raises:
        DataError: there is no such file, or it holds no text.
    """
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} must be text in UTF-8, but cannot be decoded") from None
    found = [token for line in lines for token in (*(line.split() if level == "word" else line), END)]
    if len(found) == len(lines):
        raise DataError(f"{path} must hold text, but is empty")
    return found


def vocabulary(tokens: Sequence[str], size: int) -> tuple[str, ...]:
    """`UNKNOWN`, `END` and the most frequent other tokens, `size` in all; equally frequent ones in the order of the alphabet.

    Raises:
        DataError: there are fewer.
    """
    counts = Counter(tokens)
    others = sorted(counts.keys() - {UNKNOWN, END}, key=lambda token: (-counts[token], token))
    if not 3 <= size <= len(others) + 2:
        raise DataError(
            f"vocabulary must be from 3 to {len(others) + 2}, the tokens of the train part with {UNKNOWN} and {END}, but is {size}"
        )
    return (UNKNOWN, END, *others[: size - 2])


def windows(
    tokens: Sequence[str], numbers: Mapping[str, int], steps: int, limit: int | None, where: str
) -> tuple[Int32[Tensor, "n 1 steps 1"], Int64[Tensor, "n steps"]]:
    """The stream in windows of `steps` tokens, at most `limit`, one behind the other, and for every token the one that follows it.

    Raises:
        DataError: there are not enough tokens for one window; `where` says of what.
    """
    number = (len(tokens) - 1) // steps
    if number < 1:
        raise DataError(
            f"{where} must have at least {steps + 1} tokens, a window and the one behind it, but has {len(tokens)}; lower steps"
        )
    number = min(number, limit or number)
    unknown = numbers[UNKNOWN]
    stream = torch.tensor([numbers.get(token, unknown) for token in tokens[: number * steps + 1]])
    return stream[:-1].to(torch.int32).view(number, 1, steps, 1), stream[1:].view(number, steps)
