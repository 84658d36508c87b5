"""pellucid shows why a trained model decided, how certain that picture is, and whether it deserves trust.

Nothing is imported before it is used: `import pellucid` costs neither torch nor matplotlib. What is public stands in
`__init__.pyi` beside this file, which `make generate` writes from each module's `__all__`.
"""

from importlib import import_module

import lazy_loader

from pellucid.core.recipe import discover_with

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def _discover() -> None:
    import_module("pellucid.catalogue").registered()
    for name in (
        "core.factored",
        "modalities.image.preprocess",
        "modalities.image.shrunk",
        "modalities.image.combined",
    ):
        import_module(f"pellucid.{name}")


# The core names no method; this is where the whole is put together.
discover_with(_discover)
