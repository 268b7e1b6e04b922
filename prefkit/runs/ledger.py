"""The ledger: what the reports claim, how each claim is decided, and what came of it.

`data/ledger.yaml` says of every claim which number of which experiment decides it, on which side
the claim has it and from where on a difference matters, before the experiment is run on the
ledger's own seeds. Results stand in `data/results/ledger/`.
"""

import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import yaml
from scipy.stats import rankdata

from prefkit.core import ConfigError, DataError, nearest, project_root, resolve_path, shipped
from prefkit.judging.kinds import make
from prefkit.runs.config import load_config
from prefkit.runs.seeds import open_results, run_seeds
from prefkit.stats.verdicts import (
    OPEN,
    CLAIMED,
    ClaimVerdict,
    benjamini_yekutieli,
    judge_claim,
    judge_together,
)

SEEDS = (5, 6, 7, 8, 9)  # none of them was looked at before the criteria were written
SITE = "https://prefkit.github.io/prefkit"  # where the lessons are published
# what may be said of a claim, what is told first
_SAYINGS = (
    "holds",
    "does not hold",
    "reversed",
    "cannot be told",
    "not run yet",
    "not testable here",
)
_NUMBERS = ("mean", "low", "high", "p", "detectable", "n")  # of a `ClaimVerdict`
POINTS = 0.05  # of a win rate or share: the smallest effect of interest unless a claim says another

# ---- measures: one number from what one seed has found


def _row(rows: list[dict], what: str, **wanted) -> dict:
    "The one row of a table with these values; raises `DataError`."
    found = [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]
    if len(found) != 1:
        told = ", ".join(f"{key} {value}" for key, value in wanted.items())
        raise DataError(
            f"{what}: {len(found)} rows with {told}, where one is needed.",
            field=what,
            reason="not one row",
        )
    return found[0]


def _way(rows: list[dict], decoding: str) -> dict:
    "The decoding as a column, where a table has several."
    return {"decoding": decoding} if any("decoding" in row for row in rows) else {}


class Measure:
    "What one seed's findings are asked for."

    def models(self) -> set[str]:  # of an evaluation
        return set()

    def stages(self) -> set[str]:
        return set()


@dataclass(frozen=True)
class WinRateOf(Measure):
    """How often a model wins against another by a judge, less the same of a third model, or by
    another judge, or one half.
    """

    kind: ClassVar[str] = "win_rate"
    of: str
    against: str
    less: str = ""
    judge: str = "gold"
    less_judge: str = ""
    decoding: str = "sampled"
    effect: ClassVar[float | None] = POINTS

    def value(self, found: dict) -> float:
        rows = found.get("win_rates", [])
        way = _way(rows, self.decoding)

        def rate(model, judge):
            if any((row["model"], row["reference"]) == (self.against, model) for row in rows):
                turned = {
                    "model": self.against,
                    "reference": model,
                }  # evaluated the other way round
                return 1 - _row(rows, "win_rates", **turned, judge=judge, **way)["rate"]
            named = {"model": model, "reference": self.against}
            return _row(rows, "win_rates", **named, judge=judge, **way)["rate"]

        if not self.less and not self.less_judge:
            return rate(self.of, self.judge) - 0.5
        other = rate(self.less or self.of, self.less_judge or self.judge)
        return rate(self.of, self.judge) - other

    def models(self) -> set[str]:
        return {self.of, self.against, self.less} - {""}


@dataclass(frozen=True)
class ScoreOf(Measure):
    "A column of an evaluation's scores (gold, second, right, tokens, ...), less another model's."

    kind: ClassVar[str] = "score"
    of: str
    column: str
    less: str = ""
    than: float = 0.0  # subtracted, too
    decoding: str = "sampled"

    @property
    def effect(self) -> float | None:
        return POINTS if self.column in ("right", "sampled", "any", "ended") else None

    def value(self, found: dict) -> float:
        rows = found.get("scores", [])
        way = _way(rows, self.decoding)
        one = lambda model: _row(rows, "scores", model=model, **way)[self.column]
        return one(self.of) - (one(self.less) if self.less else 0.0) - self.than

    def models(self) -> set[str]:
        return {self.of, self.less} - {""}


