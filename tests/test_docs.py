"""README, docs/ and CONTRIBUTING: their commands fit the code, their links and names exist, their examples run."""

import ast
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from conftest import make_image_folder, run_process
from sppnet.backbones import build_backbone
from sppnet.commands import (
    benchmark,
    detect,
    evaluate,
    explain,
    export,
    predict,
    prepare_data,
    publish,
    report,
    tables,
    transfer,
)
from sppnet.commands.evaluated_runs import read_protocols
from sppnet.commands.recipes import with_recipe
from sppnet.commands.settings import bound, bound_choice, resolved
from sppnet.commands.startup import COMMANDS
from sppnet.commands.train import read_plan
from sppnet.data.sources import DATA_SOURCES, DETECTION_SOURCES, MULTI_LABEL_SOURCES
from sppnet.network import SPPNet, save_network
from sppnet.runtime.checkout import shown_command
from sppnet.runtime.hardware import Hardware
from sppnet.transfer.probe import Svm
from test_configs import ROOT, check, composed

PROJECT = Path(__file__).parent.parent
PAGES = [
    *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((PROJECT / "docs").glob("*.md")),
]
TEXTS = {str(page.relative_to(PROJECT)): page.read_text(encoding="utf-8") for page in PAGES}
README = TEXTS["README.md"]
METADATA = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
HELP_CONFIGS = (
    *("train", "evaluate", "transfer", "detect", "predict", "explain", "export", "publish", "prepare_data"),
    "benchmark",
)

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"`([^`\n]+)`")
PROGRAMS = ("make", "python", "sppnet", "torchrun", "srun", "pip")


def without_code_blocks(text):
    return FENCE.sub("", text)


def commands_in(text):
    """Every command in fenced blocks and in inline code, as words; lines that end with a backslash are joined."""
    blocks = [block for language, block in FENCE.findall(text) if not language]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines() + INLINE_CODE.findall(without_code_blocks(text))
    split = [shlex.split(line, comments=True) for line in lines if line.startswith(PROGRAMS)]
    return [words for words in split if words[0] in PROGRAMS and len(words) > 1]


def examples_of_help():
    """(config, command) of every example in the help of a command; two spaces begin a remark."""
    for name in HELP_CONFIGS:
        template = yaml.safe_load((PROJECT / "configs" / f"{name}.yaml").read_text())["hydra"]["help"]["template"]
        shown = re.sub(r"\$\{shown_command:(\w+)\}", lambda match: shown_command(match[1]), template)
        for line in shown.splitlines():
            if line.strip().startswith(("python ", "sppnet ")):
                yield f"configs/{name}.yaml", re.split(r"\s{2,}", line.strip())[0]


def commands_of_experiments():
    for file in sorted((PROJECT / "configs" / "experiment").glob("*.yaml")):
        text = re.sub(r"\\\n# +", "", file.read_text())
        for command in re.findall(r"(python scripts/.*)", text):
            yield f"configs/experiment/{file.name}", command


ALL_COMMANDS = [
    *((page, words) for page, text in TEXTS.items() for words in commands_in(text)),
    *((file, shlex.split(command)) for file, command in (*examples_of_help(), *commands_of_experiments())),
]


def script_and_arguments(words):
    """("train", [...]) of `python scripts/train.py ...`, `sppnet train ...`, torchrun and srun; None for others."""
    if words[0] == "sppnet":
        return words[1], words[2:]
    for place, word in enumerate(words):
        if re.fullmatch(r"scripts/\w+\.py", word):
            return Path(word).stem, words[place + 1 :]
    return None


def commands_of(script):
    """Each different argument list with which a command of the project is shown."""
    shown = [pair for _, words in ALL_COMMANDS if (pair := script_and_arguments(words)) is not None]
    unique = {" ".join(arguments): arguments for name, arguments in shown if name == script}
    return [pytest.param(arguments, id=text or "alone") for text, arguments in unique.items()]


def overrides_in(arguments):
    """The words for Hydra's composition: no options, no launchers and sweepers (which are extras), no "..."."""
    return [word for word in arguments if not word.startswith(("-", "hydra", "+hydra")) and word != "..."]


def first_job(word):
    """A comma or a function stands for several jobs of a sweep; the first choice is one of them."""
    key, _, value = word.partition("=")
    if value.startswith("glob("):
        return f"{key}={sorted((PROJECT / 'configs' / key).glob(value[5:-1] + '.yaml'))[0].stem}"
    if value.startswith("tag("):
        return f"{key}=0.01"
    if value.startswith("range("):
        return f"{key}=0"
    depth, end = 0, len(value)
    for i, letter in enumerate(value):
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            end = i
            break
    return f"{key}={value[:end]}"


