"""The project's files agree with each other: lock, environments, schema and workflow."""

import ast
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml
from conftest import REPOSITORY, demo_values
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sublora import __version__
from sublora.config.documentation import readme_text, schema_text
from sublora.system.errors import EXTRAS

SUPPORTED = ("3.11", "3.12", "3.13", "3.14")
"""Versions of Python that requirements.lock installs on."""
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


LEFT_TO_USERS = ("wandb",)
"""Modules of which no extra is made; where they are asked for and absent, one line says what to install."""


def lock() -> dict[str, str]:
    """Version of each package of requirements.lock."""
    lines = (REPOSITORY / "requirements.lock").read_text().splitlines()
    pins = dict(re.fullmatch(r"([\w.-]+)==([\w.]+)", line).groups() for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pins.items()}


def requirements() -> list[Requirement]:
    """What pyproject.toml asks for, extras included."""
    texts = list(PROJECT["dependencies"])
    for extra in PROJECT["optional-dependencies"].values():
        texts += extra
    return [found for found in map(Requirement, texts) if found.name != "sublora"]


def test_the_lock_satisfies_every_requirement() -> None:
    pins = lock()
    for requirement in requirements():
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not in requirements.lock"
        assert requirement.specifier.contains(version), f"{requirement} but requirements.lock has {version}"


def test_the_lock_holds_the_packages_the_workflow_rests_on() -> None:
    named = "snakemake torch numpy tiktoken datasets pandas matplotlib seaborn pyyaml pulp"
    assert set(named.split()) <= set(lock())


def test_the_lock_is_closed_under_dependencies() -> None:
    """Nothing that a locked package needs on any supported Python is missing: an installation resolves nothing.

    Except for what torch is built for: the build for CUDA pins its own libraries, the one for the CPU needs none.
    """
    pins = lock()
    for name in pins:
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            pytest.fail(f"{name} is in requirements.lock but not installed; run `make setup`")
        for need in map(Requirement, needs):
            if name == "torch" and need.name.startswith(("cuda", "nvidia", "triton")):
                continue
            versions = [{"extra": "", "python_version": v, "python_full_version": f"{v}.9"} for v in SUPPORTED]
            if need.marker is None or any(map(need.marker.evaluate, versions)):
                assert canonicalize_name(need.name) in pins, f"{name} needs {need}, which is not in requirements.lock"


def test_every_import_of_the_package_is_declared() -> None:
    extras = PROJECT["optional-dependencies"]
    texts = [*PROJECT["dependencies"], *(text for extra in EXTRAS for text in extras[extra])]
    declared = {canonicalize_name(Requirement(text).name) for text in texts}
    distributions = importlib.metadata.packages_distributions()
    for path in sorted((REPOSITORY / "sublora").rglob("*.py")):
        for module in imported_modules(path):
            if module in sys.stdlib_module_names or module in ("sublora", *LEFT_TO_USERS):
                continue
            names = {canonicalize_name(name) for name in distributions[module]}
            assert names & declared, f"{path.relative_to(REPOSITORY)} imports {module}, which pyproject.toml lacks"


def test_each_extra_brings_what_the_error_line_says() -> None:
    distributions = importlib.metadata.packages_distributions()
    brought_along = {"pyarrow": "datasets", "mpl_toolkits": "matplotlib"}
    for extra, modules in EXTRAS.items():
        declared = {canonicalize_name(Requirement(text).name) for text in PROJECT["optional-dependencies"][extra]}
        for module in modules:
            names = {brought_along.get(module) or canonicalize_name(name) for name in distributions[module]}
            assert names & declared, f"extra {extra} does not bring {module}"


def imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules.add(node.module.split(".")[0])
    return modules


def test_the_conda_environment_installs_the_lock_and_the_package() -> None:
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    *conda, pip = environment["dependencies"]
    oldest, newest = SUPPORTED[0], SUPPORTED[-1]
    assert conda == [f"python>={oldest},<3.{int(newest.split('.')[1]) + 1}", "pip"]
    assert pip == {"pip": ["-r requirements.lock", "-e ."]}
    assert PROJECT["requires-python"] == f">={oldest}"
    assert f"PYTHON_OF_LOCK ?= python{oldest}\n" in (REPOSITORY / "Makefile").read_text()