@dataclass(frozen=True)
class TextOf(Measure):
    "A column of what the pipeline `texts` measures (bleu_4, perplexity), less another model's."

    kind: ClassVar[str] = "text"
    of: str
    column: str
    less: str = ""
    effect: ClassVar[float | None] = None

    def value(self, found: dict) -> float:
        one = lambda model: _row(found.get("texts", []), "texts", model=model)[self.column]
        return one(self.of) - (one(self.less) if self.less else 0.0)

    def models(self) -> set[str]:
        return {self.of, self.less} - {""}


@dataclass(frozen=True)
class Distance(Measure):
    "KL from the start in nats an answer, less another model's."

    kind: ClassVar[str] = "kl"
    of: str
    less: str = ""
    effect: ClassVar[float | None] = None

    def value(self, found: dict) -> float:
        one = lambda model: _row(found.get("distances", []), "distances", model=model)["kl"]
        return one(self.of) - (one(self.less) if self.less else 0.0)

    def models(self) -> set[str]:
        return {self.of, self.less} - {""}


_PLACES = ("first", "last", "lowest", "highest", "change", "turn", "drop", "rises")


@dataclass(frozen=True)
class Training(Measure):
    """A column of a stage's lines at one place of its course, less another stage's. `change` is the
    last less the first, `turn` the last less the lowest, `drop` the highest less the last, `rises`
    the share of lines that lie above the one before.
    """

    kind: ClassVar[str] = "training"
    of: str  # a stage
    column: str
    at: str = "last"
    minus: str = ""  # another column, subtracted line by line
    less: str = ""  # another stage
    than: float = 0.0  # subtracted, too
    split: str = "validation"
    effect: ClassVar[float | None] = None

    def __post_init__(self):
        if self.at not in _PLACES:
            raise ConfigError(f"at: {self.at!r} is none of {', '.join(_PLACES)}.", field="at")

    def value(self, found: dict) -> float:
        mine = self._at(found, self.of)
        return mine - (self._at(found, self.less) if self.less else 0.0) - self.than

    def _at(self, found, stage):
        lines = found.get("training", {}).get(stage, [])
        columns = [self.column, *([self.minus] if self.minus else [])]
        kept = [
            [line[name] for name in columns]
            for line in lines
            if line.get("split") == self.split
            and all(line.get(name) is not None for name in columns)
        ]
        values = [first - sum(rest) for first, *rest in kept]
        if not values:
            raise DataError(
                f"training: {stage} has no {self.column} among its {self.split} lines.",
                field=self.column,
                reason="missing",
            )
        places = {
            "first": values[0],
            "last": values[-1],
            "lowest": min(values),
            "highest": max(values),
            "change": values[-1] - values[0],
            "turn": values[-1] - min(values),
            "drop": max(values) - values[-1],
            "rises": sum(b > a for a, b in zip(values, values[1:])) / max(1, len(values) - 1),
        }
        return float(places[self.at])

    def stages(self) -> set[str]:
        return {self.of, self.less} - {""}


@dataclass(frozen=True)
class Seconds(Measure):
    "Wall time of stages over that of others, less a number."

    kind: ClassVar[str] = "seconds"
    of: list
    over: list
    than: float
    effect: ClassVar[float | None] = None

    def value(self, found: dict) -> float:
        total = lambda names: sum(found["wall_seconds"][name] for name in names)
        return total(self.of) / total(self.over) - self.than

    def stages(self) -> set[str]:
        return {*self.of, *self.over}


@dataclass(frozen=True)
class Order(Measure):
    "Spearman's correlation of win rates with reported numbers of the same models."

    kind: ClassVar[str] = "order"
    reported: dict  # model -> number
    against: str
    judge: str = "gold"
    decoding: str = "sampled"
    effect: ClassVar[float | None] = None

    def value(self, found: dict) -> float:
        ours = [
            WinRateOf(model, self.against, judge=self.judge, decoding=self.decoding).value(found)
            for model in self.reported
        ]
        ranks, own = rankdata(list(self.reported.values())), rankdata(ours)
        return float(np.corrcoef(ranks, own)[0, 1]) if np.ptp(own) else 0.0

    def models(self) -> set[str]:
        return {*self.reported, self.against}