def composed_for(config_name, overrides):
    with initialize_config_dir(str(PROJECT / "configs"), version_base="1.3"):
        return compose(config_name, overrides)


# Commands


def test_there_are_commands():
    for script, count in {
        "train": 12,
        "evaluate": 8,
        "transfer": 15,
        "detect": 4,
        "explain": 5,
        "predict": 4,
        "publish": 2,
        "export": 3,
        "tables": 6,
        "report": 3,
        "prepare_data": 2,
        "benchmark": 3,
    }.items():
        assert len(commands_of(script)) >= count, script
    shown = [words for _, words in ALL_COMMANDS]
    assert ["make", "demo"] in shown
    assert ["make", "test"] in shown
    assert any(words[0] == "sppnet" for words in shown)
    assert {"torchrun", "srun"} <= {words[0] for words in shown}


def test_every_command_is_one_that_is_checked():
    for page, words in ALL_COMMANDS:
        pair = script_and_arguments(words)
        if pair is None:
            assert words[0] in ("make", "pip", "python"), f"{page}: {words}"
            assert not any(word.endswith(".py") for word in words), f"{page}: {words}"
        else:
            assert pair[0] in {*COMMANDS, "stress", "clusters"}, f"{page}: {words}"
            assert (PROJECT / "scripts" / f"{pair[0]}.py").is_file()


@pytest.mark.parametrize("arguments", commands_of("train"))
def test_a_training_command_composes_and_fits_the_code(arguments):
    check(composed(*map(first_job, overrides_in(arguments))))


@pytest.mark.parametrize("arguments", commands_of("evaluate"))
def test_an_evaluation_command_composes_and_fits_the_code(arguments):
    config = composed_for("evaluate", overrides_in(arguments) or ["run=x"])
    bound(config, evaluate.settings)
    protocols, _ = read_protocols(config, 224)
    assert protocols


@pytest.mark.parametrize("arguments", commands_of("transfer"))
def test_a_transfer_command_composes_and_fits_the_code(arguments):
    config = composed_for("transfer", list(map(first_job, overrides_in(arguments))) or ["data=shapes"])
    bound(config, transfer.settings)
    bound_choice(config.data, "source", DATA_SOURCES | MULTI_LABEL_SOURCES, "data.")
    bound(config.svm, Svm, "svm.")
    bound(config.hardware, Hardware, "hardware.")


@pytest.mark.parametrize("arguments", commands_of("detect"))
def test_a_detection_command_fits_the_code(arguments):
    if overrides_in(arguments):
        detect.check(resolved(composed_for("detect", overrides_in(arguments))))


@pytest.mark.parametrize("arguments", commands_of("explain"))
def test_an_explaining_command_composes_and_fits_the_code(arguments, tmp_path):
    (tmp_path / "run").mkdir()
    explain.check(resolved(composed_for("explain", [*overrides_in(arguments), f"run={tmp_path / 'run'}"])))


@pytest.mark.parametrize("arguments", commands_of("predict"))
def test_a_predicting_command_composes_and_fits_the_code(arguments):
    bound(composed_for("predict", ["run=x", "images=x", *overrides_in(arguments)]), predict.settings)


@pytest.mark.parametrize("arguments", commands_of("publish"))
def test_a_publishing_command_composes_and_fits_the_code(arguments, tmp_path):
    given = [word for word in overrides_in(arguments) if not word.startswith("run=")]
    save_network(SPPNet(build_backbone("zf5", width=0.05), num_classes=2, hidden=2), tmp_path / "a.ckpt")
    publish.check(resolved(composed_for("publish", [*given, f"run={tmp_path / 'a.ckpt'}"])))


@pytest.mark.parametrize("arguments", commands_of("export"))
def test_an_export_command_composes_and_fits_the_code(arguments):
    config = composed_for("export", overrides_in(arguments) or ["run=x", "out=x.onnx"])
    bound(config, export.settings)


@pytest.mark.parametrize("arguments", commands_of("tables"))
def test_a_table_command_fits_the_code(arguments):
    if not overrides_in(arguments):
        return
    word, *rest = overrides_in(arguments)
    assert word in tables.CHOICES
    tables.settings(**bound(OmegaConf.from_dotlist(rest), tables.settings))


@pytest.mark.parametrize("arguments", commands_of("report"))
def test_a_report_command_fits_the_code(arguments):
    report.settings(**bound(OmegaConf.from_dotlist(overrides_in(arguments)), report.settings))


