"""A picture with controls: a function from values to a figure, a table or HTML, and around it
ipywidgets where a kernel runs, the picture itself where none does, or a page of pictures drawn
beforehand.
"""

import base64
import html
import io
import itertools
import json
import math
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from prefkit.core import ConfigError, PrefkitError, nearest

__all__ = ["Choice", "Control", "Explorer", "Several", "Slider", "Switch", "Words", "picture"]

MOST_FRAMES = 240  # pictures of a page without a kernel; a page has to load
DPI = 100


@dataclass(frozen=True)
class Slider:
    "A number between two others. Whole if all three and the step are."

    low: float
    high: float
    value: float
    step: float = 0.0  # 0: a hundredth of the way; with `log`, of a decade
    log: bool = False  # equal steps of the logarithm
    frames: tuple[float, ...] = ()  # values drawn beforehand; none: low, value and high
    label: str = ""  # the parameter's name if empty

    def widget(self, name: str) -> ipywidgets.Widget:
        given = {"value": self.value, "description": self.label or name}
        if self.log:
            ends = {"min": math.log10(self.low), "max": math.log10(self.high)}
            return ipywidgets.FloatLogSlider(step=self.step or 0.02, **ends, **given)
        ends = {"min": self.low, "max": self.high}
        if all(isinstance(one, int) for one in (self.low, self.high, self.value, self.step or 1)):
            return ipywidgets.IntSlider(step=self.step or 1, **ends, **given)
        return ipywidgets.FloatSlider(
            step=self.step or (self.high - self.low) / 100, readout_format=".3g", **ends, **given
        )

    def accepts(self, value: Any) -> bool:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and self.low <= value <= self.high

    def beforehand(self) -> tuple[Any, ...]:
        return self.frames or tuple(sorted({self.low, self.value, self.high}))

    def says(self) -> str:
        return f"a number from {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Choice:
    "One of several."

    options: tuple[str, ...]
    value: str
    label: str = ""
    frames: tuple[str, ...] = ()  # options drawn beforehand; none: all

    def widget(self, name: str) -> ipywidgets.Widget:
        described = self.label or name
        return ipywidgets.Dropdown(options=self.options, value=self.value, description=described)

    def accepts(self, value: Any) -> bool:
        return value in self.options

    def beforehand(self) -> tuple[Any, ...]:
        return self.frames or self.options

    def says(self) -> str:
        return f"one of {', '.join(self.options)}"


@dataclass(frozen=True)
class Several:
    "At least one of several; a page without a kernel shows those of the start."

    options: tuple[str, ...]
    value: tuple[str, ...]
    label: str = ""

    def widget(self, name: str) -> ipywidgets.Widget:
        return ipywidgets.SelectMultiple(
            options=self.options,
            value=self.value,
            rows=min(6, len(self.options)),
            description=self.label or name,
        )

    def accepts(self, value: Any) -> bool:
        chosen = isinstance(value, tuple) and len(value) > 0
        return chosen and all(one in self.options for one in value)

    def beforehand(self) -> tuple[Any, ...]:
        return (self.value,)

    def says(self) -> str:
        return f"a tuple of at least one of {', '.join(self.options)}"


@dataclass(frozen=True)
class Switch:
    "On or off."

    value: bool
    label: str = ""
    frames: tuple[bool, ...] = (False, True)  # what is drawn beforehand

    def widget(self, name: str) -> ipywidgets.Widget:
        return ipywidgets.Checkbox(value=self.value, description=self.label or name, indent=False)

    def accepts(self, value: Any) -> bool:
        return isinstance(value, bool)

    def beforehand(self) -> tuple[Any, ...]:
        return self.frames

    def says(self) -> str:
        return "true or false"


@dataclass(frozen=True)
class Words:
    "A text; the picture follows when it is left or, in one line, at Enter."

    value: str
    lines: int = 1
    label: str = ""
    frames: tuple[str, ...] = ()  # texts drawn beforehand; none: the value

    def widget(self, name: str) -> ipywidgets.Widget:
        given = {"value": self.value, "description": self.label or name}
        if self.lines == 1:
            return ipywidgets.Text(continuous_update=False, **given)
        return ipywidgets.Textarea(rows=self.lines, continuous_update=False, **given)

    def accepts(self, value: Any) -> bool:
        return isinstance(value, str)

    def beforehand(self) -> tuple[Any, ...]:
        return self.frames or (self.value,)

    def says(self) -> str:
        return "a text"


Control = Slider | Choice | Several | Switch | Words


