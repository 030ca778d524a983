"""Which SAEs are seeds of the same variant."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from sae_lens_isae.errors import InputError

ALL = ""
"""The group of all, where there is no other."""
_SEED = re.compile(r"[/_.+-]*seed[_-]?\d+", re.IGNORECASE)


def groups_of(names: Sequence[str], groups: Mapping[str, str] | str | None) -> dict[str, str]:
    """The group of every SAE.

    Args:
        groups: By name; or a regular expression, whose match in a name is its group (or what its
            first parenthesis matches); or None: the name without `seed_N`, if that gives several
            groups of two or more.

    Raises:
        InputError: An SAE has no group, or is alone in it.

    Examples:
        >>> groups_of(["isae/seed_0", "isae/seed_1", "topk/seed_0", "topk/seed_1"], None)
        {'isae/seed_0': 'isae', 'isae/seed_1': 'isae', 'topk/seed_0': 'topk', 'topk/seed_1': 'topk'}
        >>> groups_of(["a", "b"], None)
        {'a': '', 'b': ''}
    """
    if groups is None:
        found = {name: _SEED.sub("", name).strip("/") for name in names}
        sizes = Counter(found.values())
        return found if len(sizes) > 1 and min(sizes.values()) > 1 else dict.fromkeys(names, ALL)
    found = _matched(names, groups) if isinstance(groups, str) else _named(names, groups)
    for group, size in Counter(found.values()).items():
        if size < 2:
            (alone,) = (name for name in names if found[name] == group)
            raise InputError(
                f"{alone} is alone in its group {group!r}: give two or more SAEs of it, or another "
                "pattern (--group)"
            )
    return found


def _named(names: Sequence[str], groups: Mapping[str, str]) -> dict[str, str]:
    missing = [name for name in names if name not in groups]
    if missing:
        raise InputError(f"groups do not say which one {', '.join(missing)} belongs to")
    return {name: str(groups[name]) for name in names}


def _matched(names: Sequence[str], pattern: str) -> dict[str, str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"group: {pattern!r} is no regular expression: {error}") from None
    found: dict[str, str] = {}
    for name in names:
        match = compiled.search(name)
        if match is None:
            raise InputError(f"group: {pattern!r} matches nothing in {name!r} (--group)")
        found[name] = str(match[1] if compiled.groups else match[0])
    return found
