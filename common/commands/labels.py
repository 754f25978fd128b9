"""Labels for templates: the command's name, and if several templates have the same name, the words that differ.

    SET __key__ __data__ ; GET __key__                    SET ; GET
    SET __key__ __data__ ; SET __key__ __data__ EX 60     SET ; SET EX 60
    HGET __key__ name    ; HGET __key__ address           HGET name ; HGET address

Words that are too long or too similar are replaced by a number: `EVAL #1`, `EVAL #2`, in the order of the templates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from common.commands.template import Template, template_words

_LONGEST = 32
_CUT = "..."


def template_labels(templates: Iterable[Template]) -> dict[Template, str]:
    """A label for each template. Templates have distinct labels if their names have no blanks."""
    groups: dict[str, list[Template]] = {}
    for template in dict.fromkeys(templates):
        groups.setdefault(template.name, []).append(template)
    labels: dict[Template, str] = {}
    for name, group in groups.items():
        labels.update(zip(group, _labels(name, group), strict=True))
    return labels


def _labels(name: str, group: Sequence[Template]) -> list[str]:
    if len(group) == 1:
        return [name]
    words = [template_words(template)[1:] for template in group]
    whole = [" ".join([name, *rest]) for rest in _without_common(words, lambda word: "__" in word)]
    if _are_distinct(whole) and max(map(len, whole)) <= _LONGEST:
        return whole
    short = [_cut(" ".join([name, *rest])) for rest in _without_common(words, lambda _: True)]
    return short if _are_distinct(short) else [f"{name} #{number}" for number in range(1, len(group) + 1)]


def _without_common(lists: Sequence[list[str]], may_drop: Callable[[str], bool]) -> list[list[str]]:
    """The lists without the words at their begin that are common to all and that may be dropped; then the same at their
    end."""
    begin = _common(lists, may_drop)
    reverse = [words[begin:][::-1] for words in lists]
    end = _common(reverse, may_drop)
    return [words[end:][::-1] for words in reverse]


def _common(lists: Sequence[list[str]], may_drop: Callable[[str], bool]) -> int:
    """How many words at the begin are common to all lists and may be dropped."""
    count = 0
    for words in zip(*lists, strict=False):
        if len(set(words)) > 1 or not may_drop(words[0]):
            break
        count += 1
    return count


def _cut(label: str) -> str:
    return label if len(label) <= _LONGEST else label[: _LONGEST - len(_CUT)] + _CUT


def _are_distinct(labels: Sequence[str]) -> bool:
    return len(set(labels)) == len(labels)