def make_with(pythons: dict[str, str], folder: Path) -> subprocess.CompletedProcess:
    """`make --dry-run setup` where the only Pythons are scripts of these names, each with its body."""
    for tool in ("sh", "sed", "make", "echo"):
        (folder / tool).symlink_to(shutil.which(tool))
    for name, body in pythons.items():
        (folder / name).write_text(f"#!{folder}/sh\n{body}\n")
        (folder / name).chmod(0o755)
    command = [folder / "make", "setup", f"VENV={folder / 'environment'}", *(["--dry-run"] if pythons else [])]
    environment = {"PATH": str(folder)}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)


def test_make_takes_the_newest_python_that_has_venv(tmp_path: Path) -> None:
    there = {"python3.14": "exit 1", "python3.13": "exit 0", "python3.11": "exit 0"}  # 3.14 lacks venv
    result = make_with(there, tmp_path)
    assert f"python3.13 -m venv {tmp_path / 'environment'}" in result.stdout


def test_without_a_python_make_says_in_one_line_what_to_install(tmp_path: Path) -> None:
    result = make_with({}, tmp_path)
    line, makes_own = result.stderr.strip().splitlines()
    assert "no Python from 3.11 to 3.14" in line and "apt-get install python3-venv" in line
    assert result.returncode == 2 and "Error 2" in makes_own


def test_the_checks_run_on_the_oldest_and_the_newest_python() -> None:
    jobs = yaml.safe_load((REPOSITORY / ".github/workflows/checks.yml").read_text())["jobs"]
    assert jobs["checks"]["strategy"]["matrix"]["python"] == [SUPPORTED[0], SUPPORTED[-1]]


def test_the_version_is_defined_once_and_the_installed_one_follows() -> None:
    assert importlib.metadata.version("sublora") == __version__
    assert PROJECT["dynamic"] == ["version"] and "version" not in PROJECT
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert "version" not in citation
    assert PROJECT["license"] == citation["license"]


def test_the_changelog_has_the_form_of_keep_a_changelog() -> None:
    """Newest first, each released version with its date, and a section for what is not released."""
    headings = re.findall(r"^## (.*)$", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    released = [re.fullmatch(r"\[(\d+)\.(\d+)\.(\d+)\] - \d{4}-\d{2}-\d{2}", heading) for heading in headings[1:]]
    assert all(released)
    versions = [tuple(map(int, found.groups())) for found in released]
    assert versions == sorted(versions, reverse=True)
    kinds = re.findall(r"^### (.*)$", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security", "Numbers"}


def make_targets(text: str) -> set[str]:
    return set(re.findall(r"^[^#\n]*?\bmake ([a-z-]+)", text, re.MULTILINE))


def test_github_runs_the_steps_of_the_local_checks() -> None:
    """The same make targets, so that neither can pass what the other refuses."""
    local = make_targets((REPOSITORY / ".ci/run").read_text())
    jobs = yaml.safe_load((REPOSITORY / ".github/workflows/checks.yml").read_text())["jobs"]
    remote: set[str] = set()
    for job in jobs.values():
        targets = job.get("strategy", {}).get("matrix", {}).get("target", [])
        for step in job["steps"]:
            for target in targets or [""]:
                remote |= make_targets(step.get("run", "").replace("${{ matrix.target }}", target))
    assert remote <= local <= {*re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)}
    # The random base and cleaning up belong to the local run alone.
    assert local - remote == {"clean", "demo-random-base"}


def test_the_hooks_before_a_commit_are_the_tools_of_make_lint() -> None:
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)[1]
    for hook in hooks:
        tool = hook["entry"].removeprefix(".venv/bin/").removesuffix(" --force-exclude")
        assert f"$(BIN)/{tool}" in lint


def test_both_container_images_hold_what_the_package_is_built_from() -> None:
    docker = (REPOSITORY / "Dockerfile").read_text()
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", docker, re.MULTILINE) for name in line.split()}
    apptainer = (REPOSITORY / "apptainer.def").read_text()
    files = re.search(r"^%files\n((?: +.*\n)+)", apptainer, re.MULTILINE)[1]
    assert copied == {line.split()[0] for line in files.splitlines()}
    allowed = set(re.findall(r"^!(.*)$", (REPOSITORY / ".dockerignore").read_text(), re.MULTILINE))
    assert copied == allowed
    for name in copied:
        assert (REPOSITORY / name).exists(), name
    assert re.search(r"^FROM (.*)$", docker, re.MULTILINE)[1] == re.search(r"^From: (.*)$", apptainer, re.MULTILINE)[1]


