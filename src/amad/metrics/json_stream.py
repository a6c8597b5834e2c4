"""JSON that is read from its beginning to its end and never held whole."""

import codecs
import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO

_PORTION = 1 << 20
_SPACE = " \t\n\r"
_AFTER = frozenset(f"{_SPACE},:]}}")

_watcher: ContextVar[Callable[[int], None] | None] = ContextVar("watcher", default=None)


@contextmanager
def watched(advance: Callable[[int], None]) -> Iterator[None]:
    """Inside the block, ``advance`` is told the bytes that were read of files since it was told last."""
    token = _watcher.set(advance)
    try:
        yield
    finally:
        _watcher.reset(token)


@contextmanager
def opened(path: Path) -> Iterator[Callable[[int], str]]:
    """A function that gives about so many more characters of a file, "" at its end; ``.gz`` is unzipped.

    Raises:
        OSError: if the file cannot be opened or read, or is no gzip file.
        EOFError: and zlib.error, if a gzip file is not whole.
        ValueError: if it holds bytes that are no characters.
    """
    with path.open("rb") as raw, _unzipped(raw) if path.suffix == ".gz" else nullcontext(raw) as file:
        first = file.read(4)
        decoder = codecs.getincrementaldecoder(json.detect_encoding(first))()
        waiting, told = first, 0

        def read(n: int) -> str:
            nonlocal waiting, told
            text = ""
            while not text:
                data = waiting + file.read(n)
                waiting = b""
                text = decoder.decode(data, final=not data)
                if not data:
                    break
            advance, at = _watcher.get(), raw.tell()
            if advance is not None:
                advance(at - told)
            told = at
            return text

        yield read


def _unzipped(raw: BinaryIO) -> AbstractContextManager[BinaryIO]:
    return gzip.open(raw)  # type: ignore[return-value]


class JsonStream:
    """The tokens of one JSON text, taken from left to right.

    The standard library's decoder reads each value; this feeds it. The text that is held is one value and what was
    read beyond it.

    Args:
        read: Gives about so many more characters, "" at the end.

    Raises:
        ValueError: by every method, if the text is not JSON.
    """

    def __init__(self, read: Callable[[int], str]) -> None:
        self._read = read
        self._text, self._at, self._ended = "", 0, False
        self._decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """The next character that is not white space; "" at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _SPACE:
                    return self._text[self._at]
                self._at += 1
            if self._ended:
                return ""
            self._more()

    def value(self) -> Any:
        """Take one value whole."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except ValueError:
                if self._ended:
                    raise
            else:
                # A number may go on, as "1e" does, where what was read ends.
                if self._ended or self._text[end : end + 1] in _AFTER:
                    self._at = end
                    return value
            self._more()

    def items(self) -> Iterator[Any]:
        """Take a list, item by item."""
        self._take("[")
        if self.peek() == "]":
            self._take("]")
            return
        while True:
            yield self.value()
            if self._take(",]") == "]":
                return

    def members(self) -> Iterator[str]:
        """Take an object: its keys one by one, and whoever asks for them takes each value."""
        self._take("{")
        if self.peek() == "}":
            self._take("}")
            return
        while True:
            if self.peek() != '"':
                raise ValueError("a key must be a string")
            key = self.value()
            self._take(":")
            yield key
            if self._take(",}") == "}":
                return

    def skip(self) -> Any:
        """Take a value and give it back; of a list, item by item, only that it is one."""
        if self.peek() != "[":
            return self.value()
        for _ in self.items():
            pass
        return []

    def finish(self) -> None:
        """See that nothing follows."""
        if self.peek():
            raise ValueError("something follows the document")

    def _take(self, characters: str) -> str:
        found = self.peek()
        if not found or found not in characters:
            raise ValueError(f"{found!r} where one of {characters!r} must be")
        self._at += 1
        return found

    def _more(self) -> None:
        rest = self._text[self._at :]
        # As much again as there is: a value of many portions is tried a few times, not once per portion.
        more = self._read(max(_PORTION, len(rest)))
        self._text, self._at, self._ended = rest + more, 0, not more
