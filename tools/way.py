"""The picture of the whole way, from a pretrained model to a verdict, with "you are here": an SVG
for each set of stations that nbs/syllabus.yml names.
"""

from html import escape

WIDTH, HEIGHT = 760, 188
# station -> left, top, width, name, what is there
STATIONS = {
    "base": (10, 26, 130, "pretrained model", "writes text"),
    "sft": (190, 26, 100, "SFT", "answers"),
    "preference": (350, 26, 190, "preference method", "DPO, IPO, ORPO, KTO ..."),
    "judging": (610, 26, 140, "judging", "judges, win rates"),
    "demonstrations": (170, 122, 140, "demonstrations", "prompt, answer"),
    "pairs": (335, 122, 90, "pairs", "better, worse"),
    "reward": (450, 122, 120, "reward", "model or verifier"),
    "online": (600, 122, 150, "own samples", "RLOO, GRPO, PPO ..."),
}
TALL = 44
ARROWS = [
    "M140 48H184",
    "M290 48H344",
    "M540 48H604",
    "M240 122V76",
    "M380 122V76",
    "M425 144H444",
    "M570 144H594",
    "M680 122V76",
    "M270 70V96H640V116",  # from SFT to its own samples
]
PLAIN, HERE, LINE = "#f2f2f2", "#0072b2", "#555555"


def draw(here: tuple[str, ...]) -> str:  # SVG
    "The way with some stations marked; raises `KeyError` for one that there is not."
    marked = {name: STATIONS[name] for name in here}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="sans-serif" font-size="13" text-anchor="middle">',
        f"<title>{escape(words(here))}</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="{LINE}"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#ffffff"/>',
        f'<g fill="none" stroke="{LINE}" stroke-width="1.5">',
        *[f'<path d="{line}" marker-end="url(#tip)"/>' for line in ARROWS],
        "</g>",
    ]
    for name, (x, y, width, head, below) in STATIONS.items():
        fill, text = (HERE, "#ffffff") if name in marked else (PLAIN, "#222222")
        middle = x + width / 2
        parts += [
            f'<rect x="{x}" y="{y}" width="{width}" height="{TALL}" rx="6" fill="{fill}" '
            f'stroke="{LINE}"/>',
            f'<text x="{middle:g}" y="{y + 19}" fill="{text}" font-weight="bold">{head}</text>',
            f'<text x="{middle:g}" y="{y + 36}" fill="{text}" font-size="11">{below}</text>',
        ]
        if name in marked:
            beside = y - 7 if y < HEIGHT / 2 else y + TALL + 15  # where no arrow is
            label = f'<text x="{middle:g}" y="{beside}" fill="{HERE}" font-size="12" '
            parts.append(label + 'font-weight="bold">you are here</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def words(here: tuple[str, ...]) -> str:
    "What the picture says, for whoever does not see it."
    names = [STATIONS[name][3] for name in here]
    last = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
    return (
        "The way from a pretrained model over SFT and a preference method, or samples of its own "
        f"and their reward, to judging. You are here: {last}."
    )


def file_name(here: tuple[str, ...]) -> str:
    return f"way_{'_'.join(here)}.svg"
