"""The scripts of tools/, which are no package."""

import importlib.util

import pytest

from prefkit.core import project_root

TOOLS = project_root() / "tools"


def tool(name):
    "A script of tools/ as a module."
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module
