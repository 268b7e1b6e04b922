"The last lines of `prefkit run`: win rates of what was judged, and where everything lies."

from pathlib import Path

import pandas as pd

from prefkit.runs.seeds import WAYS

__all__ = ["outcome_lines"]

SHOWN = 8  # win rates; the report has all of them


def outcome_lines(
    folders: dict[str, Path],  # stage -> its run folder
) -> list[str]:  # none where no stage judged anything
    "Win rates by the first judge of each evaluation, with their intervals over prompts."
    lines: list[str] = []
    left = 0
    for folder in folders.values():
        table = folder / "win_rates.csv"
        if not table.is_file():
            continue
        rates = pd.read_csv(table)
        rates = rates[rates["judge"] == rates["judge"].iloc[0]] if len(rates) else rates
        for row in rates.to_dict("records"):
            if len(lines) == SHOWN:
                left += 1
                continue
            ways = ", ".join(str(row[name]) for name in WAYS if name in row)
            lines.append(
                f"{row['model']} against {row['reference']} by {row['judge']}: "
                f"{100 * row['rate']:.0f} % ({100 * row['low']:.0f} to {100 * row['high']:.0f}), "
                f"{row['n']:,} prompts{f', {ways}' if ways else ''}"
            )
    return [*lines, f"and {left} more in win_rates.csv"] if left else lines
