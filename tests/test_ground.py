"""The ground: generated files, README, pins, docs configuration, commands."""

import importlib.util, json, os, re, shutil, subprocess, sys, time
from configparser import ConfigParser
from pathlib import Path

import pytest, yaml

ROOT = Path(__file__).resolve().parents[1]


def tool(name):
    "A script of tools/ as a module."
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


@pytest.fixture
def copy(tmp_path):
    "A small project: the settings, one lesson and its module."
    root = tmp_path / "project"
    for folder in ("nbs/lib", "prefkit"):
        (root / folder).mkdir(parents=True)
    for file in (
        "settings.ini",
        "_quarto.yml",
        "nbs/nbdev.yml",
        "nbs/lib/00_core.ipynb",
        "prefkit/core.py",
        "prefkit/__init__.py",
    ):
        shutil.copy(ROOT / file, root / file)
    (root / "nbs/_quarto.yml").symlink_to("../_quarto.yml")
    subprocess.run(
        [sys.executable, "-c", "from nbdev.doclinks import nbdev_export; nbdev_export()"],
        cwd=root,
        check=True,
    )
    return root


def test_a_fresh_export_is_no_difference(copy):
    assert tool("check_generated").differences(copy) == []


@pytest.mark.parametrize(
    "break_it, complaint",
    [
        (
            lambda root: (root / "prefkit/core.py").write_text(
                (root / "prefkit/core.py").read_text() + "\nx = 1\n"
            ),
            "prefkit/core.py: export and clean change it",
        ),
        (
            lambda root: (root / "nbs/lib/00_core.ipynb").unlink(),
            "prefkit/core.py: no notebook exports it",
        ),
        (
            lambda root: (root / "prefkit/core.py").unlink(),
            "prefkit/core.py: exported by a notebook, but not there",
        ),
        (
            lambda root: (root / "nbs/lib/00_core.ipynb").write_text(
                (root / "nbs/lib/00_core.ipynb")
                .read_text()
                .replace('"execution_count": null', '"execution_count": 7')
            ),
            "nbs/lib/00_core.ipynb: export and clean change it",
        ),
        (
            lambda root: (root / "nbs/nbdev.yml").write_text("website: {}\n"),
            "nbs/nbdev.yml: export and clean change it",
        ),
    ],
    ids=[
        "module edited by hand",
        "notebook gone",
        "module missing",
        "notebook not clean",
        "nbdev.yml stale",
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
    assert named == {settings()["git_url"]}


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
        for cell in module.read(module.INDEX)["cells"]
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
    for line in (settings()["requirements"] + " " + settings()["dev_requirements"]).split():
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
    (copy / "nbs/lib/00_core.ipynb").unlink()  # no lesson: processing one would run its imports
    command = (
        "from nbdev.quarto import refresh_quarto_yml; from nbdev.serve import proc_nbs; "
        "refresh_quarto_yml(); proc_nbs(n_workers=0)"
    )
    subprocess.run([sys.executable, "-c", command], cwd=copy, check=True, capture_output=True)
    assert (copy / "nbs/_quarto.yml").is_symlink()
    assert (copy / "_proc/_quarto.yml").read_text() == (copy / "_quarto.yml").read_text()
    assert "# a mark" in (copy / "_proc/_quarto.yml").read_text()


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
        (root / f"_proc/{name}.ipynb").exists() for name in [*tool("map").notebooks(), "index"]
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
    listed = sorted(entries(yaml.safe_load(text)["website"]["sidebar"]["contents"]))
    assert listed == sorted(["index.ipynb"] + [f"{name}.ipynb" for name in tool("map").notebooks()])


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


def test_lessons_and_the_home_page_are_what_nbdev_test_runs():
    command = (
        "from nbdev.doclinks import nbglob; "
        f"print(*nbglob(skip_folder_re={tool('test').LESSON_FOLDERS!r}), sep='\\n')"
    )
    found = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    wanted = [
        ROOT / "nbs/index.ipynb",
        *(
            ROOT / f"nbs/{name}.ipynb"
            for name in tool("map").notebooks()
            if name.startswith(("lib/", "tutorials/"))
        ),
    ]
    assert sorted(Path(path).resolve() for path in found) == sorted(wanted)


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


@pytest.mark.parametrize(
    "status, lines, last",
    [
        (0, ["12 passed in 3.45s"], "12 passed in 3.45s"),
        (
            2,
            ["1 failed, 11 passed in 3.45s (0:00:03)", "make: *** [test] Error 1"],
            "1 failed, 11 passed in 3.45s (0:00:03)",
        ),
    ],
    ids=["passing", "failing"],
)
def test_ci_run_ends_with_the_summary_and_the_status_of_make(tmp_path, status, lines, last):
    (tmp_path / "checkout/.ci").mkdir(parents=True)
    (tmp_path / "shared/real").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / "checkout/.ci/run")
    fake = tmp_path / "bin/make"
    fake.write_text(
        "#!/bin/sh\necho real data: $PREFKIT_REAL_DATA\n"
        + "".join(f"echo '{line}'\n" for line in lines)
        + f"exit {status}\n"
    )
    fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    environment.pop("PREFKIT_REAL_DATA", None)
    done = subprocess.run(
        [tmp_path / "checkout/.ci/run"],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == status and done.stdout.splitlines()[-1] == last
    assert f"real data: {tmp_path / 'shared/real'}" in done.stdout


def test_workflows_install_by_our_makefile():
    for name in ("test", "docs"):
        text = (ROOT / f".github/workflows/{name}.yml").read_text()
        steps = next(iter(yaml.safe_load(text)["jobs"].values()))["steps"]
        assert any(f"make {name} TORCH_INDEX=" in step.get("run", "") for step in steps)
        assert not any("nbdev-ci" in step.get("uses", "") for step in steps)
    assert re.search(r"quarto-actions/setup@v2\n\s+with:\n\s+version: \d+\.\d+\.\d+", text)


def test_licence_is_apache_in_full():
    text = (ROOT / "LICENSE").read_text()
    assert (
        "Apache License" in text
        and "END OF TERMS AND CONDITIONS" in text
        and len(text.splitlines()) >= 200
    )