LEDGER_MEASURES = {
    one.kind: one for one in (WinRateOf, ScoreOf, TextOf, Distance, Training, Seconds, Order)
}


# ---- claims


@dataclass(frozen=True)
class LedgerClaim:
    "A claim of a report, and how it is decided."

    id: str
    report: str  # of data/reported
    claim: str
    place: str  # where the report says it
    lesson: str  # whose file's name, without its number, explains it
    says: str = "above"
    measures: tuple = ()
    effect: float = 0.0
    config: str = ""  # below data/configs, without .yaml
    exact: dict = field(default_factory=dict)  # {verdict, by}: decided by computation
    untestable: str = ""  # why
    reported: str = ""  # the report's number, in words

    @property
    def results(self) -> str:  # below data/results
        return f"ledger/{self.config.replace('/', '_')}.json"

    def judge(self, seeds: dict[str, dict]) -> ClaimVerdict:  # what the seeds of its config found
        "What these seeds say; raises `DataError` where one of them lacks what is measured."
        told = []
        for measure in self.measures:
            values = [measure.value(found) for found in seeds.values()]
            told.append(judge_claim(values, self.says, self.effect))
        return judge_together(told)


_KEYS = set(LedgerClaim.__dataclass_fields__) - {"measures"} | {"measure"}


def _measures(given: Any, where: str) -> tuple:
    made = []
    for one in given if isinstance(given, list) else [given]:
        if not isinstance(one, dict) or len(one) != 1:
            raise ConfigError(
                f"{where}: a measure is one of {', '.join(LEDGER_MEASURES)} with options."
            )
        [(kind, options)] = one.items()
        if kind not in LEDGER_MEASURES:
            raise ConfigError(
                f"{where}: there is no measure `{kind}`.{nearest(kind, LEDGER_MEASURES)}"
            )
        made.append(make(LEDGER_MEASURES[kind], options, where))
    return tuple(made)


def _claim(given: dict) -> LedgerClaim:
    where = f"ledger, {given.get('id', '?')}"
    for key in given:
        if key not in _KEYS:
            raise ConfigError(f"{where}: there is no `{key}`.{nearest(key, _KEYS)}", field=key)
    rest = {key: value for key, value in given.items() if key != "measure"}
    ways = [key for key in ("measure", "exact", "untestable") if given.get(key)]
    if len(ways) != 1:
        raise ConfigError(
            f"{where}: a claim is decided by a measure, exactly, or says why it is untestable; "
            f"this one has {' and '.join(ways) or 'none of them'}.",
            field="measure",
            reason="not one way",
        )
    if ways != ["measure"]:
        return make(LedgerClaim, rest, where)
    measures = _measures(given["measure"], where)
    effects = [measure.effect for measure in measures]
    if "effect" not in given and (None in effects or len(set(effects)) > 1):
        raise ConfigError(
            f"{where}: effect: say from where on a difference matters, in the measure's units.",
            field="effect",
            reason="missing",
        )
    made = make(LedgerClaim, {"effect": effects[0], **rest, "measures": measures}, where)
    if made.says not in CLAIMED or not made.config or made.effect <= 0:
        raise ConfigError(
            f"{where}: says is one of {', '.join(CLAIMED)}, config names an experiment, effect is "
            "above 0.",
            field="says",
            reason="not usable",
        )
    return made


def open_ledger(
    path: str | Path | None = None,  # None: data/ledger.yaml
) -> list[LedgerClaim]:
    "All claims, checked; raises `ConfigError`."
    file = Path(path) if path else shipped("data/ledger.yaml")
    claims = [_claim(one) for one in yaml.safe_load(file.read_text(encoding="utf-8"))["claims"]]
    names = [one.id for one in claims]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"ledger, {name}: stands {names.count(name)} times.", field="id")
    return claims


