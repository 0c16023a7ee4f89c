"""The manifests match Kubernetes' schema, each other, the image and the service."""

import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from pipeline.app.config import load_settings
from pipeline.settings import Settings

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy" / "kubernetes"
MANIFESTS = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in sorted(FOLDER.glob("*.yaml"))}
SPEC = MANIFESTS["statefulset"]["spec"]
POD = SPEC["template"]["spec"]
(CONTAINER,) = POD["containers"]
ENVIRONMENT = {variable["name"]: variable for variable in CONTAINER["env"]}
MOUNTS = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}


def dockerfile() -> str:
    return (ROOT / "deploy" / "Dockerfile").read_text("utf-8")


def settings_of(worker: str, tmp_path: Path, **environment: str) -> Settings:
    config = tmp_path / "afresh.toml"
    text = MANIFESTS["config"]["data"]["afresh.toml"]
    if environment:  # with the commented lines
        text = re.sub(r"^# (?=\w+ = )", "", text, flags=re.M)
    config.write_text(text, "utf-8")
    return load_settings(config, [], {"AFRESH_KAFKA__WORKER_ID": worker, **environment})


@pytest.mark.parametrize("version", ["1.30", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_matches_the_schema(name: str, version: str) -> None:
    kubernetes_validate.validate(MANIFESTS[name], version, strict=True)


def test_one_of_each_kind_and_all_select_the_same_pods() -> None:
    kinds = sorted(manifest["kind"] for manifest in MANIFESTS.values())
    assert kinds == ["ConfigMap", "PersistentVolumeClaim", "PodDisruptionBudget", "Service", "StatefulSet"]
    labels = SPEC["template"]["metadata"]["labels"]
    (spread,) = POD["topologySpreadConstraints"]
    budget = MANIFESTS["disruption-budget"]["spec"]
    for selector in (SPEC["selector"], budget["selector"], spread["labelSelector"]):
        assert selector["matchLabels"] == labels
    service = MANIFESTS["service"]
    assert service["spec"]["selector"] == labels
    assert (SPEC["serviceName"], service["spec"]["clusterIP"]) == (service["metadata"]["name"], "None")


def test_the_worker_has_its_pod_s_name_and_a_user_and_password_from_a_secret(tmp_path: Path) -> None:
    secret = {"AFRESH_KAFKA__SASL_USERNAME": "username", "AFRESH_KAFKA__SASL_PASSWORD": "password"}
    for name, key in secret.items():
        reference = ENVIRONMENT[name]["valueFrom"]["secretKeyRef"]
        assert reference == {"name": "afresh-kafka", "key": key, "optional": True}
    assert ENVIRONMENT["AFRESH_KAFKA__WORKER_ID"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    kafka = settings_of("afresh-1", tmp_path, **secret).kafka
    assert kafka.worker_id == "afresh-1"
    assert (kafka.sasl_username, kafka.sasl_password) == ("username", "password")
    assert (kafka.security_protocol, kafka.sasl_mechanism) == ("SASL_SSL", "SCRAM-SHA-512")


def test_configuration_and_volumes_are_mounted_where_they_are_used(tmp_path: Path) -> None:
    """The workers share one volume for checkpoints; each has its own for journal and compiled kernels."""
    assert CONTAINER["args"] == ["run", "--config", f"{MOUNTS['config']}/afresh.toml"]
    assert 'ENTRYPOINT ["afresh"]' in dockerfile()
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    assert volumes["config"]["configMap"]["name"] == MANIFESTS["config"]["metadata"]["name"]
    checkpoint = settings_of("afresh-0", tmp_path).checkpoint
    assert checkpoint.path == MOUNTS["checkpoint"]
    assert checkpoint.journal.startswith(f"{MOUNTS['worker']}/")
    claim = volumes["checkpoint"]["persistentVolumeClaim"]["claimName"]
    assert claim == MANIFESTS["checkpoint-volume"]["metadata"]["name"]
    assert [each["metadata"]["name"] for each in SPEC["volumeClaimTemplates"]] == ["worker"]
    assert ENVIRONMENT["NUMBA_CACHE_DIR"]["value"].startswith(f"{MOUNTS['worker']}/")
    assert volumes.keys() | {"worker"} == set(MOUNTS)


def test_probes_request_the_service_where_it_listens(tmp_path: Path) -> None:
    (port,) = CONTAINER["ports"]
    assert settings_of("afresh-0", tmp_path).metrics.address == f"0.0.0.0:{port['containerPort']}"
    assert SPEC["template"]["metadata"]["annotations"]["prometheus.io/port"] == str(port["containerPort"])
    probes = [CONTAINER[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")]
    assert [(probe["port"], probe["path"]) for probe in probes] == [
        (port["name"], path) for path in ("/live", "/live", "/ready")
    ]
    (exposed,) = MANIFESTS["service"]["spec"]["ports"]
    assert exposed["targetPort"] == port["name"]


def test_the_container_runs_as_the_images_user_without_further_rights() -> None:
    user = re.search(r"--uid (\d+)", dockerfile())
    assert user is not None
    context = POD["securityContext"]
    assert (context["runAsUser"], context["fsGroup"], context["runAsNonRoot"]) == (*[int(user[1])] * 2, True)
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert POD["automountServiceAccountToken"] is False
