"""The table of the faults that `python tools/faults.py` has inflicted on small real runs."""

HELD = {True: "held", False: "NOT HELD", None: "not done"}


def fault_table(
    found: dict,  # data/results/faults.json
):  # -> DataFrame, a fault a row: kind, promised, happened, said, held, seconds
    "What was promised of each fault, and what happened."
    import pandas as pd

    names = ("kind", "promised", "happened", "said", "held", "seconds")
    rows = [{**row, "held": HELD[row["held"]]} for row in found["faults"]]
    index = pd.Index([row["fault"] for row in rows], name="fault")
    return pd.DataFrame([{name: row[name] for name in names} for row in rows], index=index)


def fault_count(
    found: dict,  # data/results/faults.json
) -> str:
    "How many held, and which did not."
    rows = found["faults"]
    kinds, held = {row["kind"] for row in rows}, [row for row in rows if row["held"]]
    others = [row["fault"] for row in rows if row not in held]
    some = f"{len(kinds)} kind{'s' if len(kinds) > 1 else ''}"
    rest = f"; not: {', '.join(others)}" if others else ""
    return f"{len(held)} of {len(rows)} faults held (of {some}){rest}."
