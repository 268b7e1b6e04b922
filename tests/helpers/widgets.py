"What the tests of widgets do to all of them."

import time

from prefkit.widgets.view import Choice, Explorer, Several, Slider, Switch, Words


def moved_everywhere(explorer: Explorer, few: int = 3, silent=()):
    "Every control over all it can take; only values that are silent have nothing to show."
    explorer.view()
    for name, control in explorer.controls.items():
        start = explorer.state[name]
        for value in values_of(control, explorer._widgets[name], few):
            explorer._widgets[name].value = value
            assert ('role="alert"' in explorer._shown.value) == (value in silent), (name, value)
        explorer.set(**{name: start})


def values_of(control, widget, few: int) -> list:
    "All that a control can take; of a slider some, both ends among them."
    if isinstance(control, Slider):
        low, wide = control.low, widget.max - control.low
        return sorted({low + wide * i // few for i in range(few + 1)})
    if isinstance(control, Choice):
        return list(control.options)
    if isinstance(control, Switch):
        return [True, False]
    if isinstance(control, Several):
        return [(one,) for one in control.options]
    assert isinstance(control, Words)
    return ["", "a", "<", "("]


def cpu_seconds_an_update(explorer: Explorer, states: list[dict]) -> float:
    "What a move costs, without the time in which others had the machine."
    begin = time.process_time()
    for state in states:
        explorer.set(**state).html()
    return (time.process_time() - begin) / len(states)
