"""What the pipeline `synthesize` does around the asking: its seed prompts, its server, its filter,
and the splits that it leaves.
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prefkit.core import ConfigError, DataError, announce, derive_seed, fingerprint
from prefkit.data.records import Records, RowReport, load_records
from prefkit.judging import combined  # noqa: F401 adds the rewards that ask others
from prefkit.judging.budget import AskingLimits, Budget
from prefkit.judging.judges import make_judge
from prefkit.judging.rewards import check_data, make_reward, reward_source
from prefkit.judging.served import Served, reach
from prefkit.judging.several import judge_scores
from prefkit.judging.stand_in import STAND_IN, stand_in
from prefkit.judging.synthesis import Asker, filter_pairs, store_folder
from prefkit.runs.pipelines import (
    check_dataset,
    check_judges,
    first_row,
    reach_rewards,
    reach_servers,
)


def check_server(server: dict, dataset: str) -> Served | None:  # None: the stand-in
    "Raise `ConfigError` for settings of a server that cannot be asked for prompts like these."
    if not isinstance(server, dict):
        raise ConfigError(
            f"server: {server!r} is no dict, such as {{model: NAME, base_url: ADDRESS}}.",
            field="server",
            reason="wrong type",
        )
    if is_stand_in(server):
        if dataset != "tiny-world":
            raise ConfigError(
                f"server: the stand-in knows the tiny world alone, not {dataset!r}. Name a server, "
                "such as {model: gpt-4.1-mini, base_url: https://api.openai.com/v1}.",
                field="server",
                reason="a stand-in",
            )
        return None
    try:
        return Served(**server)
    except TypeError as error:
        raise ConfigError(
            f"server: {error}. Give {{model: NAME, base_url: http://localhost:8000/v1}}.",
            field="server",
            reason="no server",
        ) from None
    except ConfigError as error:
        raise error.at("server") from None


def is_stand_in(server: dict) -> bool:
    "Whether no server is meant, but what stands in for one."
    return server.get("model") == STAND_IN and "base_url" not in server


def told_address(server: dict) -> str:
    "Where a server is, in words."
    told = "a stand-in on this machine, which is no language model"
    return told if is_stand_in(server) else server["base_url"]


def reach_server(server: dict):
    "Ask the server once, so that one that is away is known before anything runs; `ConfigError`."
    if not is_stand_in(server):
        try:
            reach(Served(**server))
        except ConfigError as error:
            raise error.at("server") from error


def check_seeds(
    dataset: str,
    split: str,
    limit: int | None,
    held_out: list[str],  # splits
    **reading,  # columns, dataset_revision, on_bad_rows
):
    "Look at seed and held-out prompts before anything runs; raises `ConfigError`, `DataError`."
    check_dataset(dataset, kind="prompts", split=split, limit=limit, **reading)
    for name in held_out:
        try:
            check_dataset(dataset, kind="prompts", split=name, **reading)
        except (ConfigError, DataError) as error:
            raise error.at("held_out") from error


def seed_prompts(
    dataset: str,
    split: str,
    limit: int | None,
    held_out: list[str],  # splits
    *,
    seed: int,  # of the tiny world's draw
    **reading,  # columns, dataset_revision, on_bad_rows
) -> tuple[Records, dict[str, Records]]:  # the seeds; split -> all its prompts
    "Prompts as every pipeline reads them."
    given: dict[str, Any] = {"kind": "prompts", "seed": seed, **reading}
    seeds = load_records(dataset, split=split, limit=limit, **given)
    return seeds, {name: load_records(dataset, split=name, **given) for name in held_out}


@contextmanager
def asking(
    server: dict,  # as in a config
    limits: AskingLimits,
    folder: Path,  # of the run
    *parts,  # what tells this set of pairs from another: the data set, the split, the seed
):  # -> Asker
    "The server with its budget while the block runs; what is known from before is said."
    if is_stand_in(server):
        options = {name: value for name, value in server.items() if name != "model"}
        announce(f"server: {told_address(server)}")
        with stand_in(**options) as served, Budget(limits, folder / "spent.jsonl") as budget:
            yield Asker(served, folder / "replies.jsonl", budget)
        return
    served = Served(**server)
    home = store_folder(served, *parts)
    with Budget(limits, home / "spent.jsonl") as budget:
        if budget.tries:
            announce(
                f"{len(budget.tries):,} requests to {served.model} at {served.base_url} are known "
                f"from before, and count: {budget.words()}. If another model answers there now, "
                f"delete {home.name} below the cache, synthesized."
            )
        yield Asker(served, home / "replies.jsonl", budget)


@dataclass
class Filter:
    "Whoever filters pairs: a reward, one judge, or nobody; raises `ConfigError` for both."

    reward: str
    reward_options: dict
    judge: dict  # {name: options}

    def __post_init__(self):
        if self.judge and (len(self.judge) > 1 or self.reward or self.reward_options):
            raise ConfigError(
                "judge: name one, and no reward beside it: one of them filters the pairs.",
                field="judge",
                reason="contradiction",
            )
        if self.reward_options and not self.reward:
            raise ConfigError(
                "reward_options: name the reward that they are for.",
                field="reward",
                reason="missing",
            )

    @property
    def given(self) -> bool:
        return bool(self.reward or self.judge)

    def check(self, dataset: str, split: str, **reading):
        "Raise `ConfigError` or `DataError` where it cannot judge prompts like the data set's."
        if self.judge:
            check_judges(self.judge, dataset)
        if self.reward:
            row = first_row(dataset, "prompts", split, **reading)
            # a new prompt has no other column
            asked = ["prompt"] if row is None else {"prompt": row["prompt"]}
            source = make_reward(self.reward, self.reward_options, f"reward {self.reward}")
            check_data(source, asked)

    def reach(self):
        "Ask once whoever judges from outside of this machine; raises `ConfigError`."
        if self.judge:
            reach_servers({}, self.judge)
        if self.reward:
            reach_rewards(self.reward, self.reward_options, [])

    def _scores(self, store) -> Callable[[list, list], list]:
        "The two scores of each pair."
        if self.reward:
            return partial(_by_reward, reward_source(self.reward, **self.reward_options))
        [(name, options)] = self.judge.items()
        told = {"name" if key == "kind" else key: value for key, value in options.items()}
        return partial(_by_judge, make_judge(**{"name": name, **told}), store)

    def __call__(
        self,
        rows: list[dict],  # of `NewPairs`
        least_margin: float,
        store: str | Path,  # keeps the replies of a judge behind a server
    ) -> tuple[list[dict], list[dict], RowReport]:
        "What `filter_pairs` gives; without a judge all pairs, as they are."
        if not self.given:
            return rows, [], RowReport("pairs judged by nobody", len(rows), len(rows))
        return filter_pairs(rows, self._scores(store), least_margin)

    def words(self, least_margin: float) -> str:
        "Who filtered, for a card."
        if not self.given:
            return "none: no judge has looked at the pairs."
        who = f"reward `{self.reward}` {self.reward_options or ''}".strip()
        who = f"judge `{self.judge}`" if self.judge else who
        return f"{who}; chosen above rejected, by at least {least_margin:g}."


def _by_judge(judge, store, prompts, answers):
    names = [fingerprint([*each]) for each in zip(prompts, answers)]
    return judge_scores(judge, names, prompts, answers, store)


def _by_reward(source, prompts, answers):
    rows = [{"prompt": prompt, "record": {}} for prompt in prompts for _ in range(2)]
    earned = iter(source(rows, [one for group in answers for one in group]))
    return [[next(earned)["reward"], next(earned)["reward"]] for _ in prompts]


def part_names(
    names: list[str],  # of the prompts
    validation: int,  # how many of them are set apart
    seed: int,
) -> dict[str, str]:  # name -> train or validation
    "Which prompts are set apart: by chance, whatever the others are."
    order = sorted(names, key=lambda name: derive_seed(seed, "validation", name))
    apart = set(order[:validation])
    return {name: "validation" if name in apart else "train" for name in names}


def save_pairs(
    folder: str | Path,  # where to
    rows: list[dict],  # of pairs
    parts: dict[str, str],  # of `part_names`
) -> dict[str, list[dict]]:  # split -> its rows
    "Save pairs as a datasets folder; raises `DataError` for a split of which nothing is left."
    import datasets

    found = {part: [] for part in sorted(set(parts.values()))}
    for row in rows:
        found[parts[row["prompt_id"]]].append(row)
    for part, kept in found.items():
        if not kept:
            raise DataError(
                f"{part}: no pair is left. The accounts say why; ask for more new_prompts, or "
                "lower least_margin.",
                field="new_prompts",
                reason="no pair is left",
            )
    made = datasets.DatasetDict()
    for part, kept in found.items():
        made[part] = datasets.Dataset.from_list(kept)
    made.save_to_disk(folder)
    return found
