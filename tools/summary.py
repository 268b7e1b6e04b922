"""One summary line for several runs of pytest: python tools/summary.py LOG NUMBER_OF_RUNS

The log holds what the runs printed. A run that never came to its summary counts as an error, so
that nothing passes by not being there.
"""

import re
import sys
from collections import Counter
from pathlib import Path

WORD = re.compile(r"(\d+) (passed|failed|skipped|xfailed|xpassed|errors?|warnings?)\b")
SUMMARY = re.compile(r"^=*\s*((?:\d+ \w+(?:, )?)+|no tests ran) in ([\d.]+)s\b")


def summed(log: str, runs: int) -> str:
    "The counts and seconds of all summaries in the log; deselected tests are another run's."
    found = [match for line in log.splitlines() if (match := SUMMARY.match(line))]
    counts: Counter = Counter()
    for match in found:
        for number, word in WORD.findall(match[1]):
            counts[word.rstrip("s") if word.startswith("error") else word] += int(number)
    counts["error"] += max(0, runs - len(found))
    parts = [f"{counts[word]} {word}" for word in ("failed", "passed", "skipped") if counts[word]]
    others = [word for word in counts if word not in ("failed", "passed", "skipped", "error")]
    parts += [f"{counts[word]} {word}" for word in sorted(others)]
    if counts["error"]:
        parts.append(f"{counts['error']} error" + "s" * (counts["error"] > 1))
    seconds = sum(float(match[2]) for match in found)
    return f"{', '.join(parts) or 'no tests ran'} in {seconds:.2f}s"


if __name__ == "__main__":
    print(summed(Path(sys.argv[1]).read_text(encoding="utf-8", errors="replace"), int(sys.argv[2])))