def picture(
    drawn: Figure | pd.DataFrame | str,  # a string is HTML, whose texts are escaped already
    says: str,  # for whoever does not see the figure; the titles of its axes are added
) -> str:  # HTML
    "What a draw function gave, as HTML that needs no other file."
    if isinstance(drawn, pd.DataFrame):
        return f'<div style="overflow-x:auto">{drawn.to_html(border=0)}</div>'
    if isinstance(drawn, str):
        return drawn
    titles = [ax.get_title(loc) for ax in drawn.axes for loc in ("left", "center")]
    told = [" ".join(title.split()) for title in (drawn.get_suptitle(), *titles)]
    said = html.escape(". ".join([says, *filter(None, told)]))
    data = base64.b64encode(_png(drawn)).decode()
    return f'<img alt="{said}" src="data:image/png;base64,{data}" style="max-width:100%">'


def _png(fig: Figure) -> bytes:
    "A figure in 128 colours: a quarter of the bytes, and nothing that one could see."
    fig.set_dpi(DPI)
    canvas = FigureCanvasAgg(fig)  # without pyplot, which would keep every figure
    canvas.draw()
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    few = drawn.quantize(128, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    colours = few.getpalette() or []
    few.putpalette([255 if each >= 254 else each for each in colours])  # it makes white 254
    stored = io.BytesIO()
    few.save(stored, format="png")
    return stored.getvalue()


class Explorer:
    """A draw function with a control for each of its parameters. A notebook shows it as widgets
    with a picture below; where no kernel runs it is the picture; `page` is a piece of HTML in which
    the controls choose among pictures drawn beforehand.
    """

    def __init__(
        self,
        draw: Callable[..., Figure | pd.DataFrame | str],  # takes the controls' values by name
        title: str,  # what one sees, a few words
        controls: Mapping[str, Control],
        # a state -> the highest value that a slider has in it, by name, for sliders whose range
        # depends on other controls
        bounds: Callable[[Mapping[str, Any]], Mapping[str, float]] = lambda state: {},
    ):
        self.draw, self.title, self.controls = draw, title, dict(controls)
        self.bounds = bounds
        self.state: dict[str, Any] = {name: one.value for name, one in self.controls.items()}
        self._view: ipywidgets.VBox | None = None
        self._widgets: dict[str, Any] = {}  # traitlets give their attributes when they run
        for name, control in self.controls.items():
            self._check(name, control.value)

    def _check(self, name: str, value: Any):
        if name not in self.controls:
            known = ", ".join(self.controls)
            raise ConfigError(
                f"{self.title!r} has no control {name!r}.{nearest(name, self.controls)} "
                f"It has: {known}",
                field=name,
                reason="unknown",
            )
        if not self.controls[name].accepts(value):
            raise ConfigError(
                f"{name}: {value!r} is not {self.controls[name].says()}",
                field=name,
                reason="out of range",
            )

    def set(
        self,
        **values: Any,  # of controls, by name
    ) -> "Explorer":  # this one
        "Move controls; raises `ConfigError` for a control it has not, or a value it cannot take."
        for name, value in values.items():
            self._check(name, value)
        if self._view is None:
            self.state.update(values)
        else:  # the widgets tell the state; sliders last, since others may set their range
            for name in sorted(values, key=lambda one: isinstance(self.controls[one], Slider)):
                self._widgets[name].value = values[name]
        return self

    def _bounded(self, state: Mapping[str, Any]) -> dict[str, Any]:
        "A state whose sliders stand within the bounds that the other controls leave them."
        high = self.bounds(state)
        return {name: min(one, high[name]) if name in high else one for name, one in state.items()}

    def html(self) -> str:
        "The picture of the present state; what stands in its way is said in its place."
        self.state = self._bounded(self.state)
        return self._drawn(self.state)

    def _drawn(self, state: dict[str, Any]) -> str:
        try:
            drawn = self.draw(**state)
        except PrefkitError as error:
            return f'<p role="alert" style="color:#B00020">{html.escape(str(error))}</p>'
        return picture(drawn, self._said(state))

    def _said(self, state: Mapping[str, Any]) -> str:
        short = {name: textwrap.shorten(str(value), 40) for name, value in state.items()}
        values = ", ".join(f"{name} {value}" for name, value in short.items())
        return f"{self.title} ({values})" if values else self.title

    def view(self) -> ipywidgets.VBox:
        "The widgets: made once, however often it is shown."
        if self._view is None:
            self._widgets = {name: one.widget(name) for name, one in self.controls.items()}
            self.state = self._bounded(self.state)
            for name, value in self.state.items():  # they may have been moved already
                self._widgets[name].value = value
            for one in self._widgets.values():
                one.style.description_width = "initial"
                one.layout.width = "auto" if isinstance(one, ipywidgets.Checkbox) else "300px"
            for name, one in self._widgets.items():
                if isinstance(one, ipywidgets.Textarea):
                    one.layout.width = "100%"
                one.observe(lambda change, name=name: self._moved(name, change["new"]), "value")
            self._shown = ipywidgets.HTML(self.html())
            self._set_bounds()
            row = ipywidgets.Layout(flex_flow="row wrap")
            controls = ipywidgets.Box(list(self._widgets.values()), layout=row)
            self._view = ipywidgets.VBox([controls, self._shown])
        return self._view

    def _set_bounds(self):
        "Give sliders the range that the state leaves them; one that stood beyond it moves."
        for name, high in self.bounds(self.state).items():
            self._widgets[name].max = high

    def _moved(self, name: str, value: Any):
        self.state[name] = value
        self._set_bounds()
        self._shown.value = self.html()

    def page(self) -> str:  # HTML with a short script, which needs nothing else
        """The controls over pictures drawn beforehand, one for each combination of values; raises
        `ConfigError` where these are too many.
        """
        values = {name: one.beforehand() for name, one in self.controls.items()}
        count = math.prod(map(len, values.values()))
        if count > MOST_FRAMES:
            raise ConfigError(
                f"{self.title!r} would need {count} pictures, more than {MOST_FRAMES}; give its "
                "sliders fewer `frames`",
                field="frames",
                reason="too many",
            )
        states = [
            dict(zip(values, one, strict=True)) for one in itertools.product(*values.values())
        ]
        frames = [self._drawn(self._bounded(state)) for state in states]
        inputs = [
            _input(name, control, self.state[name])
            for name, control in self.controls.items()
            if len(values[name]) > 1
        ]
        sizes = [len(one) for one in values.values() if len(one) > 1]
        here = {name: one[_place(one, self.state[name])] for name, one in values.items()}
        shown = json.dumps(frames).replace("</", "<\\/")  # a script ends at its first closing tag
        return _PAGE.format(
            title=html.escape(self.title),
            inputs="\n".join(inputs),
            frame=frames[states.index(here)],
            frames=shown,
            sizes=json.dumps(sizes),
        )

    def _repr_mimebundle_(self, include=None, exclude=None):
        bundle = self.view()._repr_mimebundle_() or {}
        data = dict(bundle[0] if isinstance(bundle, tuple) else bundle)
        return {**data, "text/plain": self._said(self.state), "text/html": self._shown.value}


def _place(values: tuple[Any, ...], value: Any) -> int:
    "Where a value stands among those drawn beforehand: the first, if it is none of them."
    return values.index(value) if value in values else 0


def _input(name: str, control: Control, value: Any) -> str:
    "One control of a page: its place among the values drawn beforehand is what the script reads."
    values = control.beforehand()
    at = _place(values, value)
    label = html.escape(control.label or name)
    told = [f"{one:.3g}" if isinstance(one, float) else str(one) for one in values]
    if isinstance(control, Slider):
        words = html.escape(json.dumps(told))
        return (
            f'<label>{label} <input type="range" min="0" max="{len(values) - 1}" value="{at}" '
            f'data-says="{words}" aria-valuetext="{told[at]}"> <output>{told[at]}</output></label>'
        )
    options = "".join(
        f'<option value="{i}"{" selected" if i == at else ""}>{_option(one)}</option>'
        for i, one in enumerate(told)
    )
    return f'<label>{label} <select style="max-width:100%">{options}</select></label>'


def _option(told: str) -> str:
    "How a value is called where one chooses it; a long text by its beginning."
    return html.escape(textwrap.shorten(told, 60, placeholder=" ...") or "(empty)")


_PAGE = """<figure class="explorer" style="margin:1em 0">
<figcaption><strong>{title}</strong></figcaption>
<div style="display:flex;flex-wrap:wrap;gap:.3em 1.5em;margin:.5em 0">
{inputs}
</div>
<div class="frame" aria-live="polite">{frame}</div>
<script>
(() => {{
  const home = document.currentScript.parentElement, sizes = {sizes}, frames = {frames};
  const inputs = [...home.querySelectorAll("input, select")];
  const draw = () => {{
    let at = 0;
    inputs.forEach((one, i) => {{ at = at * sizes[i] + Number(one.value); }});
    home.querySelector(".frame").innerHTML = frames[at];
    inputs.filter((one) => one.dataset.says).forEach((one) => {{
      const said = JSON.parse(one.dataset.says)[one.value];
      one.parentElement.querySelector("output").textContent = said;
      one.setAttribute("aria-valuetext", said);
    }});
  }};
  inputs.forEach((one) => one.addEventListener("input", draw));
}})();
</script>
</figure>"""