def test_the_catalog_file_names_a_deployment_that_there_is() -> None:
    usage = yaml.safe_load((REPOSITORY / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert usage["software-stack-deployment"] == {"conda": False, "apptainer": True, "apptainer+conda": False}
    assert "container:" in (REPOSITORY / "workflow/Snakefile").read_text()
    assert usage["report"] is True and "report:" in (REPOSITORY / "workflow/Snakefile").read_text()
    named = re.search(r"\S+/config\.yaml", usage["mandatory-flags"]["desc"])[0]
    assert (REPOSITORY / named).is_file() and (REPOSITORY / "config/README.md").is_file()


def test_the_citation_names_the_works_it_builds_on() -> None:
    titles = {work["title"] for work in yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())["references"]}
    assert titles == {
        "Non-Vacuous Generalization Bounds for Large Language Models",
        "Adaptive Subspace Allocation for Compressed Neural Network Fine-Tuning",
    }
    readme = (REPOSITORY / "README.md").read_text()
    assert all(title in readme for title in titles)


def test_the_committed_schema_is_the_one_of_the_settings() -> None:
    committed = (REPOSITORY / "workflow/schemas/config.schema.json").read_text()
    assert committed == schema_text(), "run `make schema`"


def test_the_committed_page_of_the_settings_is_the_one_of_their_docstrings() -> None:
    assert (REPOSITORY / "config/README.md").read_text() == readme_text(), "run `make schema`"


def test_the_page_of_the_settings_has_every_key_of_the_schema() -> None:
    keys = set(re.findall(r"^\| `(\w+)` \|", readme_text(), re.MULTILINE))
    assert keys == {key for section in json.loads(schema_text())["$defs"].values() for key in section["properties"]}


def test_every_key_says_what_it_is() -> None:
    sections = json.loads(schema_text())["$defs"]
    silent = [
        f"{section}.{key}"
        for section, schema in sections.items()
        for key, value in schema["properties"].items()
        if "description" not in value
    ]
    assert not silent


def test_the_schema_accepts_the_settings_files_and_refuses_unknown_keys() -> None:
    validator = jsonschema.Draft202012Validator(json.loads(schema_text()))
    paths = {*REPOSITORY.glob("config/*.yaml"), *REPOSITORY.glob("demo/config/*.yaml")}
    for path in sorted(paths - {REPOSITORY / "config/glue.yaml"}):  # settings of `sublora classify`, no workflow's
        validator.validate(yaml.safe_load(path.read_text()))
    values = demo_values()
    values["training"]["learning_rat"] = 0.1
    with pytest.raises(jsonschema.ValidationError, match="learning_rat"):
        validator.validate(values)


def test_demo_and_full_reproduction_share_the_grid() -> None:
    full = yaml.safe_load((REPOSITORY / "config/config.yaml").read_text())
    # A network adapted from a trained base is worth fewer coordinates.
    assert all(full["grid"][key] == demo_values()["grid"][key] for key in ("allocations", "seeds"))
    assert len(full["grid"]["budgets"]) == len(demo_values()["grid"]["budgets"]) == 2


@pytest.mark.parametrize("kind", ["scripts", "report"])
def test_rules_and_the_files_they_name_agree(kind: str) -> None:
    folder = REPOSITORY / "workflow"
    rules = [folder / "Snakefile", *folder.glob("rules/*.smk")]
    named = {name for path in rules for name in re.findall(rf'{kind}/([\w.]+)"', path.read_text())}
    if kind == "report":
        # Captions of figures and tables are named after their rows.
        rows = re.findall(r'^    (?:Figure|Table)\("(\w+)"', (folder / "rules/figures.smk").read_text(), re.M)
        named |= {f"{name}.rst" for name in rows}
    there = {path.name for path in (folder / kind).iterdir() if path.is_file()}
    assert named == there
