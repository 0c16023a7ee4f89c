"""The manifests: they fit Kubernetes' schema, each other, the image, and what the service does."""

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
    """Return the settings of one pod."""
    config = tmp_path / "afresh.toml"
    text = MANIFESTS["config"]["data"]["afresh.toml"]
    if environment:  # the lines that are there for who needs them
        text = re.sub(r"^# (?=\w+ = )", "", text, flags=re.M)
    config.write_text(text, "utf-8")
    return load_settings(config, [], {"AFRESH_KAFKA__WORKER_ID": worker, **environment})


@pytest.mark.parametrize("version", ["1.30", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_fits_the_schema(name: str, version: str) -> None:
    kubernetes_validate.validate(MANIFESTS[name], version, strict=True)


def test_the_schema_sees_a_word_that_kubernetes_does_not_know() -> None:
    wrong = MANIFESTS["service"] | {"spec": MANIFESTS["service"]["spec"] | {"clusterIp": "None"}}
    with pytest.raises(kubernetes_validate.ValidationError, match="clusterIp"):
        kubernetes_validate.validate(wrong, "1.30", strict=True)


def test_one_of_each_kind_and_all_find_the_same_pods() -> None:
    kinds = sorted(manifest["kind"] for manifest in MANIFESTS.values())
    expected = ["ConfigMap", "PersistentVolumeClaim", "PodDisruptionBudget", "Service", "StatefulSet"]
    assert kinds == expected
    labels = SPEC["template"]["metadata"]["labels"]
    assert SPEC["selector"]["matchLabels"] == labels
    assert MANIFESTS["service"]["spec"]["selector"] == labels
    assert MANIFESTS["disruption-budget"]["spec"]["selector"]["matchLabels"] == labels
    (spread,) = POD["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == labels
    assert SPEC["serviceName"] == MANIFESTS["service"]["metadata"]["name"]
    assert MANIFESTS["service"]["spec"]["clusterIP"] == "None"


def test_a_pod_is_a_worker_by_its_own_name(tmp_path: Path) -> None:
    source = ENVIRONMENT["AFRESH_KAFKA__WORKER_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert source == "metadata.name"
    assert settings_of("afresh-1", tmp_path).kafka.worker_id == "afresh-1"


def test_user_and_password_come_from_a_secret(tmp_path: Path) -> None:
    secret = {"AFRESH_KAFKA__SASL_USERNAME": "username", "AFRESH_KAFKA__SASL_PASSWORD": "password"}
    for name, key in secret.items():
        reference = ENVIRONMENT[name]["valueFrom"]["secretKeyRef"]
        assert reference == {"name": "afresh-kafka", "key": key, "optional": True}
    kafka = settings_of("afresh-0", tmp_path, **secret).kafka
    assert (kafka.sasl_username, kafka.sasl_password) == ("username", "password")
    assert (kafka.security_protocol, kafka.sasl_mechanism) == ("SASL_SSL", "SCRAM-SHA-512")


def test_the_configuration_is_mounted_where_it_is_read() -> None:
    assert CONTAINER["args"] == ["run", "--config", f"{MOUNTS['config']}/afresh.toml"]
    assert 'ENTRYPOINT ["afresh"]' in dockerfile()
    (volume,) = [volume for volume in POD["volumes"] if volume["name"] == "config"]
    assert volume["configMap"]["name"] == MANIFESTS["config"]["metadata"]["name"]


def test_what_workers_share_is_on_one_volume_and_what_is_their_own_on_another(tmp_path: Path) -> None:
    checkpoint = settings_of("afresh-0", tmp_path).checkpoint
    assert checkpoint.path == MOUNTS["checkpoint"]
    assert checkpoint.journal.startswith(f"{MOUNTS['worker']}/")
    (shared,) = [volume for volume in POD["volumes"] if volume["name"] == "checkpoint"]
    claim = shared["persistentVolumeClaim"]["claimName"]
    assert claim == MANIFESTS["checkpoint-volume"]["metadata"]["name"]
    assert [each["metadata"]["name"] for each in SPEC["volumeClaimTemplates"]] == ["worker"]
    assert ENVIRONMENT["NUMBA_CACHE_DIR"]["value"].startswith(f"{MOUNTS['worker']}/")
    known = {volume["name"] for volume in POD["volumes"]} | {"worker"}
    assert known == set(MOUNTS)


def test_probes_ask_the_service_where_it_listens(tmp_path: Path) -> None:
    (port,) = CONTAINER["ports"]
    listening = settings_of("afresh-0", tmp_path).metrics.address
    assert listening == f"0.0.0.0:{port['containerPort']}"
    assert SPEC["template"]["metadata"]["annotations"]["prometheus.io/port"] == str(port["containerPort"])
    paths = {name: CONTAINER[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {probe["port"] for probe in paths.values()} == {port["name"]}
    assert [probe["path"] for probe in paths.values()] == ["/live", "/live", "/ready"]
    (exposed,) = MANIFESTS["service"]["spec"]["ports"]
    assert exposed["targetPort"] == port["name"]


def test_the_first_start_has_time_to_compile_and_an_end_to_save() -> None:
    probe = CONTAINER["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 120
    assert POD["terminationGracePeriodSeconds"] >= 30


def test_the_container_runs_as_the_images_user_and_may_do_nothing_else() -> None:
    user = re.search(r"--uid (\d+)", dockerfile())
    assert user is not None
    assert POD["securityContext"]["runAsUser"] == POD["securityContext"]["fsGroup"] == int(user[1])
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert POD["automountServiceAccountToken"] is False


def test_memory_is_bounded_and_what_is_asked_for_is_had() -> None:
    resources = CONTAINER["resources"]
    assert resources["limits"]["memory"] == resources["requests"]["memory"]
    assert "cpu" not in resources["limits"]  # a throttled loop falls behind and looks stuck


def test_drains_take_one_worker_at_a_time() -> None:
    assert MANIFESTS["disruption-budget"]["spec"]["maxUnavailable"] == 1