def check_claim(
    claim: LedgerClaim,
):
    "Raise `ConfigError` for a stage or model that the claim's config has not."
    if not claim.measures:
        return
    config = load_config(shipped(f"data/configs/{claim.config}.yaml"))
    stages = {stage.name: stage for stage in config.stages}
    models = set()
    for stage in stages.values():
        if stage.pipeline.stem.startswith("evaluate") or stage.pipeline.stem == "texts":
            models |= set(stage.parameters["models"])
    for measure in claim.measures:
        for known, asked in (
            (models, measure.models()),
            (set(stages), measure.stages()),
        ):
            for name in asked:
                if name not in known:
                    raise ConfigError(
                        f"ledger, {claim.id}: {claim.config} has no `{name}`."
                        f"{nearest(name, known)}",
                        field=name,
                        reason="not in the config",
                    )


# ---- what came of it


def held(claim: LedgerClaim) -> dict[str, dict]:
    """The ledger's seeds of a claim's config that have been run; {} for none. Raises `ConfigError`
    where their file is broken.
    """
    if not resolve_path(Path("data/results") / claim.results).exists():
        return {}
    found = open_results(claim.results, "prefkit ledger --run")["seeds"]
    return {seed: one for seed, one in found.items() if int(seed) in SEEDS}


def verdicts(
    claims: list[LedgerClaim],
) -> dict[
    str, ClaimVerdict | None
]:  # id -> what was found; None: not run, or on fewer than two seeds
    "What the committed results say of every claim that is measured."
    found = {}
    for claim in claims:
        if claim.measures:
            seeds = held(claim)
            try:
                found[claim.id] = claim.judge(seeds) if len(seeds) == len(SEEDS) else None
            except DataError as error:
                raise error.at(f"ledger, {claim.id}") from error
    return found


def corrected(
    found: dict[str, ClaimVerdict | None],
    rate: float = 0.05,  # of false ones among what is told
) -> dict[str, str]:  # id -> what is said when all claims are looked at together
    "What still stands where the false discovery rate is held; the rest cannot be told."
    told = {name: one for name, one in found.items() if one is not None}
    stands = benjamini_yekutieli([one.p for one in told.values()], rate)
    return {name: one.said if ok else OPEN for (name, one), ok in zip(told.items(), stands)}


def run_claims(
    claims: list[LedgerClaim],
    seeds: tuple[int, ...] = SEEDS,
    jobs: int = 1,  # stages at a time
    output_root: str | Path | None = None,  # holds the experiments' folders
    progress: str = "auto",
) -> list[Path]:  # results, one for each config
    "Run what these claims need and has not been run, one experiment after another."
    made = []
    for config in dict.fromkeys(one.config for one in claims if one.config):
        results = next(one.results for one in claims if one.config == config)
        output = project_root() / "data/results" / results
        made.append(
            run_seeds(
                resolve_path(f"data/configs/{config}.yaml"),
                list(seeds),
                output,
                output_root=output_root,
                progress=progress,
                jobs=jobs,
                lines=True,
                add=True,
            )
        )
    return made


def still_missing(claim: LedgerClaim) -> str:
    "What is said of a claim whose seeds have not all been run."
    there = len(held(claim))
    return f"not run yet ({there} of {len(SEEDS)} seeds)" if there else "not run yet"


def ledger_lines(
    claims: list[LedgerClaim],
    found: dict[str, ClaimVerdict | None],
) -> list[str]:
    "A line for each claim: what is said of it, alone and together with all others."
    together = corrected(found)
    lines = []
    for claim in claims:
        verdict = found.get(claim.id)
        if claim.untestable:
            said = "not testable here"
        elif claim.exact:
            said = f"{claim.exact['verdict']} (exact)"
        elif verdict is None:
            said = still_missing(claim)
        else:
            alone = "" if together[claim.id] == verdict.said else f" (alone: {verdict.said})"
            said = f"{together[claim.id]}{alone}"
        lines.append(f"{claim.id:<22} {said:<34} {claim.claim}")
    return lines


