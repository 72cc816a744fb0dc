"""The manifests: they fit together, their proxy.conf is good, and preStop keeps a pod until its sessions are gone."""
import os
import re
import subprocess

import pytest
import servers
import yaml
from imapwire import Wire

MANIFESTS = servers.REPOSITORY / "deploy/kubernetes"
IMAPMUX = servers.REPOSITORY / os.environ.get("IMAPMUX", "build/imapmux")


def manifest(name):
    return next(yaml.safe_load_all((MANIFESTS / f"{name}.yaml").read_text()))


DEPLOYMENT, CONF = manifest("deployment")["spec"], manifest("configmap")["data"]["proxy.conf"]
POD = DEPLOYMENT["template"]["spec"]
CONTAINER = POD["containers"][0]
SECRETS = {secret["metadata"]["name"]: secret for secret in yaml.safe_load_all((MANIFESTS / "secret.yaml").read_text())}
PORTS = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
MOUNTS = {mount["mountPath"]: mount for mount in CONTAINER["volumeMounts"]}
VOLUMES = {volume["name"]: volume for volume in POD["volumes"]}


def setting(name):
    return re.search(rf"\b{name} = (\S+)", CONF).group(1).strip('"')


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)([sm])", text).groups()
    return int(number) * {"s": 1, "m": 60}[unit]


def test_the_configuration_is_good(tmp_path):
    chain, key = servers.make_certificate(tmp_path)
    (tmp_path / "password").write_text("secret")
    text = CONF.replace("/secrets/tls/tls.crt", str(chain)).replace("/secrets/tls/tls.key", str(key))
    for folder in ("/secrets/redis", "/run/imapmux", "/var/lib/imapmux"):
        text = text.replace(folder, str(tmp_path))
    (tmp_path / "proxy.conf").write_text(text)
    checked = subprocess.run([IMAPMUX, "-t", "-c", tmp_path / "proxy.conf"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_what_it_names_is_mounted():
    paths = re.findall(r'= "(/[^"]*)"', CONF)
    for path in paths:
        folder, _, name = path.rpartition("/")
        volume = VOLUMES[MOUNTS[folder]["name"]]
        if "secret" in volume:
            assert name in SECRETS[volume["secret"]["secretName"]]["stringData"]
        else:
            assert "emptyDir" in volume and not MOUNTS[folder].get("readOnly")
    assert len(paths) == 5 and len(VOLUMES) == len(MOUNTS) == 5
    assert VOLUMES[MOUNTS["/etc/imapmux"]["name"]]["configMap"]["name"] == manifest("configmap")["metadata"]["name"]


def test_ports_are_those_of_the_configuration():
    assert re.findall(r'address = "0\.0\.0\.0:(\d+)"', CONF) == [str(PORTS["imaps"]), str(PORTS["http"])]
    assert all(port > 1024 for port in PORTS.values())
    assert {port["targetPort"] for port in manifest("service")["spec"]["ports"]} == {"imaps"}
    assert {CONTAINER[probe]["httpGet"]["port"] for probe in ("readinessProbe", "livenessProbe")} == {"http"}
    assert DEPLOYMENT["template"]["metadata"]["annotations"]["prometheus.io/port"] == str(PORTS["http"])


def test_all_mean_the_same_pods():
    labels = DEPLOYMENT["template"]["metadata"]["labels"]
    budget, service = manifest("poddisruptionbudget")["spec"], manifest("service")["spec"]
    assert labels == DEPLOYMENT["selector"]["matchLabels"] == service["selector"] == budget["selector"]["matchLabels"]
    assert service["externalTrafficPolicy"] == "Local" and DEPLOYMENT["replicas"] > budget["maxUnavailable"]


def test_a_pod_may_do_little():
    containerfile = (servers.REPOSITORY / "deploy/container/Containerfile").read_text()
    user = int(re.search(r"^USER (\d+):", containerfile, re.MULTILINE).group(1))
    context, own = POD["securityContext"], CONTAINER["securityContext"]
    assert context["runAsNonRoot"] and context["runAsUser"] == context["runAsGroup"] == context["fsGroup"] == user
    assert context["seccompProfile"] == {"type": "RuntimeDefault"} and not POD["automountServiceAccountToken"]
    assert own == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def test_a_pod_has_time_to_let_go():
    defaults = subprocess.run([IMAPMUX, "--print-defaults"], capture_output=True, text=True).stdout
    stop_timeout = seconds(re.search(r"stop_timeout = (\w+)", defaults).group(1))
    assert POD["terminationGracePeriodSeconds"] > seconds(setting("drain_time")) + stop_timeout


@pytest.fixture
def proxy():
    with servers.Folder("imapmux-pod-") as folder:
        port = servers.free_port()
        with servers.Dovecot(folder / "store", users={"ann": "secret"}) as store:
            (folder / "passwd").write_text("ann:" + subprocess.run(["openssl", "passwd", "-6", "secret"], check=True,
                                                                   capture_output=True, text=True).stdout)
            configuration = f"""
process {{ drain_time = 5m core_dumps = {servers.CORE_DUMPS} }}
log {{ level = debug }}
listener plain {{ address = "{servers.HOST}:{port}" tls = none plaintext_login = yes }}
admin {{ socket = "{folder}/admin.sock" }}
passwd {{ file = "{folder}/passwd" }}
route {{ sources = {{ default }} default_shard = store }}
shard store {{ address = "{store.address}" tls = none }}
"""
            with servers.Imapmux(folder / "proxy", configuration=configuration, ports=[port]) as proxy:
                proxy.port, proxy.socket = port, folder / "admin.sock"
                yield proxy


def test_prestop_ends_with_the_last_session(proxy):
    shell = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    ctl = f"{IMAPMUX.with_name('imapmuxctl')} -s {proxy.socket}"
    with Wire(servers.HOST, proxy.port) as wire:
        wire.login("ann", "secret")
        hook = subprocess.Popen([*shell[:-1], shell[-1].replace("imapmuxctl", ctl)], stdout=subprocess.DEVNULL)
        proxy.wait_for_event("draining")
        servers.wait_for(lambda: len([event for event in proxy.events("admin") if event["command"] == "status"]) > 1,
                         "it to look whether the process is still there")
        assert b" OK " in wire.command(b"NOOP") and hook.poll() is None
        wire.command(b"LOGOUT")
    assert hook.wait(30) == 0
    proxy.process.wait(30)
