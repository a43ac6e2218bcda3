"""What a retriever is made of, as text (``rerank(hybrid(bm25, dense), top=20)``) or as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from search_gym.errors import OptionError

_NAME = re.compile(r"[\w.]+(:\w[\w.]*)?")
_KEY = re.compile(r"([^\W\d]\w*)\s*=")
_BARE = re.compile(r"[\w./:@+~?&=%-]+")
_EXAMPLE = "rerank(hybrid(bm25, dense), top=20)"


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


_DECODER = json.JSONDecoder(parse_constant=_refuse)  # NaN is a word here


@dataclass(frozen=True)
class Spec:
    """A retriever's name, the retrievers that it is built over, and its options, which are plain JSON values.

    Text and JSON say the same: ``Spec.parse(str(spec)) == spec`` and ``Spec.from_json(spec.to_json()) == spec``; a text
    that was printed once is printed again exactly.
    """

    name: str
    over: tuple[Spec, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [str(inner) for inner in self.over]
        parts += [f"{key}={_value_text(value)}" for key, value in self.options.items()]
        return f"{self.name}({', '.join(parts)})" if parts else self.name

    @staticmethod
    def parse(text: str) -> Spec:
        """Read ``name``, or ``name(retriever, ..., option=value, ...)``, or the text of what `to_json` returns.

        A value is a JSON number, string, list, object, ``true``, ``false`` or ``null``, or a word without quotes, such
        as a path or a URL.

        Raises:
            OptionError: anything else; the message shows the place.
        """
        if text.lstrip().startswith("{"):
            try:
                value = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise OptionError(
                    f"expected a retriever's description in JSON, got {text!r:.200}: {error}; do: correct it"
                ) from error
            return Spec.from_json(value)
        reader = _Reader(text)
        spec = reader.spec()
        if reader.rest():
            raise reader.error("the end")
        return spec

    def to_json(self) -> str | dict[str, Any]:
        """The name alone, or ``{"retriever": name, "over": [...], option: value, ...}``."""
        if not self.over and not self.options:
            return self.name
        over = {"over": [inner.to_json() for inner in self.over]} if self.over else {}
        return {"retriever": self.name, **over, **self.options}

    @staticmethod
    def from_json(value: str | Mapping[str, Any]) -> Spec:
        """Read what `to_json` wrote.

        Raises:
            OptionError: ``value`` is of another form.
        """
        if isinstance(value, str):
            return Spec.parse(value)
        options = dict(value) if isinstance(value, Mapping) else {}
        name, over = options.pop("retriever", None), options.pop("over", [])
        if not isinstance(name, str) or not _NAME.fullmatch(name) or not isinstance(over, list):
            raise OptionError(
                f'expected a retriever as {{"retriever": name, "over": [...], option: value}}, got {value!r:.200}; '
                "do: correct it"
            )
        bad = [key for key in options if not (isinstance(key, str) and _KEY.fullmatch(f"{key}="))]
        if bad:
            raise OptionError(f"expected names of options, got {bad} in {value!r:.200}; do: correct them")
        return Spec(name, tuple(Spec.from_json(inner) for inner in over), options)


def _value_text(value: Any) -> str:
    if isinstance(value, str) and _BARE.fullmatch(value) and not _is_json(value):
        return value
    return json.dumps(value, ensure_ascii=False)


def _is_json(text: str) -> bool:
    try:
        _DECODER.decode(text)
    except ValueError:
        return False
    return True


class _Reader:
    """Reads a spec from left to right; ``at`` is where."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def rest(self) -> str:
        """What is left, after white space."""
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        return self.text[self.at :]

    def error(self, expected: str) -> OptionError:
        seen = f"{self.text[: self.at]}⟨here⟩{self.text[self.at :]}"
        return OptionError(
            f"expected {expected} in the retriever's description, got {seen!r}; do: write, say, {_EXAMPLE}"
        )

    def takes(self, mark: str) -> bool:
        if not self.rest().startswith(mark):
            return False
        self.at += len(mark)
        return True

    def spec(self) -> Spec:
        found = _NAME.match(self.rest())
        if found is None:
            raise self.error("a name")
        self.at += found.end()
        over: list[Spec] = []
        options: dict[str, Any] = {}
        if self.takes("("):
            while not self.takes(")"):
                if (over or options) and not self.takes(","):
                    raise self.error("',' or ')'")
                self.argument(over, options)
        return Spec(found.group(), tuple(over), options)

    def argument(self, over: list[Spec], options: dict[str, Any]) -> None:
        key = _KEY.match(self.rest())
        if key is None:
            if options:
                raise self.error("retrievers before options: 'option=value'")
            over.append(self.spec())
            return
        if key[1] in options:
            raise self.error(f"one value for {key[1]!r}")
        self.at += key.end()
        options[key[1]] = self.value()

    def value(self) -> Any:
        rest = self.rest()
        # A bare word may begin like a number ("127.0.0.1", "1e5-base"), so the longer of the two readings counts.
        bare = _BARE.match(rest)
        try:
            value, length = _DECODER.raw_decode(rest)
        except (ValueError, RecursionError):
            value, length = None, 0
        if length and (bare is None or length >= bare.end()):
            self.at += length
            return value
        if bare is None:
            raise self.error("a value")
        self.at += bare.end()
        return bare.group()
