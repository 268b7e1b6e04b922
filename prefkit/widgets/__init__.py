"""Pictures with controls: each is a function from a state to a figure or a table, which tests and
pages call, and a thin view of it on ipywidgets (`prefkit.widgets.view.Explorer`).
"""
