"""Finding a plug-in by name: one file per plug-in, no table to edit."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Any

from search_gym.errors import MissingDependencyError, OptionError, UnknownNameError


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional dependency.

    Raises:
        MissingDependencyError: ``module`` is not installed; the message holds the line that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise MissingDependencyError(
            f"expected the package {module!r} to be installed, got none; do: pip install 'search-gym[{extra}]'",
            name=error.name,
        ) from error


def names(package: ModuleType) -> list[str]:
    """The public plug-in names inside ``package``: its modules that do not start with an underscore, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_"))


def find(package: ModuleType, spec: str, attribute: str) -> Callable[..., Any]:
    """The function behind ``spec``: ``attribute`` of the module ``package.<spec>``, or ``"some.module:attribute"``.

    Raises:
        UnknownNameError: there is no such plug-in; the message suggests the closest names.
    """
    if ":" in spec:
        return find_outside(spec)
    known = names(package)
    if spec not in known:
        kind = package.__name__.rpartition(".")[2]
        close = difflib.get_close_matches(spec, known, n=2)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known names: {', '.join(known)}."
        raise UnknownNameError(f"expected a name in {kind} or 'package.module:attribute', got {spec!r}; {hint}")
    return getattr(importlib.import_module(f"{package.__name__}.{spec}"), attribute)


def find_outside(spec: str) -> Callable[..., Any]:
    """The attribute named by ``"package.module:attribute"``.

    Raises:
        UnknownNameError: it cannot be imported.
    """
    module_name, _, attribute = spec.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        raise UnknownNameError(f"expected an importable 'package.module:attribute', got {spec!r}: {error}") from error


def call(function: Callable[..., Any], spec: str, *args: Any, **options: Any) -> Any:
    """Call a plug-in, turning a misspelt option into an error that names the right ones.

    Raises:
        OptionError: ``options`` holds a name that ``function`` does not take, or lacks one that it needs.
    """
    check_options(function, spec, *args, **options)
    return function(*args, **options)


def check_options(function: Callable[..., Any], spec: str, *args: Any, **options: Any) -> None:
    """Raises OptionError: see `call`, which this is without calling."""
    signature = inspect.signature(function)
    try:
        signature.bind(*args, **options)
    except TypeError as error:
        known = [p.name for p in signature.parameters.values() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
        raise OptionError(f"expected options of {spec!r} among {known}, got {sorted(options)}: {error}") from error
