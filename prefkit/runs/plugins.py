"""Code of one's own that a config names: `plugins: [my_reward.py]`. A file is executed once in each
process of a run, and registers what it adds: rewards, judges, losses, data sets, answerers.

Installed packages do the same by an entry point of the group `prefkit.plugins`.
"""

import os
import sys
from collections.abc import Iterable
from importlib import metadata, util
from pathlib import Path

from prefkit.core import ConfigError, PrefkitError, own_error

VARIABLE = "PREFKIT_PLUGINS"  # paths, for the processes of a run and for papermill by itself
GROUP = "prefkit.plugins"
_LOADED: dict[str, float] = {}  # path -> when it was changed last; packages: 0


def load_plugins(
    paths: Iterable[str | Path] = (),  # of Python files
):
    """Execute files of one's own, those that `PREFKIT_PLUGINS` names, and what installed packages
    offer, each once. Raises `ConfigError` naming file and line for an error in one.
    """
    named = filter(None, os.environ.get(VARIABLE, "").split(os.pathsep))
    for path in dict.fromkeys(str(Path(one).absolute()) for one in (*paths, *named)):
        _load(Path(path))
    for point in metadata.entry_points(group=GROUP):
        if point.value not in _LOADED:
            _LOADED[point.value] = 0.0
            _of_package(point)


def _load(path: Path):
    if not path.is_file():
        raise ConfigError(
            f"plugins: {path} is not there. Paths are taken from the config's folder.",
            field="plugins",
            reason="not found",
        )
    changed = path.stat().st_mtime
    if _LOADED.get(str(path)) == changed:
        return
    name = f"prefkit_plugin_{path.stem}"
    spec = util.spec_from_file_location(name, path)
    assert spec and spec.loader  # it is a Python file that is there
    module = sys.modules[name] = util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # for its neighbours
    try:
        spec.loader.exec_module(module)
    except PrefkitError as error:
        raise error.at(f"plugins, {path.name}") from error
    except Exception as error:
        raise own_error(error, path) from error
    finally:
        sys.path.remove(str(path.parent))
    _LOADED[str(path)] = changed


def _of_package(point):
    try:
        found = point.load()
    except Exception as error:
        raise ConfigError(
            f"plugins: the package {point.dist.name if point.dist else '?'} offers "
            f"{point.value}, which fails: {type(error).__name__}: {error}",
            field="plugins",
            reason="error in a package",
        ) from error
    if callable(found):
        found()


def files_of(
    paths: Iterable[str | Path],  # of plug-ins that are loaded
) -> list[Path]:  # they, and the modules in their folders that they have imported
    "What belongs to a run because its plug-ins consist of it."
    own = [Path(path).absolute() for path in paths]
    folders = {path.parent for path in own}
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    beside = [Path(file) for file in files if file and Path(file).parent in folders]
    return list(dict.fromkeys([*own, *sorted(beside)]))


def packages() -> dict[str, str]:  # name -> version
    "Installed packages that offer plug-ins."
    found = (point.dist for point in metadata.entry_points(group=GROUP))
    return {dist.name: dist.version for dist in found if dist}
