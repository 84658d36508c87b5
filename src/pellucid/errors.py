"""Everything that pellucid raises on purpose: one tree, each leaf saying what was expected, what came, what to do.

PellucidError
├── ArgumentError (also a ValueError)   a setting or argument has the wrong type, range or shape
│   └── TargetError                     a label or index that this model does not have, or has twice
├── ModelError                          the network cannot be run or explained as it is
│   ├── MissingNeed                     the method needs what the model does not offer
│   ├── UntrustedModel                  a file that would run code, and nobody asked it to
│   ├── FixedShape                      a program exported for one batch or one size only
│   ├── CutError                        a network that Factored cannot cut, or not there
│   ├── LayerError                      a layer that there is not, that runs several times or gives no such map
│   ├── RuleError                       an executed operation that a method has no rule for
│   └── MemoryLimit                     a limit under what the least piece of the work needs
├── InputError                          a file or array that cannot become an input
├── RecipeError                         a stored result that cannot be read or run again here
└── OutputError                         a picture or file that cannot be written
"""

from typing import Any

__all__ = [
    "ArgumentError",
    "CutError",
    "FixedShape",
    "InputError",
    "LayerError",
    "MemoryLimit",
    "MissingNeed",
    "ModelError",
    "OutputError",
    "PellucidError",
    "RecipeError",
    "RuleError",
    "TargetError",
    "UntrustedModel",
]


class PellucidError(Exception):
    """Base of every error that pellucid raises on purpose."""


class ArgumentError(PellucidError, ValueError):
    """A setting or an argument has the wrong type, range or shape."""


class TargetError(ArgumentError):
    """A target that names a class which the model does not have, or has more than once."""


class ModelError(PellucidError):
    """The network cannot be run or explained as it is.

    In the middle of a black-box method nothing is lost: `attributions` hold what was done by then, as those of
    `Interrupted` do.
    """

    method: Any = None
    parts: tuple[tuple[int, Any, Any], ...] = ()
    attributions: tuple[Any, ...] = ()


class MissingNeed(ModelError):
    """The method needs something (gradients, weights) that the model does not offer."""


class UntrustedModel(ModelError):
    """Loading the file would execute code from it."""


class FixedShape(ModelError):
    """An exported program that takes one batch size or one input size only."""


class CutError(ModelError):
    """The network cannot be cut where its resolution changes, or not at the modules that were named."""


class LayerError(ModelError):
    """A layer that the network does not have, that runs several times, or whose activation the method cannot use."""


class RuleError(ModelError):
    """An operation that the network executes and that the method has no rule for."""


class MemoryLimit(ModelError):
    """The memory limit is smaller than the least piece of the work needs."""


class InputError(PellucidError):
    """A file or array that cannot become an input of the model."""


class RecipeError(PellucidError):
    """A stored result that cannot be read, or cannot be run again with this model and input."""


class OutputError(PellucidError):
    """A picture or a file that cannot be written where it was asked for."""