@pytest.mark.parametrize("arguments", commands_of("prepare_data"))
def test_a_preparation_command_composes_and_fits_the_code(arguments):
    config = composed_for("prepare_data", overrides_in(arguments) or [ROOT, "out=x"])
    bound(config, prepare_data.settings)
    assert bound_choice(config.data, "source", DATA_SOURCES, "data.")[0] == config.data.source


@pytest.mark.parametrize("arguments", commands_of("benchmark"))
def test_a_benchmark_command_composes_and_fits_the_code(arguments):
    config = composed_for("benchmark", [word for word in overrides_in(arguments) if word not in benchmark.WORDS])
    OmegaConf.resolve(config)
    assert read_plan(with_recipe(config)).source == config.data.source


@pytest.mark.parametrize("arguments", commands_of("stress"))
def test_a_stress_command_has_only_options_of_the_script(arguments):
    script = (PROJECT / "scripts" / "stress.py").read_text()
    for option in arguments[::2]:
        assert f'"{option}"' in script


@pytest.mark.parametrize("arguments", commands_of("clusters"))
def test_a_cluster_command_has_only_words_of_the_script(arguments):
    script = (PROJECT / "scripts" / "clusters.py").read_text()
    for word in arguments:
        assert f'"{word}"' in script


def test_the_makefile_has_the_targets():
    targets = {words[1] for _, words in ALL_COMMANDS if words[0] == "make"}
    for target in targets:
        done = run_process(["make", "-n", target], cwd=PROJECT)
        assert done.returncode == 0, done.stderr


def test_the_extras_that_are_named_exist():
    extras = METADATA["optional-dependencies"]
    named = {name for text in TEXTS.values() for name in re.findall(r"pip install [^`\n]*\[(\w+)\]", text)}
    assert named
    assert named <= set(extras)


# Names and links


def slugs(text):
    """The anchors that GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", without_code_blocks(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXTS)
def test_every_relative_link_and_anchor_exists(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code_blocks(TEXTS[page])):
        if link.startswith(("https:", "http:")):
            continue
        target, _, anchor = link.partition("#")
        file = ((PROJECT / page).parent / target).resolve() if target else PROJECT / page
        assert file.exists(), link
        if anchor:
            assert anchor in slugs(file.read_text(encoding="utf-8")), link


def defined_names(body):
    """Names that statements define: functions, classes and what is in them, assigned variables."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
            if isinstance(node, ast.ClassDef):
                yield from (f"{node.name}.{name}" for name in defined_names(node.body))
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


@pytest.mark.parametrize("page", TEXTS)
def test_every_file_and_name_in_it_exists(page):
    for code in INLINE_CODE.findall(without_code_blocks(TEXTS[page])):
        named = re.fullmatch(r"((?:sppnet|scripts|configs|tests|docs)/[\w/.*]+|\.ci/run)(?:::([\w.]+))?", code)
        if named is None or re.search(r"\b[A-Z]{4}\b", named[1]):  # configs/views/NAME.yaml is for the reader to make
            continue
        files = list(PROJECT.glob(named[1]))
        assert files, code
        if named[2]:
            assert named[2] in set(defined_names(ast.parse(files[0].read_text(encoding="utf-8")).body)), code


def test_every_choice_of_a_group_is_named():
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", TEXTS["docs/training.md"], re.MULTILINE)
    groups = {group: set(re.findall(r"`(\w+)`", text)) for group, text in rows}
    for folder in (PROJECT / "configs").iterdir():
        if folder.is_dir() and folder.name != "views":
            assert {file.stem for file in folder.glob("*.yaml")} <= groups[folder.name], folder.name


def test_every_protocol_source_and_table_is_named():
    for page, names in (
        ("docs/evaluation.md", {file.stem for file in (PROJECT / "configs" / "views").glob("*.yaml")}),
        ("docs/evaluation.md", set(tables.CHOICES)),
        ("docs/data.md", set(DATA_SOURCES | MULTI_LABEL_SOURCES | DETECTION_SOURCES)),
    ):
        first_cells = re.findall(r"^\| (`[^|]+) \|", TEXTS[page], re.MULTILINE)
        assert names <= set(re.findall(r"`(\w+)`", " ".join(first_cells))), page


# Text that the commands print


def printed_texts():
    """All string constants of the package; a value in an f-string becomes a line break."""
    texts = []
    for file in sorted((PROJECT / "sppnet").rglob("*.py")):
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        formatted = [node for node in nodes if isinstance(node, ast.JoinedStr)]
        parts = {id(part) for node in formatted for part in node.values}
        for node in formatted:
            texts.append("".join(part.value if isinstance(part, ast.Constant) else "\n" for part in node.values))
        for node in nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
                texts.append(node.value)
    return "\n\n".join(texts)


