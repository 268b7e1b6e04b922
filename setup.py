"""Reads settings.ini, so that name, version and requirements stand in one place.

What a checkout has beside the package (pipelines, reports, configs, the tiny world's models,
results) goes into a wheel as `prefkit/share`, so that a wheel works alone.
"""

import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
settings = config["DEFAULT"]
EXTRAS = ("lab", "judge", "search", "track", "gguf", "eval", "dev", "docs")
SHARED = (
    "nbs/pipelines",
    "nbs/reports",
    "data/configs",
    "data/tiny",
    "data/reported",
    "data/results",
)


class BuildWithShare(build_py):
    "Copies `SHARED` beside the modules; an editable install reads them where they are."

    def run(self):
        super().run()
        if not self.editable_mode:
            share = Path(self.build_lib) / "prefkit" / "share"
            shutil.rmtree(share, ignore_errors=True)
            for folder in SHARED:
                shutil.copytree(folder, share / folder)


setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    license="Apache-2.0",
    url=settings["git_url"],
    keywords=settings["keywords"],
    python_requires=f">={settings['min_python']}",
    packages=find_packages(include=["prefkit", "prefkit.*"]),
    package_data={"prefkit.data": ["templates/*.jinja"]},
    cmdclass={"build_py": BuildWithShare},
    install_requires=settings["requirements"].split(),
    extras_require={name: settings[f"{name}_requirements"].split() for name in EXTRAS},
    entry_points={"console_scripts": settings["console_scripts"].split()},
)
