"""The house: imports run inward only, names shadow nothing, files stay readable. pytest tests/test_layout.py"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = {"corpus", "image_corpus", "vocabulary", "shards", "pretrain", "evaluate", "registry"}
TORCH_RING = {
    "image_agenda", "image_subject", "image_baselines", "image_probe", "image_pictures",
    "encoder", "attention", "sublayers", "tiles", "heap", "stock", "objective", "optimizer", "orthogonal", "sharding",
    "gradients", "ranks", "batches", "checkpoint", "keeper", "tensor_file", "meter", "profiling", "choices", "points",
    "training", "looping", "trainer", "elastic", "scoring", "fill_mask", "masking_torch", "subjects", "battery",
    "downloaded", "pseudo_likelihood", "minimal_pairs", "cloze", "probes", "finetuning", "classification", "tagging",
    "agenda", "bigram", "intrinsic", "patches", "strand", "fill_image", "patch_network",
}  # fmt: skip
MLFLOW = {
    "registry", "versions", "tracking", "delivery", "system_metrics", "fill_mask", "serving", "board", "promotion",
    "fill_image", "text_front", "image_front",
}  # fmt: skip
"""The registry and its parts, and what is served; they import mlflow inside their functions."""
HEAVY = {"torch", "prefect", "mlflow", "transformers", "datasets", "tokenizers", "safetensors", "matplotlib", "PIL"}
MODULES = {path.stem: path for path in (ROOT / "tasks").glob("*.py") if path.stem != "__init__"}
LEAVES = set(MODULES) - STAGES - TORCH_RING - MLFLOW


def imports(path: Path, top_only: bool = False) -> set[tuple[str, str]]:
    """(package, module): ("torch", "") for a library, ("tasks", "encoder") for one of ours."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {tuple((alias.name + ".").split(".")[:2]) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            found |= {("tasks", node.module or alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package, _, module = (node.module or "").partition(".")
            found |= {
                (package, module or (alias.name if package in ("tasks", "flows") else "")) for alias in node.names
            }
    return found


def ours(path: Path) -> set[str]:
    return {module for package, module in imports(path) if package == "tasks"}


def libraries(path: Path, top_only: bool = False) -> set[str]:
    return {package for package, _ in imports(path, top_only)}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_in_tasks_imports_flows_or_prefect(name):
    assert not libraries(MODULES[name]) & {"flows", "prefect"}


@pytest.mark.parametrize("name", sorted(STAGES))
def test_a_stage_never_imports_another_stage(name):
    assert not ours(MODULES[name]) & STAGES


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_a_leaf_imports_only_leaves_and_no_torch(name):
    assert not ours(MODULES[name]) & (STAGES | TORCH_RING)
    assert not libraries(MODULES[name]) & {"torch", "mlflow", "transformers"}


@pytest.mark.parametrize("name", sorted(TORCH_RING & set(MODULES)))
def test_the_torch_ring_imports_no_stage(name):
    assert not ours(MODULES[name]) & STAGES


@pytest.mark.parametrize("name", sorted(STAGES | LEAVES))
def test_stages_and_leaves_import_nothing_heavy_at_the_top(name):
    assert not libraries(MODULES[name], top_only=True) & HEAVY


def test_only_the_registry_and_the_served_file_import_mlflow():
    assert {name for name, path in MODULES.items() if "mlflow" in libraries(path)} <= MLFLOW


def test_training_never_imports_transformers_or_mlflow():
    for name in (TORCH_RING & set(MODULES)) - {"fill_mask", "fill_image", "scoring", "downloaded"}:
        assert not libraries(MODULES[name]) & {"transformers", "mlflow"}, name


def test_imports_inside_tasks_are_relative_and_inside_flows_absolute():
    for path in MODULES.values():
        assert "tasks" not in {
            node.module.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and not node.level and node.module
        }, path
    for path in (ROOT / "flows").glob("*.py"):
        assert not any(
            isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(ast.parse(path.read_text()))
        )


def test_no_module_is_named_after_a_dependency():
    # Prefect loads a flow file by path and registers it under its bare name: flows/torch.py would be `torch`.
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    dependencies = {re.split(r"[=<>~! ]", line)[0].lower().replace("-", "_") for line in pins}
    names = {path.stem for folder in ("flows", "tasks") for path in (ROOT / folder).rglob("*.py")}
    assert not names & (dependencies | {"prefect", "torch", "datasets", "tokenizers", "mlflow", "pyarrow", "six"})


def test_nothing_reads_or_writes_pickle():
    for path in [*(ROOT / "flows").glob("*.py"), *MODULES.values()]:
        assert not libraries(path) & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}, path
        calls = [ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not [call for call in calls if re.match(r"torch\.(load|save)\(", call) or "allow_pickle=True" in call], (
            path
        )


def test_files_and_functions_stay_readable():
    for path in [*(ROOT / "flows").glob("*.py"), *MODULES.values()]:
        assert len(path.read_text().splitlines()) <= 400, f"{path.name} is too long to be read in one sitting"


@pytest.mark.parametrize("command", [["--help"], ["plan", "tiny", "--source", "README.md"], ["verify"]])
def test_help_plan_and_verify_import_neither_torch_prefect_nor_mlflow(command, tmp_path):
    script = (
        "import sys\nfrom flows.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        f"loaded = {HEAVY!r} & set(sys.modules)\nassert not loaded, loaded\n"
    )
    environment = {"MASKMILL_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", script, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def test_contributing_names_every_file_of_the_tree():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    tracked = [*(ROOT / "flows").glob("*.py"), *(ROOT / "tasks").glob("*.py"), *(ROOT / "deployments").rglob("*.yaml")]
    missing = [path.name for path in tracked if path.name != "__init__.py" and path.name not in page]
    assert not missing, f"the tree of CONTRIBUTING.md lacks {missing}"


def test_no_path_of_a_machine_is_in_the_tree():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in files:
        assert not re.search(r"(?<![\w.])/(?:home|root|work|Users)/\w", (ROOT / name).read_text(errors="ignore")), name
