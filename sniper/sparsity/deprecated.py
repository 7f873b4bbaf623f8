# SPDX-License-Identifier: Apache-2.0
"""The names that settings of `Sniper` had before: still taken, with one line that says the new
ones.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

from sniper.sparsity.masking import Fixed, Following
from sniper.sparsity.optimizer import LearningRateScale, NewWeights

_OLD = {
    "max_param_sparsity": "cap",
    "spread": "cap",
    "restore_init": "new_weights",
    "prime_moments": "new_weights",
    "scale_lr": "lr_scale",
    "max_lr_scale": "lr_scale",
}


def accepts_old_names(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that also takes the old keywords; its signature shows the new ones only."""
    known = [p.name for p in inspect.signature(init).parameters.values()][1:]

    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **settings: Any) -> None:
        init(self, *args, **new_names(settings, known, stacklevel=3))

    return wrapped


def new_names(settings: dict[str, Any], known: list[str], stacklevel: int = 3) -> dict[str, Any]:
    """Settings by their new names; one DeprecationWarning where old ones were among them.

    Args:
        settings: keywords of `Sniper`, old or new.
        known: the new names.
        stacklevel: of the warning.

    Raises:
        TypeError: a name that is neither, or an old one beside the new one in its place.
        ValueError: a value that cannot be.
    """
    for name in settings:
        if name not in known and name not in _OLD:
            # Without **kwargs in the signature Python would have said it; here it is ours to say.
            near = difflib.get_close_matches(name, [*known, *_OLD], n=1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise TypeError(
                f"Sniper: expected keywords among {', '.join(known)}, got {name!r}{hint}"
            )
    old = {name: value for name, value in settings.items() if name in _OLD}
    if not old:
        return settings
    result = {name: value for name, value in settings.items() if name not in _OLD}
    # Two values for one thing: guessing which was meant would train something else.
    doubled = [name for name in old if _OLD[name] in result]
    if doubled:
        raise TypeError(
            f"Sniper: expected {_OLD[doubled[0]]} alone, got {doubled[0]} too, its old name"
        )
    made = _translated(old)
    say = ", ".join(f"{name}={value!r}" for name, value in made.items())
    warnings.warn(
        f"Sniper: {', '.join(old)}: old names; write {say}",
        DeprecationWarning,
        stacklevel=stacklevel,
    )
    return {**result, **made}


def _translated(old: dict[str, Any]) -> dict[str, Any]:
    """The new settings that old ones mean. What an old call left out has the new default."""
    made: dict[str, Any] = {}
    # In the old calls a spread won over a cap, and None meant that there was none.
    if old.get("spread") is not None:
        made["cap"] = Following(old["spread"])
    elif "max_param_sparsity" in old or "spread" in old:
        made["cap"] = Fixed(old.get("max_param_sparsity", 0.75))
    weights = {k: old[k] for k in ("restore_init", "prime_moments") if k in old}
    if weights:
        made["new_weights"] = NewWeights(**weights)
    if "scale_lr" in old or "max_lr_scale" in old:
        scale = LearningRateScale(*[old[k] for k in ("max_lr_scale",) if k in old])
        made["lr_scale"] = scale if old.get("scale_lr", True) else None
    return made
