"""What composes: every plugin and strategy of Avalanche 0.6, and our own, with the verdict on dense unlike tasks.

This is the one place that knows. Strategies ask it when they are made, and the README's table is printed by it:

    python -m medusa_cl.strategies.compose [--short]
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from medusa_cl import distributed
from medusa_cl.errors import ConfigError

AS_IS, DENSE, OWN, REPLACED, REFUSED = "as is", "with dense batches", "our own", "refused, ours instead", "refused"
KINDS = (AS_IS, DENSE, OWN, REPLACED, REFUSED)


@dataclass(frozen=True)
class Verdict:
    """Whether a class composes with dense unlike tasks.

    Attributes:
        name: Name of the class.
        kind: One of KINDS.
        why: One sentence: what to know of it, or why it is refused.
        instead: What to use where it is refused; may be empty.
        config: Its name in configs/plugins or configs/strategy; may be empty.
        strategy: It is a strategy, not a plugin.
        protects_shared: It has no effect where nothing shared is trainable.
        protects_old: It has no effect where nothing of what was learnt is trainable: neither backbone nor old heads.
        projects: It takes gradients of old tasks, and fails where nothing shared is trainable.
        resets: It undoes a freeze.
        feeds: It puts its own loader in the place of the strategy's; two of them do not go together.
        needs_steps: It sees an experience only by its steps, so it cannot follow one whose tasks were loaded.
        alone: Why it trains in one process only; empty where it goes with trainer.distributed too.
    """

    name: str
    kind: str
    why: str
    instead: str = ""
    config: str = ""
    strategy: bool = False
    protects_shared: bool = False
    protects_old: bool = False
    projects: bool = False
    resets: bool = False
    feeds: bool = False
    needs_steps: bool = False
    alone: str = ""

    @property
    def composes(self) -> bool:
        """Whether it is not refused."""
        return self.kind not in (REPLACED, REFUSED)


_REPLAY = "ReplayPlugin (plugins=[replay])"
_SCRATCH = "FromScratchTrainingPlugin(reset_optimizer=False) beside ReplayPlugin (plugins=[from_scratch,replay])"
_IMPORTANCE = "It adds a penalty on moving the weights that mattered to earlier tasks."
_SYNAPTIC = "Upstream finds every importance 0 on the CPU; mended when it is composed."
_MEMORY = "Its memory holds dense samples, and its batches mix tasks."
_PROJECTION = (
    "It needs trainable shared weights (freeze=none); it is mended to project the gradients of idle heads too."
)
_SCRATCH_WHY = "It needs reset_optimizer=False, as the optimizer is rebuilt for every experience anyway."
_LWF = "It takes every output for class scores and picks channels by task number."
_RWALK = "It fails at heads added later, and divides by zero where an experience is shorter than 10 steps."
_DISTIL = "It reads a `features` attribute of one tensor, and its mse mode passes an argument that does not exist."
_DER = "It unpacks samples as (image, class, task) and keeps one row of class scores an image."
_ALONE = "It keeps what it sees of the batches, of which each process sees a share, so memories would differ."
_GDUMB = "Its buffer repacks samples as (image, class), and it puts a copy in the place of the model."
_CWR = "It consolidates the rows of one last linear layer, class by class; dense heads have none."
_LFL = "It asks the model for one feature vector an image and freezes one last linear layer."
_MIR = "It sorts its memory by the classes of a batch and sets `reduction` on the criterion."
_RAR = "It looks for the nearest image of another class; dense targets have no class an image."
_GSS = "It keeps targets in a vector of class numbers."
_COPE = "It keeps a prototype for each class in place of one last linear layer."
_BIC = "It corrects the bias between old and new classes of a single head; here each task has its own."
_GENERATIVE = "It replays generated images labelled by the arg max over classes, from a generator that it expects."
_CLASS_MEANS = "It classifies by the distance to class means; dense targets have no class an image."
_ONLINE_CLASSES = "It sorts a batch and its memory by class, and collates samples as (image, class, task)."
_META = "It cuts targets by single images and classes; LaMAML also needs the abandoned package `higher`."
_BRINGS = "It brings a network of its own with one class head, so it cannot train this model."
_GENERATORS = "It trains an autoencoder, which is no task here."


def _strategies(*names: str, kind: str, why: str, instead: str = "", **flags: Any) -> list[Verdict]:
    return [Verdict(name, kind, why, instead, strategy=True, **flags) for name in names]


def _refused(*names: str, why: str, instead: str = "", kind: str = REFUSED) -> list[Verdict]:
    # In Avalanche a strategy that wraps a plugin is named like it, without the word.
    return [Verdict(name, kind, why, instead, strategy=not _is_plugin(name)) for name in names]


def _is_plugin(name: str) -> bool:
    return name.endswith(("Plugin", "Update", "Oracle"))


def _all() -> Iterable[Verdict]:
    yield from _strategies("Naive", "OnlineNaive", kind=AS_IS, why="The plain loop; MedusaPlugin and any plugin below.")
    yield from _strategies(
        "Cumulative", "JointTraining", kind=DENSE, why="Batches mix tasks; old ones teach with freeze=none."
    )
    yield Verdict("Clock", AS_IS, "Part of every strategy.")
    yield Verdict("EvaluationPlugin", AS_IS, "Made by dense_evaluator(loggers): text, CSV, TensorBoard, MLflow.")
    yield Verdict("LRSchedulerPlugin", AS_IS, "Not for LambdaLR, which cannot follow parts of unlike rates.")
    yield Verdict("EarlyStoppingPlugin", AS_IS, "Its metric is named `<task>_<metric>`, its stream val_stream.")
    yield Verdict(
        "FromScratchTrainingPlugin", AS_IS, _SCRATCH_WHY, config="from_scratch", resets=True, needs_steps=True
    )
    yield from _strategies("FromScratchTraining", kind=AS_IS, why=_SCRATCH_WHY)
    yield Verdict("EWCPlugin", AS_IS, _IMPORTANCE, config="ewc", protects_shared=True)
    yield Verdict("MASPlugin", AS_IS, _IMPORTANCE, config="mas", protects_shared=True)
    yield from _strategies("EWC", "MAS", kind=AS_IS, why=_IMPORTANCE)
    yield Verdict("SynapticIntelligencePlugin", AS_IS, _SYNAPTIC, config="si", protects_shared=True, needs_steps=True)
    yield from _strategies("SynapticIntelligence", kind=AS_IS, why=_SYNAPTIC)
    yield Verdict("ReplayPlugin", DENSE, _MEMORY, config="replay", protects_old=True, feeds=True)
    yield from _strategies("Replay", kind=DENSE, why=_MEMORY)
    yield Verdict("AGEMPlugin", DENSE, _PROJECTION, config="agem", projects=True)
    yield Verdict("GEMPlugin", DENSE, _PROJECTION, config="gem", projects=True)
    yield from _strategies("AGEM", "GEM", kind=DENSE, why=_PROJECTION)
    yield from _own()
    yield from _replaced()
    yield from _without_a_counterpart()


def _own() -> Iterable[Verdict]:
    yield Verdict("MedusaPlugin", OWN, "The freeze, for any SGD strategy of Avalanche.")
    yield Verdict("DenseLwF", OWN, "Distillation by kind of task.", config="lwf", protects_old=True)
    yield Verdict(
        "DenseDER",
        OWN,
        "Dark experience replay of logits; beta > 0: DER++.",
        config="der",
        protects_old=True,
        alone=_ALONE,
    )
    yield Verdict("FeatureDistillation", OWN, "Holds features.", config="feature_distillation", protects_shared=True)
    yield Verdict(
        "UniversalFeatures", OWN, "Terms on the features of experience 0, for later tasks.", config="universal"
    )
    yield Verdict("RWalk", OWN, _IMPORTANCE, config="rwalk", protects_shared=True, needs_steps=True)
    yield Verdict("EarlyStopping", OWN, "Ends an experience that gets no better on val.", config="early_stopping")
    yield Verdict("ValSelection", OWN, "Keeps an experience's best epoch on val (trainer.select=val).")
    yield Verdict("LRSchedule", OWN, "Cosine or poly rates for every part (trainer.schedule).")
    yield Verdict("GradientClipping", OWN, "Bounds the gradient's norm (trainer.clip).")
    yield Verdict("Progress", OWN, "Shows the steps.")
    yield Verdict("EqualRanks", OWN, "Keeps processes that train together equal (trainer.distributed).")


def _replaced() -> Iterable[Verdict]:
    yield from _refused("LwFPlugin", "LwF", why=_LWF, instead="DenseLwF (plugins=[lwf])", kind=REPLACED)
    yield from _refused("DER", why=_DER, instead="DenseDER (plugins=[der] or [derpp])", kind=REPLACED)
    yield from _refused("RWalkPlugin", why=_RWALK, instead="RWalk (plugins=[rwalk])", kind=REPLACED)
    features = "FeatureDistillation (plugins=[feature_distillation])"
    yield from _refused("FeatureDistillationPlugin", why=_DISTIL, instead=features, kind=REPLACED)
    yield from _refused("GDumbPlugin", "GDumb", why=_GDUMB, instead=_SCRATCH, kind=REPLACED)
    yield from _refused("LFLPlugin", "LFL", why=_LFL, instead=features, kind=REPLACED)
    saves = "the run directory, which a run goes on from"
    yield from _refused("CheckpointPlugin", why="Avalanche has withdrawn it.", instead=saves, kind=REPLACED)


def _without_a_counterpart() -> Iterable[Verdict]:
    yield from _refused("MIRPlugin", "MIR", why=_MIR, instead=_REPLAY)
    yield from _refused("RARPlugin", why=_RAR, instead=_REPLAY)
    yield from _refused("GSS_greedyPlugin", "GSS_greedy", why=_GSS, instead=_REPLAY)
    yield from _refused("CoPEPlugin", "CoPE", why=_COPE, instead=_REPLAY)
    yield from _refused("GenerativeReplayPlugin", "GenerativeReplay", why=_GENERATIVE, instead=_REPLAY)
    yield from _refused("TrainGeneratorAfterExpPlugin", why=_GENERATIVE, instead=_REPLAY)
    yield from _refused("ER_ACE", "ER_AML", "FeatureReplay", "SCR", why=_ONLINE_CLASSES, instead=_REPLAY)
    yield from _refused("ICaRL", why=_CLASS_MEANS, instead=_REPLAY)
    yield from _refused("MER", "LaMAML", why=_META, instead="AGEMPlugin (plugins=[agem])")
    linear = "strategy=linear_probe"
    yield from _refused("StreamingLDA", why=_CLASS_MEANS, instead=linear)
    yield from _refused("CurrentDataNCMUpdate", "MemoryNCMUpdate", "NCMOracle", why=_CLASS_MEANS, instead=linear)
    yield from _refused("CurrentDataFeCAMUpdate", "MemoryFeCAMUpdate", "FeCAMOracle", why=_CLASS_MEANS, instead=linear)
    yield from _refused("CWRStarPlugin", "CWRStar", why=_CWR, instead="heads of their own, which every strategy has")
    yield from _refused("BiCPlugin", "BiC", why=_BIC, instead="heads of their own, which every strategy has")
    packs = "It wants a network whose layers it can prune, none of them BatchNorm."
    yield from _refused("PackNet", why=packs, instead="strategy=adapters")
    grows = "It wants a network of columns that it can add to."
    yield from _refused("PNNStrategy", why=grows, instead="strategy=adapters or strategy=single_task")
    yield from _refused("AR1", "LearningToPrompt", why=_BRINGS, instead="strategy=adapters")
    yield from _refused("ExpertGateStrategy", why=_BRINGS, instead="strategy=single_task")
    yield from _refused("AETraining", "VAETraining", why=_GENERATORS)
    boxes = "It trains detectors, whose images are lists and whose losses are inside the model."
    yield from _refused("ObjectDetectionTemplate", why=boxes, instead="Naive(plugins=[MedusaPlugin()])")


MENDS = {
    "SynapticIntelligencePlugin": "mend_synaptic",
    "MASPlugin": "mend_aware",
    "ReplayPlugin": "mend_replay",
    "AGEMPlugin": "mend_agem",
    "GEMPlugin": "mend_gem",
}
FROM_THE_LAST = ("ReplayPlugin", "AGEMPlugin", "GEMPlugin", "DenseLwF", "FeatureDistillation")
VERDICTS: Mapping[str, Verdict] = {verdict.name: verdict for verdict in _all()}


def verdict_of(thing: Any) -> Verdict | None:
    """Return the verdict on a plugin or a strategy by its class, or by the nearest class it is made from.

    Names alone are looked at, so that nothing of Avalanche is imported; None for a class that nothing is known of.
    """
    for cls in type(thing).__mro__:
        if cls.__module__.startswith(("avalanche.", "medusa_cl.")) and cls.__name__ in VERDICTS:
            return VERDICTS[cls.__name__]
    return None


def check(plugins: Iterable[Any], *, shared_trainable: bool, old_trainable: bool) -> None:
    """Refuse plugins that do not compose, warn of those without effect, and mend what can be mended.

    Args:
        plugins: The plugins beside Medusa's own.
        shared_trainable: Whether tasks after experience 0 train anything that others use.
        old_trainable: Whether anything of what was learnt is trainable then, shared or not.

    Raises:
        ConfigError: A plugin does not compose, or not with these options or with another one.
    """
    known = [(plugin, verdict) for plugin in plugins if (verdict := verdict_of(plugin)) is not None]
    for plugin, verdict in known:
        refusal = _refusal(plugin, verdict, shared_trainable)
        if refusal:
            raise ConfigError(refusal)
    _refuse_two_feeders(known)
    for plugin, verdict in known:
        useless = (verdict.protects_shared and not shared_trainable) or (verdict.protects_old and not old_trainable)
        if useless:
            _warn(plugin, verdict)
        _mend(plugin, verdict)


def _mend(plugin: Any, verdict: Verdict) -> None:
    mend = MENDS.get(verdict.name)
    if mend is not None:
        from medusa_cl.strategies import upstream  # brings torch, which the verdicts can do without

        getattr(upstream, mend)(plugin)


def check_strategy(strategy: Any) -> None:
    """Refuse or warn as `check` does, of a strategy of Avalanche that hosts `MedusaPlugin`, and of its plugins.

    Args:
        strategy: The strategy; what is trainable is asked of its `MedusaPlugin`.

    Raises:
        ConfigError: The strategy or one of its plugins does not compose, or its model is none of ours.
    """
    verdict = verdict_of(strategy)
    if verdict is not None and not verdict.composes:
        raise ConfigError(_does_not_compose(verdict))
    if not _made_from(strategy.model, "DenseModule"):
        raise ConfigError(
            f"Expected a DenseModule as the model of {type(strategy).__name__}, but got "
            f"{type(strategy.model).__name__}. Make one by medusa_cl.dense_model(...)."
        )
    medusa = next((plugin for plugin in strategy.plugins if _made_from(plugin, "MedusaPlugin")), None)
    check(
        strategy.plugins,
        shared_trainable=medusa is None or medusa.shared_trainable,
        old_trainable=medusa is None or medusa.old_trainable,
    )


def follow_loaded(plugins: Iterable[Any], *, changed_since: bool = False) -> None:
    """Refuse plugins that cannot follow an experience whose tasks were loaded and not trained.

    Args:
        plugins: The plugins.
        changed_since: Whether weights that they look at have changed since some of these experiences.

    Raises:
        ConfigError: A plugin learns what it needs from the steps of training, or from weights that are gone.
    """
    for plugin in plugins:
        verdict = verdict_of(plugin)
        if verdict is not None and verdict.needs_steps:
            raise ConfigError(
                f"{type(plugin).__name__} learns what mattered to a task from the steps of its training, so it cannot "
                "follow tasks that were loaded. Train from the start (base=null, no extend=), or use EWC or MAS "
                "(plugins=[ewc] or [mas])."
            )
        if changed_since and verdict is not None and not _tells_from_the_last(verdict):
            raise ConfigError(
                f"{type(plugin).__name__} remembers the weights as they were after each task, and a finished run keeps "
                "only the last ones. Learn the whole stream anew, or leave it out."
            )


def _tells_from_the_last(verdict: Verdict) -> bool:
    """Return whether a plugin remembers of earlier tasks only what the last weights, or the data, still tell."""
    remembers = verdict.protects_shared or verdict.protects_old or verdict.projects
    return not remembers or verdict.name in FROM_THE_LAST


def idle_at_first(plugin: Any) -> bool:
    """Return whether a plugin changes nothing of how experience 0 is learnt: it only acts for the sake of old tasks."""
    verdict = verdict_of(plugin)
    if verdict is None or verdict.needs_steps:
        return False
    return verdict.protects_shared or verdict.protects_old or verdict.projects


def _made_from(thing: Any, name: str) -> bool:
    return any(cls.__name__ == name for cls in type(thing).__mro__)


def _refusal(plugin: Any, verdict: Verdict, shared_trainable: bool) -> str | None:
    """Say why a plugin cannot be part of a strategy; None where it can."""
    if not verdict.composes:
        return _does_not_compose(verdict)
    if verdict.alone and distributed.world() > 1:
        return (
            f"{verdict.name} does not go with trainer.distributed. {verdict.alone} "
            "Leave it out, use ReplayPlugin (plugins=[replay]), or train in one process."
        )
    if verdict.projects and not shared_trainable:
        return (
            f"{verdict.name} projects the gradients of shared weights, but none is trainable after experience 0. "
            "Set strategy.freeze=none, or leave it out: with the freeze nothing is forgotten."
        )
    if verdict.resets and not shared_trainable:
        return (
            f"{verdict.name} sets weights back before each experience, the frozen ones too. "
            "Set strategy.freeze=none and strategy.freeze_old_heads=false, or leave it out."
        )
    return _OPTIONS[verdict.name](plugin) if verdict.name in _OPTIONS else None


def _does_not_compose(verdict: Verdict) -> str:
    use = f" Use {verdict.instead}." if verdict.instead else ""
    return f"{verdict.name} does not compose with dense tasks. {verdict.why}{use}"


def _from_scratch(plugin: Any) -> str | None:
    if not plugin.reset_optimizer:
        return None
    return (
        "FromScratchTrainingPlugin(reset_optimizer=True) puts every weight back into the optimizer, frozen ones too, "
        "and fails where heads and backbone have rates of their own. Set reset_optimizer=False: the optimizer is "
        "rebuilt for every experience anyway."
    )


def _replay(plugin: Any) -> str | None:
    policy = plugin.storage_policy
    balanced = "replay_memory.TaskBalancedBuffer (plugins=[replay_balanced])"
    by_class = _made_from(policy, "ClassBalancedBuffer") or getattr(policy, "groupby", None) == "class"
    if _made_from(policy, "TaskBalancedBuffer"):
        return None
    if by_class:
        return (
            f"A memory of {type(policy).__name__} by class repacks dense samples as (image, class), but an image "
            f"has no class. Use {balanced}: the same by task."
        )
    if plugin.task_balanced_dataloader:
        return (
            f"ReplayPlugin(task_balanced_dataloader=True) asks its memory for task sets, which a "
            f"{type(policy).__name__} loses. Set storage_policy to {balanced}."
        )
    return None


def _gem(plugin: Any) -> str | None:
    if find_spec("quadprog") is not None:
        return None
    return "GEMPlugin needs the package quadprog, which is not installed. Run: pip install quadprog."


_OPTIONS: Mapping[str, Callable[[Any], str | None]] = {
    "FromScratchTrainingPlugin": _from_scratch,
    "ReplayPlugin": _replay,
    "GEMPlugin": _gem,
}


def _refuse_two_feeders(known: Iterable[tuple[Any, Verdict]]) -> None:
    feeders = [verdict.name for _, verdict in known if verdict.feeds]
    if len(feeders) > 1:
        raise ConfigError(
            f"Expected one plugin that loads the batches, but got {' and '.join(feeders)}: the last one would "
            "put the others out of use. Keep one."
        )


_warned: weakref.WeakSet[Any] = weakref.WeakSet()


def _warn(plugin: Any, verdict: Verdict) -> None:
    if plugin in _warned:
        return
    _warned.add(plugin)
    warnings.warn(
        f"{verdict.name} has no effect here: it protects what was learnt, and nothing of that is trainable after "
        "experience 0. It has one with strategy.freeze=none; leave it out otherwise.",
        stacklevel=4,
    )


def table() -> str:
    """Return the verdicts as a table in Markdown: verdict, plugins and strategies, note."""
    groups: dict[tuple[str, str, str], list[Verdict]] = {}
    for verdict in VERDICTS.values():
        groups.setdefault((verdict.kind, verdict.why, verdict.instead), []).append(verdict)
    lines = ["| verdict | plugins and strategies | note |", "|---|---|---|"]
    for kind in KINDS:
        for (of_kind, why, instead), verdicts in groups.items():
            if of_kind == kind:
                note = f"{why} Use {instead}." if instead else why
                lines.append(f"| {kind} | {', '.join(map(_named, verdicts))} | {note} |")
    return "\n".join(lines) + "\n"


def short_table() -> str:
    """Return what composes, in a line for each verdict; what is refused is left to `table`."""
    lines = ["| verdict | plugins | strategies |", "|---|---|---|"]
    for kind in KINDS:
        found = [v for v in VERDICTS.values() if v.kind == kind and v.composes and (v.config or v.strategy)]
        plugins = ", ".join(_named(v) for v in found if not v.strategy)
        lines.append(f"| {kind} | {plugins} | {', '.join(f'`{v.name}`' for v in found if v.strategy)} |")
    return "\n".join(line for line in lines if not line.endswith("|  |  |")) + "\n"


def _named(verdict: Verdict) -> str:
    return f"`{verdict.name}`" + (f" (`plugins=[{verdict.config}]`)" if verdict.config else "")


if __name__ == "__main__":
    print(short_table() if sys.argv[1:] == ["--short"] else table(), end="")
