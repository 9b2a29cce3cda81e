"""What lies in deployments/ for production: parsed, compared with each other and the code, checked by real tools."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows import deployments
from tests import servers
from tests.servers import loaded, variables

ROOT = Path(__file__).parents[1]
FILES = ROOT / "deployments"
COMPOSE = (FILES / "compose.yaml").read_text()
SERVICES: dict[str, Any] = yaml.safe_load(COMPOSE)["services"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
SECRET = re.compile(r"PASSWORD|AUTH_STRING|SECRET|KEY|PGPASS")
SETTINGS = {name: variables(FILES / name / "settings.env") for name in ("prefect", "mlflow")}
SETTINGS["worker"] = variables(FILES / "worker.env")
EXAMPLE = variables(FILES / ".env.example")


# Containers.


def test_every_service_is_pinned_checked_and_closed() -> None:
    assert set(SERVICES) == {"postgres", "prefect", "mlflow", "worker"}
    for name, service in SERVICES.items():
        image, _, tag = service["image"].partition(":")
        assert re.match(r"\d+\.\d+", tag) and "latest" not in tag, name
        assert not image.startswith("maskmill") or tag == PROJECT["version"], name
        assert {"test", "interval", "timeout", "retries", "start_period"} <= set(service["healthcheck"]), name
        assert service["restart"] == "unless-stopped", name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        if name != "postgres":
            assert service["cap_drop"] == ["ALL"] and "privileged" not in service, name
        for needed, how in service.get("depends_on", {}).items():
            assert needed in SERVICES and how == {"condition": "service_healthy"}, name


def test_volumes_and_files_of_services_exist() -> None:
    named = set(yaml.safe_load(COMPOSE)["volumes"])
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (FILES / source).exists(), f"{name}: {volume}"
            elif not source.startswith("$"):
                assert source in named, f"{name}: {volume}"
        for path in service.get("env_file", []):
            assert (FILES / path).is_file(), name
        command = service.get("command", [""])[0]
        assert not command.startswith("deployments/") or os.access(ROOT / command, os.X_OK), name


def test_no_secret_has_a_default_and_every_variable_is_in_the_example() -> None:
    used = re.findall(r"\$\{(\w+)(:?[-?][^}]*)?\}", COMPOSE)
    assert {name for name, _ in used} <= set(EXAMPLE)
    for name, default in used:
        if SECRET.search(name):
            assert default.startswith(":?") or (default == ":-" and name.startswith("AWS_")), name
    for settings in (EXAMPLE, *SETTINGS.values()):
        assert not [name for name, value in settings.items() if SECRET.search(name) and value and "://" not in value]
    assert set(loaded().SECRETS) < set(EXAMPLE)


def test_services_set_what_the_settings_files_know() -> None:
    for name, settings in SETTINGS.items():
        assert set(SERVICES[name]["environment"]) <= set(settings) | {"WELL"}, name


def test_settings_of_prefect_are_names_that_prefect_reads() -> None:
    import prefect.settings

    for name in {name for settings in SETTINGS.values() for name in settings if name.startswith("PREFECT_")}:
        assert hasattr(prefect.settings, name), name


DOCKERFILE = (FILES / "Dockerfile").read_text()


def test_the_images_copy_what_is_there_and_install_what_is_pinned() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = [line[1:] for line in ignore if line.startswith("!")]
    assert ignore[1] == "*" and "**/.env" in ignore
    for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.M):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists() and source.split("/")[0] in let_in, source
    (base,) = re.findall(r"^FROM (python:\S+) AS base$", DOCKERFILE, re.M)
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", base) and "3.11" in PROJECT["requires-python"]
    installs = re.findall(r"pip install (.*)$", DOCKERFILE, re.M)
    assert all(line.startswith("-c constraints.txt ") for line in installs)
    pins = {name.lower().replace("_", "-") for name in PINS}
    (servers_of,) = [line for line in installs if "prefect" in line]
    names = [re.sub(r"\[.*\]", "", word.strip("'")) for word in servers_of.split()[2:]]
    assert {"prefect", "mlflow", "psycopg", "boto3"} <= set(names) <= pins
    (extras,) = re.findall(r"^ARG EXTRAS=(.*)$", DOCKERFILE, re.M)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])


def test_the_images_run_as_nobody_special_and_answer_the_health_check() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.M)[2:]
    assert [re.findall(r"^USER (\w+)$", stage, re.M) for stage in stages] == [["mill"], ["mill"]]
    port = SETTINGS["worker"]["PREFECT_WORKER_WEBSERVER_PORT"]
    assert f"PREFECT_WORKER_WEBSERVER_PORT={port}" in DOCKERFILE and f":{port}/health" in DOCKERFILE
    assert f":{port}/health" in SERVICES["worker"]["healthcheck"]["test"][-1]


# systemd.

UNITS = sorted((FILES / "systemd").iterdir())


def test_the_units_pass_systemd_s_own_check(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze here")
    for unit in UNITS:  # the commands have to exist for it
        text = unit.read_text().replace("/opt/maskmill/.venv/bin/maskmill", "/bin/true")
        (tmp_path / unit.name).write_text(text.replace("/opt/maskmill", str(ROOT)))
    words = ["systemd-analyze", "verify", *(str(tmp_path / unit.name) for unit in UNITS)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if "maskmill" in line]
    assert not said, said


def test_the_units_keep_secrets_apart_and_a_training_s_signal_single() -> None:
    assert [unit.name.removeprefix("maskmill-") for unit in UNITS] == [
        "mlflow.service",
        "prefect.service",
        "worker.service",
    ]
    for unit in UNITS:
        text = unit.read_text()
        assert not re.search(r"^Environment=.*(PASSWORD|AUTH|SECRET)", text, re.M)
        if unit.suffix == ".service":
            for line in ("NoNewPrivileges=yes", "ProtectSystem=strict", "EnvironmentFile=/etc/maskmill/"):
                assert line in text, (unit.name, line)
            assert re.search(r"^(Restart=always|Type=oneshot)$", text, re.M), unit.name
            assert re.search(r"^(DynamicUser=yes|User=maskmill)$", text, re.M), unit.name
    assert "\nKillMode=mixed\n" in (FILES / "systemd" / "maskmill-worker.service").read_text()


# Kubernetes.

CLUSTER = FILES / "kubernetes"
TEMPLATE = json.loads((CLUSTER / "base-job-template.json").read_text())
MANIFESTS: list[dict[str, Any]] = list(yaml.safe_load_all((CLUSTER / "worker.yaml").read_text()))


def pods() -> dict[str, dict[str, Any]]:
    """Each pod template, labels and all: of the manifests, and of the jobs that a work pool makes."""
    found = {}
    for one in MANIFESTS:
        if one["kind"] == "Deployment":
            found[one["metadata"]["name"]] = one["spec"]["template"]
        if one["kind"] == "CronJob":
            found[one["metadata"]["name"]] = one["spec"]["jobTemplate"]["spec"]["template"]
    for listed in deployments.check(CLUSTER / "prefect.yaml"):
        found[listed["name"]] = job(listed["work_pool"]["job_variables"])["spec"]["template"]
    return found


def job(given: dict[str, Any]) -> dict[str, Any]:
    """What a worker would ask the cluster for."""
    from prefect.utilities.templating import apply_values

    schema = TEMPLATE["variables"]["properties"]
    values = {name: one["default"] for name, one in schema.items() if "default" in one} | given
    values |= {"name": "run", "labels": {"app": "run"}, "command": ["prefect", "flow-run", "execute"], "env": {}}
    made: dict[str, Any] = apply_values(TEMPLATE["job_configuration"]["job_manifest"], values)
    return made


def test_manifests_of_kubernetes_name_what_exists() -> None:
    have = {(one["kind"], one["metadata"]["name"]) for one in MANIFESTS}
    assert all(one["metadata"].get("namespace", "maskmill") == "maskmill" for one in MANIFESTS)
    for name, template in pods().items():
        spec = template["spec"]
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in spec["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes, name
            assert re.search(r":\d+\.\d+", container["image"]), name
            assert {"requests", "limits"} == set(container["resources"]), name
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
            maps = [one["configMapRef"]["name"] for one in container["envFrom"] if "configMapRef" in one]
            assert {("ConfigMap", one) for one in maps} <= have and maps, name
            assert [one["secretRef"] for one in container["envFrom"] if "secretRef" in one] == [{"name": "maskmill"}]
        claims = [one["persistentVolumeClaim"]["claimName"] for one in spec["volumes"] if "emptyDir" not in one]
        assert {("PersistentVolumeClaim", claim) for claim in claims} <= have, name
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert "{{" not in json.dumps(template), name
    (worker,) = [one for one in MANIFESTS if one["kind"] == "Deployment"]
    assert worker["spec"]["selector"]["matchLabels"] == worker["spec"]["template"]["metadata"]["labels"]
    assert ("ServiceAccount", worker["spec"]["template"]["spec"]["serviceAccountName"]) in have
    (binding,) = [one for one in MANIFESTS if one["kind"] == "RoleBinding"]
    assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) in have
    assert {(one["kind"], one["name"]) for one in binding["subjects"]} <= have
    assert "prefect:" + PINS["prefect"] in worker["spec"]["template"]["spec"]["containers"][0]["image"]
    assert f"maskmill-worker:{PROJECT['version']}" == TEMPLATE["variables"]["properties"]["image"]["default"]


def test_jobs_of_kubernetes_ask_for_gpus_where_they_train() -> None:
    gpus = {
        name: template["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
        for name, template in pods().items()
    }
    assert gpus["weekly-pretraining"] == 1 and gpus["nightly-data"] is None
    assert job({})["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= 60
    (settings,) = [one["data"] for one in MANIFESTS if one["kind"] == "ConfigMap"]
    assert settings["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"] == "reschedule"  # evicted: back into the queue
    names = [one["name"] for one in deployments.check(CLUSTER / "prefect.yaml")]
    assert names == [one["name"] for one in deployments.check(deployments.FILE)]


@pytest.mark.parametrize("wrong", [{"gpus": 0}, {"gpus": "1"}, {"gpu": 1}, {"memory": "lots"}, {"grace_seconds": 1}])
def test_job_variables_that_the_template_does_not_know_are_refused(wrong: dict[str, Any]) -> None:
    from prefect.utilities.schema_tools import validate
    from prefect.utilities.schema_tools.validation import ValidationError

    schema = TEMPLATE["variables"]
    for listed in deployments.check(CLUSTER / "prefect.yaml"):
        validate(listed["work_pool"]["job_variables"], schema, raise_on_error=True, ignore_required=True)
    with pytest.raises(ValidationError):
        validate(wrong, schema, raise_on_error=True, ignore_required=True)


@pytest.mark.slow
def test_a_real_server_takes_the_work_pool_and_refuses_wrong_variables(tmp_path: Path, prefect_server: str) -> None:
    own = servers.calm({"PREFECT_API_URL": prefect_server, "MASKMILL_HOME": str(tmp_path)})

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", *words], cwd=ROOT, env=own, capture_output=True, text=True, check=False
        )

    template = str(CLUSTER / "base-job-template.json")
    words = ["work-pool", "create", "maskmill-kubernetes", "--type", "kubernetes", "--base-job-template", template]
    made = run("prefect", "--no-prompt", *words)
    assert made.returncode == 0, made.stderr + made.stdout
    done = run("flows.cli", "deploy", str(CLUSTER / "prefect.yaml"))
    assert done.returncode == 0 and "weekly-pretraining" in done.stdout, done.stderr
    text = (CLUSTER / "prefect.yaml").read_text()
    (tmp_path / "prefect.yaml").write_text(text.replace("gpus: 1", "gpus: many"))
    refused = run("flows.cli", "deploy", str(tmp_path / "prefect.yaml"))
    assert refused.returncode != 0 and "many" in refused.stderr, refused.stderr