def fixed_parts(message):
    """The phrases of a quoted message that are always the same: without "...", numbers, paths and keys."""
    changing = (
        r"\(\.\.\.\)|\.\.\.|;|\S*\w\.ckpt|\b\d[\w.]*|HOST|(?:recipe|trainer)\.\w+[:=]?|epochs\?|^(?:note|error): "
    )
    parts = [part.strip(" ,:()") for part in re.split(changing, message)]
    return [part for part in parts if len(part.split()) >= 3]


def test_the_messages_that_are_quoted_are_those_of_the_code():
    table = TEXTS["docs/robustness.md"].partition("## Faults")[2]
    seen = [row.split(" | ")[1] for row in re.findall(r"^\| (.+) \|$", table, re.MULTILINE)]
    parts = [part for cell in seen for code in INLINE_CODE.findall(cell) for part in fixed_parts(code)]
    printed = printed_texts()
    assert len(parts) >= 10
    assert [part for part in parts if part not in printed] == []


# Examples


def test_the_python_examples_compile():
    blocks = [block for text in TEXTS.values() for language, block in FENCE.findall(text) if language == "python"]
    assert len(blocks) >= 2
    for block in blocks:
        compile(block, "example", "exec")


def test_the_python_example_of_readme_runs(tmp_path, monkeypatch, capsys):
    code = dict(FENCE.findall(README))["python"]
    monkeypatch.chdir(tmp_path)
    images = make_image_folder(tmp_path / "images", train=1, val=1)
    shutil.copy(images / "train" / "cat" / "0.jpg", "photo.jpg")
    run = Path(re.findall(r'load_network\("([^"]+)"\)', code)[0])
    (run / "checkpoints").mkdir(parents=True)
    network = SPPNet(build_backbone("zf5", width=0.05), num_classes=2, hidden=8, classes=("cat", "dog"))
    save_network(network, run / "checkpoints" / "last.ckpt")
    exec(code, {})
    assert capsys.readouterr().out.strip() in ("cat", "dog")


# Files beside the pages


def test_the_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == METADATA["version"]
    assert citation["license"] == METADATA["license"]
    assert [reference["url"] for reference in citation["references"]] == [METADATA["urls"]["Paper"]]
    assert f"## [{METADATA['version']}]" in TEXTS["CHANGELOG.md"]


def test_continuous_integration_runs_the_script_on_supported_versions():
    workflow = yaml.safe_load((PROJECT / ".github" / "workflows" / "ci.yml").read_text())
    job = workflow["jobs"]["test"]
    assert job["timeout-minutes"] == 90
    assert ".ci/run" in [step.get("run") for step in job["steps"]]
    supported = {name.rpartition(" ")[2] for name in METADATA["classifiers"] if "Python :: 3." in name}
    assert set(job["strategy"]["matrix"]["python"]) <= supported


def test_the_hooks_before_a_commit_are_the_tools_of_make_lint():
    hooks = yaml.safe_load((PROJECT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    lint = run_process(["make", "-n", "lint"], cwd=PROJECT).stdout
    for hook in hooks:
        program = hook["entry"].removesuffix(" --fix")
        assert program in lint, program


# Form


def test_readme_is_short():
    assert len(README.splitlines()) <= 130
    assert len(README.split()) <= 1100


def test_readme_names_eight_files_to_read():
    rows = re.findall(r"^\| `(sppnet/[\w/]+\.py)` \|", README, re.MULTILINE)
    assert len(rows) == 8


def test_every_number_of_readme_is_in_the_results():
    numbers = re.findall(r"\d+\.\d\d ± \d\.\d\d|[+-]\d\.\d\d \([^)]+\)", README)
    assert numbers
    assert [number for number in numbers if number not in TEXTS["docs/results.md"]] == []


@pytest.mark.parametrize("page", [page for page in TEXTS if page.startswith("docs/")])
def test_a_page_is_linked_and_starts_with_what_it_is_for(page):
    assert f"({page}" in README
    title, empty, purpose, *_ = TEXTS[page].split("\n", 3)
    assert title.startswith("# ")
    assert empty == ""
    assert purpose[0].isupper()


@pytest.mark.parametrize("page", TEXTS)
def test_lines_fit(page):
    for line in TEXTS[page].splitlines():
        assert line.startswith("|") or len(line) <= 120, line
    for language, block in FENCE.findall(TEXTS[page]):
        for line in block.splitlines():
            assert language or len(line) <= 120, line