def claim_words(
    claim: LedgerClaim,
    verdict: ClaimVerdict | None,
) -> list[str]:
    "All that there is to say of one claim."
    lines = [f"{claim.id}: {claim.claim}", f"said in: {claim.place}"]
    if claim.reported:
        lines.append(f"reported: {claim.reported}")
    if claim.untestable:
        return [*lines, f"not testable here: {claim.untestable}"]
    if claim.exact:
        return [*lines, f"decided exactly: {claim.exact['verdict']} ({claim.exact['by']})"]
    lines.append(f"decided by: {claim.config}, says {claim.says}, effect {claim.effect:g}")
    if verdict is None:
        return [*lines, f"{still_missing(claim)}: prefkit ledger --claim {claim.id} --run"]
    return [
        *lines,
        f"found: {verdict.mean:+.3f} [{verdict.low:+.3f}, {verdict.high:+.3f}], {verdict.n} seeds, "
        f"smallest detectable {verdict.detectable:.3f}, p {verdict.p:.2g}",
        f"verdict: {verdict.said}",
    ]


def ledger_table(
    claims: list[LedgerClaim],
    found: dict[str, ClaimVerdict | None],
    site: str = SITE,  # where the lessons are published
) -> pd.DataFrame:  # a row for each claim, in the ledger's order
    """What the page draws: what is said of a claim with all others (`said`) and by itself
    (`alone`), its numbers in the measure's own units, and the address of its lesson.
    """
    together, rows, nbs = corrected(found), [], project_root() / "nbs"
    for claim in claims:
        verdict = found.get(claim.id)
        lesson = lesson_of(claim)
        numbers = asdict(verdict) if verdict else {}
        if claim.untestable:
            said = "not testable here"
        elif claim.exact:
            said = claim.exact["verdict"]
        else:
            said = together.get(claim.id, "not run yet")
        rows.append(
            {
                "id": claim.id,
                "report": claim.report,
                "claim": claim.claim,
                "place": claim.place,
                "reported": claim.reported or None,
                "said": said,
                "alone": numbers.pop("said", ""),
                "how": claim.untestable or claim.exact.get("by") or claim.config,
                "says": claim.says,
                "effect": claim.effect or math.nan,
                **dict.fromkeys(_NUMBERS, math.nan),
                **numbers,
                "lesson": re.sub(r"^\d+_", "", lesson.stem),
                "address": f"{site}/{lesson.relative_to(nbs).with_suffix('.html').as_posix()}",
            }
        )
    return pd.DataFrame(rows)


def show_claims(
    lesson: str,  # its name without the number, such as orpo
    found: dict[str, ClaimVerdict | None] | None = None,  # of all claims; None: looked up
):  # a styled table, a row for each claim; what is told stands first
    """What the reports claim of what a lesson explains, and what became of it over the seeds;
    raises `ConfigError` where they claim nothing.
    """
    every = open_ledger()
    claims = [one for one in every if one.lesson == lesson]
    if not claims:
        raise ConfigError(f"the ledger has no claim on the lesson {lesson}.", field="lesson")
    table = ledger_table(claims, verdicts(every) if found is None else found)
    counts = table["said"].value_counts()
    order = table["said"].map(_SAYINGS.index).sort_values(kind="stable").index
    told = table.loc[order, ["claim", "reported", "said"]].fillna({"reported": "in words"})
    told = told.rename(columns={"said": "here"})
    caption = ", ".join(f"{said}: {counts[said]}" for said in _SAYINGS if said in counts)
    style = told.style.hide(axis="index").set_uuid(lesson).set_caption(caption)
    return style.set_properties(**{"text-align": "left"})


def lesson_of(
    claim: LedgerClaim,
) -> Path:  # the notebook that explains it
    "Raises `ConfigError` where no lesson or tutorial has that name."
    folder = project_root() / "nbs"
    for path in sorted([*folder.glob("lib/*/*.ipynb"), *folder.glob("tutorials/*.ipynb")]):
        if re.sub(r"^\d+_", "", path.stem) == claim.lesson:
            return path
    raise ConfigError(f"ledger, {claim.id}: there is no lesson `{claim.lesson}`.", field="lesson")
