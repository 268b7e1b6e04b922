"""The ground: generated files, README, pins, docs configuration, commands."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

from helpers.tools import tool

ROOT = Path(__file__).resolve().parents[1]


def settings():
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def pins():
    return dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and line[0] != "#"
    )


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_steps_before_pytest_passed():
    "`make test` runs every step; one that failed earlier is counted in the summary too."
    assert os.environ.get("PREFKIT_FAILED_STEPS", "") == ""


# ---- generated files


WITH_WIDGETS = '"metadata": {\n  "widgets": {"state": {}},\n  "kernelspec"'
LESSON, MODULE = "nbs/lib/losses/20_sft.ipynb", "prefkit/losses/sft.py"


@pytest.fixture
def copy(tmp_path):
    "A small project: the settings, one lesson and its module."
    root = tmp_path / "project"
    files = ["settings.ini", "_quarto.yml", "ruff.toml", "nbs/nbdev.yml", LESSON, MODULE]
    for file in [*files, "prefkit/__init__.py"]:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, root / file)
    (root / "nbs/_quarto.yml").symlink_to("../_quarto.yml")
    command = [sys.executable, ROOT / "tools/export.py"]
    subprocess.run(command, cwd=root, check=True)
    return root


def test_a_fresh_export_is_no_difference(copy):
    assert tool("check_generated").differences(copy) == []


def edited(root, file, old, new):
    text = (root / file).read_text(encoding="utf-8")
    (root / file).write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize(
    "break_it, complaint",
    [
        pytest.param(
            lambda root: edited(root, MODULE, "# %%", "x = 1\n# %%"),
            f"{MODULE}: export and clean change it",
            id="module edited by hand",
        ),
        pytest.param(
            lambda root: (root / LESSON).unlink(),
            f"{MODULE}: no notebook exports it",
            id="notebook gone",
        ),
        pytest.param(
            lambda root: (root / MODULE).unlink(),
            f"{MODULE}: exported by a notebook, but not there",
            id="module missing",
        ),
        pytest.param(
            lambda root: edited(root, LESSON, '"execution_count": null', '"execution_count": 7'),
            f"{LESSON}: export and clean change it",
            id="notebook not clean",
        ),
        pytest.param(
            lambda root: edited(root, LESSON, '"metadata": {\n  "kernelspec"', WITH_WIDGETS),
            f"{LESSON}: export and clean change it",
            id="a finished progress bar",
        ),
        pytest.param(
            lambda root: (root / "nbs/nbdev.yml").write_text("website: {}\n"),
            "nbs/nbdev.yml: export and clean change it",
            id="nbdev.yml stale",
        ),
    ],
)
def test_a_difference_is_found(copy, break_it, complaint):
    break_it(copy)
    assert complaint in tool("check_generated").differences(copy)


# ---- README and home page


def test_readme_is_what_the_home_page_says():
    assert (ROOT / "README.md").read_text(encoding="utf-8") == tool("readme").readme(
        json.loads((ROOT / "nbs/index.ipynb").read_text(encoding="utf-8"))
    )


def test_links_of_the_readme_lead_somewhere():
    text = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)
    links = [
        link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:|#", link)
    ]
    assert (
        len(links) > 5
        and [link for link in links if not (ROOT / link.split("#")[0]).exists()] == []
    )


def test_the_home_page_names_the_repository_of_settings_ini():
    named = set(
        re.findall(
            r"https://github\.com/[\w-]+/[\w-]+", (ROOT / "README.md").read_text(encoding="utf-8")
        )
    )
    own = {address for address in named if "prefkit" in address}
    assert own == {settings()["git_url"]}


def test_readme_builder_handles_front_matter_callouts_links_and_hidden_cells():
    readme = tool("readme")
    web = readme.repository()
    assert readme.prose("---\ntitle: x\n---\n# T") == "# T"
    assert (
        readme.prose('::: {.callout-tip title="A way"}\nTwo\n\nlines\n:::')
        == "> [!TIP]\n> **A way**\n>\n> Two\n>\n> lines"
    )
    assert readme.prose("::: {.column}\ntext\n:::") == "text"
    assert readme.prose(
        f"[a](lib/x.ipynb) ![b](images/b.png) [c](https://e.org) [d](#d) [e]({web}LICENSE) "
        "[f](../data/f.csv)"
    ) == (
        "[a](nbs/lib/x.ipynb) ![b](nbs/images/b.png) [c](https://e.org) [d](#d) [e](LICENSE) "
        "[f](data/f.csv)"
    )
    cell = lambda source, **output: {"source": [source], "outputs": [output] if output else []}
    assert readme.code(cell("#| hide\nx")) == ""
    assert readme.code(cell("#| eval: false\nx")) == "```python\nx\n```"
    assert readme.code(cell("#| echo: false\nx", data={"text/plain": ["1"]})) == "```\n1\n```"


def test_the_map_lists_every_notebook():
    module = tool("map")
    text = "".join(
        line
        for cell in module.read(module.PAGE)["cells"]
        for line in cell["source"]
        if cell["cell_type"] == "markdown"
    )
    measured = module.read(module.RESULTS)["notebooks"] if module.RESULTS.exists() else {}
    assert module.table(measured) in text, "run `make readme`"
    assert all(f"({name}.ipynb)" in text for name in module.notebooks())


# ---- versions


def test_every_requirement_of_the_dev_environment_is_pinned_within_its_range():
    from packaging.requirements import Requirement

    pinned = {normal(name): version for name, version in pins().items()}
    kinds = ("requirements", "dev_requirements", "docs_requirements")
    for line in " ".join(settings()[kind] for kind in kinds).split():
        requirement = Requirement(line)
        assert requirement.specifier.contains(pinned[normal(requirement.name)]), line


def test_torch_is_pinned_without_a_build():
    assert pins()["torch"] == "2.13.0"


def test_the_home_page_installs_the_pinned_versions():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"([\w-]+)==([\w.]+)", text)
    assert len(shown) >= 4 and all(pins()[name] == version for name, version in shown)


def test_no_file_of_the_ground_names_a_registry_or_a_machine():
    for name in (
        "Makefile",
        "constraints.txt",
        "settings.ini",
        "setup.py",
        ".ci/run",
        ".github/workflows/test.yml",
        ".github/workflows/docs.yml",
        ".pre-commit-config.yaml",
        "pytest.ini",
        "ruff.toml",
        "ty.toml",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "README.md",
    ):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(r"file://|find-links|/opt/|/root/|/work/|/home/", text), name
        assert set(re.findall(r"index-url[ =]+(\S+)", text)) <= {"$(TORCH_INDEX))"}, name


# ---- docs


def test_the_top_quarto_file_is_the_one_used(copy):
    """nbdev reads nbs/_quarto.yml: a link to the top one, kept by nbdev's refresh and copied whole
    into what Quarto renders.
    """
    assert (ROOT / "nbs/_quarto.yml").is_symlink() and (
        ROOT / "nbs/_quarto.yml"
    ).resolve() == ROOT / "_quarto.yml"
    (copy / "_quarto.yml").write_text((copy / "_quarto.yml").read_text() + "# a mark\n")
    (copy / LESSON).unlink()  # no lesson: processing one would run its imports
    command = (
        "from nbdev.quarto import refresh_quarto_yml; from nbdev.serve import proc_nbs; "
        "refresh_quarto_yml(); proc_nbs(n_workers=0)"
    )
    subprocess.run([sys.executable, "-c", command], cwd=copy, check=True, capture_output=True)
    assert (copy / "nbs/_quarto.yml").is_symlink()
    assert (copy / "_proc/_quarto.yml").read_text() == (copy / "_quarto.yml").read_text()
    assert "# a mark" in (copy / "_proc/_quarto.yml").read_text()


@pytest.mark.slow
def test_every_notebook_is_ready_for_quarto(tmp_path):
    """The docs build runs imports and exported cells of each lesson by themselves; one that needs
    another cell stops it.
    """
    root = tmp_path / "project"
    shutil.copytree(
        ROOT / "nbs",
        root / "nbs",
        symlinks=True,
        ignore=shutil.ignore_patterns(".ipynb_checkpoints"),
    )
    for name in ("settings.ini", "_quarto.yml"):
        shutil.copy(ROOT / name, root)
    (root / "data").symlink_to(ROOT / "data")
    done = subprocess.run(
        [sys.executable, "-c", "from nbdev.serve import proc_nbs; proc_nbs(n_workers=0)"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(
        (root / f"_proc/{name}.ipynb").exists()
        for name in [*tool("map").notebooks(), *tool("map").PAGES]
    )


def test_quarto_reads_the_files_that_it_names():
    config = yaml.safe_load((ROOT / "_quarto.yml").read_text())
    assert config["metadata-files"] == ["nbdev.yml", "sidebar.yml"]
    for name in [*config["metadata-files"], config["format"]["html"]["css"]]:
        assert (ROOT / "nbs" / name).is_file()


def test_the_sidebar_lists_every_notebook_once():
    def entries(contents):
        for each in contents:
            yield from entries(each["contents"]) if isinstance(each, dict) else [each]

    text = (ROOT / "nbs/sidebar.yml").read_text(encoding="utf-8")
    assert text == tool("map").sidebar(), "run `make readme`"
    listed = list(entries(yaml.safe_load(text)["website"]["sidebar"]["contents"]))
    nbs = ROOT / "nbs"
    found = [path.relative_to(nbs) for path in nbs.rglob("*.ipynb")]
    shown = [path.as_posix() for path in found if not any(part[0] in "._" for part in path.parts)]
    assert sorted(listed) == sorted(shown)


# ---- commands


def test_make_lists_its_commands():
    listed = subprocess.run(
        ["make", "-C", str(ROOT), "--no-print-directory"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    phony = re.search(r"\.PHONY: (.*)", (ROOT / "Makefile").read_text()).group(1).split()
    assert re.findall(r"^  make (\w+)", listed, flags=re.M) == phony


def test_nbdev_test_runs_solutions_which_run_their_lessons():
    command, tools = tool("test").LESSONS["lessons"], tool("map")
    options = dict(zip(command, command[1:]))
    asked = {"skip_folder_re": options["--skip_folder_re"]}
    program = f"from nbdev.doclinks import nbglob; print(*nbglob(**{asked!r}), sep='\\n')"
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    wanted = [*tools.PAGES, *tools.in_folder("solutions")]
    files = [ROOT / f"nbs/{name}.ipynb" for name in wanted]
    assert sorted(Path(path).resolve() for path in found) == sorted(files)


def test_a_step_that_takes_too_long_is_ended_with_its_children(tmp_path):
    child = f"import time; time.sleep(2); open({str(tmp_path / 'late')!r}, 'w')"
    command = [
        sys.executable,
        "-c",
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])",
    ]
    assert tool("test").run(command, 0.5, dict(os.environ)) == 124
    time.sleep(2.2)
    assert not (tmp_path / "late").exists()


ONE, OTHER = (
    "12 passed, 3 deselected in 3.45s",
    "1 failed, 2 passed, 9 deselected in 61.55s (0:01:01)",
)


@pytest.mark.parametrize(
    "log, runs, line",
    [
        (f"== pytest\n...\n{ONE}\n", 1, "12 passed in 3.45s"),
        (
            f"{ONE}\nmake: done\n{OTHER}\nmake: *** [slow] Error 1",
            2,
            "1 failed, 14 passed in 65.00s",
        ),
        (f"{ONE}\nmake: *** [slow] Error 2", 2, "12 passed, 1 error in 3.45s"),
        (
            "1 passed, 2 skipped, 1 error in 0.10s\n1 passed in 1.00s",
            2,
            "2 passed, 2 skipped, 1 error in 1.10s",
        ),
        ("no tests ran in 0.01s", 1, "no tests ran in 0.01s"),
    ],
)
def test_several_runs_have_one_summary(log, runs, line):
    assert tool("summary").summed(log, runs) == line


@pytest.mark.parametrize("failing", [None, "test", "slow"])
def test_ci_run_fails_where_one_of_its_two_runs_does_and_ends_with_the_sum(tmp_path, failing):
    for folder in ("checkout/.ci", "checkout/tools", "shared/real", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    for file in (".ci/run", "tools/summary.py"):
        shutil.copy(ROOT / file, tmp_path / "checkout" / file)
    fake = tmp_path / "bin/make"
    fake.write_text(
        "#!/bin/sh\n"
        "echo real data: $PREFKIT_REAL_DATA\n"
        f'if [ $1 = {failing} ]; then echo "{OTHER}"; exit 2; fi\n'
        f'echo "{ONE}"\n'
    )
    fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    environment.pop("PREFKIT_REAL_DATA", None)
    command = [tmp_path / "checkout/.ci/run"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert lines.count(f"real data: {tmp_path / 'shared/real'}") == 2
    if failing:
        assert done.returncode != 0 and lines[-1] == "1 failed, 14 passed in 65.00s"
    else:
        assert done.returncode == 0 and lines[-1] == "24 passed in 6.90s"


def test_every_tier_has_a_command_and_the_quick_tests_are_there():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    tiers = tool("test").TIERS
    assert re.findall(r"tools/test\.py (\w+)", makefile) == list(tiers)
    losses = [file for file in tiers["quick"]["pytest"] if file.startswith("tests/")]
    assert len(losses) > 15 and all((ROOT / file.split("::")[0]).exists() for file in losses)
    file, test = losses[-1].split("::")
    assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8")


def test_workflows_install_by_our_makefile():
    for name, commands in {"test": ["lint", "test", "slow"], "docs": ["report", "docs"]}.items():
        text = (ROOT / f".github/workflows/{name}.yml").read_text()
        jobs = yaml.safe_load(text)["jobs"].values()
        steps = [step for job in jobs for step in job["steps"]]
        called = re.findall(
            r"make (\w+) TORCH_INDEX=", " ".join(step.get("run", "") for step in steps)
        )
        assert called == commands
        assert not any("nbdev-ci" in step.get("uses", "") for step in steps)
    assert "tools/check_docs.py" in text  # what is published has been looked at


def test_licence_is_apache_in_full():
    text = (ROOT / "LICENSE").read_text()
    assert (
        "Apache License" in text
        and "END OF TERMS AND CONDITIONS" in text
        and len(text.splitlines()) >= 200
    )
