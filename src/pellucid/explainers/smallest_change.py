"""The smallest change found that flips the decision: which segments must go for the model to decide otherwise.

    M_j = 1 if j in A, else 0,   A with m(A) < 0,   m(A) = z_c(x without A) - max_{k != c} z_k(x without A)

A counterfactual by removal (Martens & Provost 2014, SEDC). z are logits, or log probabilities, which have the same
differences. Greedy: at each step the segment goes whose removal lowers the margin m most; once the class has flipped,
segments come back as long as it stays flipped; and where the budget allows, all smaller sets are tried. What is proved
of A stands in the recipe as `proof`.
"""

from dataclasses import dataclass, replace

from pellucid.core.baseline import Background
from pellucid.core.card import Applicability, Cost, MethodCard, Needs, Per, Scope, Stage
from pellucid.core.checks import check_count
from pellucid.core.explainer import Call
from pellucid.core.model import Model
from pellucid.core.queries import Answers, Question, Run
from pellucid.core.target import Targets
from pellucid.errors import ArgumentError
from pellucid.explainers._queried import Place, Segmented
from pellucid.explainers._removals import Lead, Removals, Search

__all__ = ["SmallestChange"]


@dataclass(frozen=True, kw_only=True)
class SmallestChange(Segmented):
    """1 for segments of the smallest set found whose removal flips the decision, 0 elsewhere (Martens & Provost 2014).

    `segments` divides each input, `baseline` (no Background: a decision is about one input) stands in for what is taken
    away, `budget` is the most model calls. The decision is flipped once another class has a higher output; with
    target=Margin(a, b), once b has. The recipe notes `size`, `flips to`, the margin before and after, and as `proof`
    whether the set is the smallest of all, or only such that each of its segments is needed. If nothing flips the class
    the map is zero, and a finding says so.

    Raises:
        ArgumentError: a setting out of range; when used, a model that decides between no classes.

    Example:
        >>> import torch, pellucid as pl
        >>> model = pl.FunctionModel(lambda rows: rows @ [[1.0, 0.0], [2.0, 0.0], [0.0, 2.5]], output="logits")
        >>> a = pl.SmallestChange(baseline=pl.Zeros())(model, torch.ones(1, 3))
        >>> a.scores, a.recipe.notes["proof"]
        (tensor([[0., 1., 0.]]), ['smallest of all: every smaller set was tried, and none flips the class'])
    """

    budget: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("budget", self.budget)
        if isinstance(self.baseline, Background):
            raise ArgumentError(
                "SmallestChange looks for one altered input that is decided otherwise, and a Background makes many of "
                "each. Take one baseline, such as FeatureMean() or Blur()."
            )

    @property
    def card(self) -> MethodCard:
        return MethodCard(
            name="smallest-change",
            title="SmallestChange",
            scope=Scope.LOCAL,
            stage=Stage.POST_HOC,
            applicability=Applicability.MODEL_AGNOSTIC,
            needs=Needs.SCORES,
            cost=Cost(forward=self.budget),
            reference="Martens & Provost 2014, doi:10.25300/MISQ/2014/38.1.04",
            unit="in the set",
            per=Per.SEGMENT,
            channels="max_abs",
            caveats=(
                "a set that flips the class, and the smallest only where its proof says so",
                "the baseline decides what absent means",
            ),
        )

    @property
    def limit(self) -> int:
        return self.budget

    def shortened(self, calls: int) -> "SmallestChange":
        return replace(self, budget=calls)

    def goals(self, model: Model, targets: Targets) -> Targets:
        """How far the class of each target leads the others."""
        if targets.kind not in Lead.kinds:
            raise ArgumentError(
                f"SmallestChange flips a decision between classes, but {model.name} gives a {targets.kind}. Give a "
                "column of outputs for each class (two for yes and no), with output='probabilities' or 'logits'."
            )
        if not all(target.classes for target in targets):
            raise ArgumentError("SmallestChange flips a decision between classes, and a unit of a layer is none.")
        return Targets(tuple(Lead(*target.classes) for target in targets), targets.kind)

    def question(self, place: Place, calls: int) -> Question:
        return Removals(place)

    def _run(self, model: Model, place: Place, target: Targets, i: int, call: Call) -> Run:
        return Search(Answers(model, Removals(place), target, place.x), self.budget, call.spent, self.card.title)
