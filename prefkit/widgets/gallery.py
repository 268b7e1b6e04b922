"""All widgets: who makes each, in which lesson it stands, what to try; and one page with all of
them that needs no kernel.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from prefkit.core import ConfigError, nearest
from prefkit.report.page import Page
from prefkit.widgets.arena import Arena
from prefkit.widgets.bandit import explore_bandit
from prefkit.widgets.clipping import explore_clipping
from prefkit.widgets.examples import (
    example_arena,
    example_comparison,
    example_replay,
    example_samples,
)
from prefkit.widgets.inspector import explore_inspector
from prefkit.widgets.losses import explore_losses
from prefkit.widgets.microscope import explore_microscope
from prefkit.widgets.odds import explore_odds
from prefkit.widgets.taper import explore_taper
from prefkit.widgets.value import explore_value
from prefkit.widgets.view import Explorer

__all__ = ["GALLERY", "Widget", "gallery_page", "show_widget"]


@dataclass(frozen=True)
class Widget:
    "One widget of the gallery."

    title: str  # what one sees, a few words
    make: Callable[[], Explorer | Arena]  # with its defaults
    lesson: str  # in which it stands, below nbs/ and without its ending
    tries: str  # a sentence or two: what to move, and what to look at


GALLERY: dict[str, Widget] = {
    "losses": Widget(
        "Loss and push of every offline method",
        explore_losses,
        "lib/losses/21_dpo",
        "Set the rejected answer to -15 nats and go through the methods: MinorDPO no longer pushes "
        "it down, DPO does. Compare DPO with IPO, whose push changes its sign.",
    ),
    "bandit": Widget(
        "Beta and the noise of labels on five answers",
        explore_bandit,
        "lib/losses/22_ipo",
        "Lower the noise to 0.1: DPO puts everything on answer d, IPO does not. For DPO twice the "
        "noise is the same as twice the beta.",
    ),
    "odds": Widget(
        "ORPO's odds against probabilities",
        explore_odds,
        "lib/losses/27_orpo",
        "Set the rejected answer to 0.9: its odds are 9, and the odds ratio pushes it down far "
        "harder than the probability ratio. At 0.05 it pushes half as hard.",
    ),
    "value": Widget(
        "KTO's value of an answer",
        explore_value,
        "lib/losses/28_kto",
        "Move the reference point: the answers that are pushed hardest move with it. Then raise "
        "the weight of bad answers, KTO's loss aversion.",
    ),
    "taper": Widget(
        "TOPR's taper",
        explore_taper,
        "lib/losses/29_topr",
        "Raise the smallest weight from 0 to 0.2 and look at the lower panel: the bad answer falls "
        "without end again.",
    ),
    "clipping": Widget(
        "Where PPO's family clips",
        explore_clipping,
        "lib/losses/36_policy_gradients",
        "Go from GRPO to GSPO with 8 tokens: one token that moves by a third of a per cent "
        "silences its whole answer. CISPO never falls silent.",
    ),
    "microscope": Widget(
        "Log-probs of a pair, token by token",
        explore_microscope,
        "lib/model/10_logps",
        "Change a word of an answer and see which token's log-prob pays for it. Give two models "
        "of your own, such as a checkpoint and what it was trained from.",
    ),
    "inspector": Widget(
        "Tokens of a conversation, and what the loss sees",
        explore_inspector,
        "lib/data/01_chat",
        "Lower max_length until the row is refused, then lower max_prompt_length until it is kept "
        "again. Try another template: chatml, or llama3, whose end of turn is no token here.",
    ),
    "replay": Widget(
        "A run, step by step",
        example_replay,
        "lib/train/40_loop",
        "Drag the step from 0 to 40 and read the answers: the chosen answers get less likely too, "
        "and in the end sentences fall apart. In a notebook, turn on the log-probs of tokens.",
    ),
    "runs": Widget(
        "Runs beside each other",
        example_comparison,
        "lib/train/41_schedule",
        "Go through the metrics. The losses of two methods do not compare; their log-ratios and "
        "accuracies do. The first table holds only the settings that differ.",
    ),
    "samples": Widget(
        "Answers and what judges gave them",
        example_samples,
        "tutorials/what_a_win_rate_is_not",
        "Sort by what the judge `small` gave, which the policy was trained on, and look at gold: "
        "where `left wins by most`, is the left answer better?",
    ),
    "arena": Widget(
        "The arena: a blind vote",
        example_arena,
        "lib/judging/56_judges",
        "Vote on ten pairs, by button or key, before you look at who is who.",
    ),
}


def show_widget(
    name: str,  # of the gallery
) -> Explorer | Arena:
    "A widget with its defaults; raises `ConfigError` for a name that there is not."
    if name not in GALLERY:
        raise ConfigError(
            f"widget: there is no widget {name!r}.{nearest(name, GALLERY)}",
            field="widget",
            reason="unknown",
        )
    return GALLERY[name].make()


# pictures keep their size, which a report's figures do not; keyboards reach every control
_STYLE = """<style>
.explorer img { width: auto; max-width: 100%; }
.explorer label { max-width: 100%; }
.explorer input[type="range"] { width: min(16rem, 60vw); vertical-align: middle; }
.explorer select, .explorer input { font: inherit; }
.explorer :focus-visible { outline: 3px solid #0072B2; outline-offset: 2px; }
.explorer td, .explorer th { border-bottom: 0; white-space: nowrap; }
</style>"""


def gallery_page(
    path: str | Path,  # the file to write
    names: Iterable[str] = tuple(GALLERY),  # of the gallery
    lessons: str = "",  # address of the folder that holds them, "" for none
    suffix: str = ".html",  # of a lesson there
) -> Path:  # the path
    """Write one page with widgets whose pictures are drawn beforehand: it needs no other file and
    no kernel. Raises `ConfigError` for a name that there is not.
    """
    page = Page(
        "Widgets",
        "Move the controls, with the mouse or with Tab and the arrow keys. The pictures of this "
        "page were drawn beforehand, at a few values of each control; in a notebook, "
        "prefkit.widgets.gallery.show_widget(NAME) draws every value.",
    )
    page.raw(_STYLE)
    for name in names:
        explorer = show_widget(name)
        widget = GALLERY[name]
        page.section(widget.title, widget.tries)
        page.raw(explorer.page())
        lesson = widget.lesson.rpartition("/")[2]
        if lessons:
            address = f"{lessons}/{widget.lesson}{suffix}"
            page.raw(f'<p class="file">Lesson: <a href="{address}">{lesson}</a></p>')
        else:
            page.raw(f'<p class="file">Lesson: {lesson}; in a notebook: show_widget("{name}")</p>')
    return page.write(path)
