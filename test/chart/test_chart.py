"""The chart and the plain manifests, as helm, kustomize and Kubernetes' own schemas see them."""
import glob
import json
import os
import re
import shutil
import subprocess
import tempfile
import unittest

import prometheus
import values
import yaml

HERE = os.path.dirname(os.path.realpath(__file__))
ROOT = os.path.realpath(f"{HERE}/../..")
CHART = f"{ROOT}/charts/slipway"
TOOLS = f"{ROOT}/target/chart-tools"
NAMESPACE = "slipway-system"
SETS = [os.path.basename(path)[:-5] for path in sorted(glob.glob(f"{HERE}/values/*.yaml"))]
VERSIONS = sorted(os.listdir(f"{TOOLS}/schemas"))
START, END = "<!-- values: test/chart/run --update writes this table -->\n", "<!-- end of values -->\n"
# Helm keeps nothing in the home of whoever runs the tests.
HOME = tempfile.TemporaryDirectory()
ENVIRONMENT = {"PATH": os.environ["PATH"], "HOME": HOME.name, "HELM": f"{TOOLS}/helm"}


def run(*command, check=True, **options):
    """Runs a command; the result has text in stdout and stderr."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=ENVIRONMENT, **options)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def template(*arguments, **options):
    command = [f"{TOOLS}/helm", "template", "slipway", CHART, "--namespace", NAMESPACE, "--kube-version", "1.36.0"]
    return run(*command, *arguments, **options)


def manifest(name):
    return template("--values", f"{HERE}/values/{name}.yaml").stdout


def objects(text):
    return [item for item in yaml.safe_load_all(text) if item]


def of(text, kind):
    return {item["metadata"]["name"]: item for item in objects(text) if item["kind"] == kind}


def pods(text):
    """Pod templates of a manifest by kind and name."""
    found = {}
    for item in objects(text):
        if item["kind"] in ("DaemonSet", "Job"):
            found[item["kind"], item["metadata"]["name"]] = item["spec"]["template"]["spec"]
        elif item["kind"] == "Pod":
            found["Pod", item["metadata"]["name"]] = item["spec"]
    return found


def readme():
    with open(f"{CHART}/README.md") as file:
        return file.read()


def read(path):
    with open(path) as file:
        return file.read()


def update():
    for name in SETS:
        with open(f"{HERE}/snapshots/{name}.yaml", "w") as file:
            file.write(manifest(name))
    head, rest = readme().split(START)
    tail = rest.split(END)[1]
    with open(f"{CHART}/README.md", "w") as file:
        file.write(head + START + values.table(read(f"{CHART}/values.yaml")) + END + tail)
    print(run(f"{ROOT}/runtime-class/generate").stdout, end="")


class Conforming(unittest.TestCase):
    """What can ask the schemas of every version of Kubernetes that the tests know."""
    maxDiff = None

    def conform(self, text):
        for version in VERSIONS:
            location = f"{TOOLS}/schemas/{version}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"
            done = run(f"{TOOLS}/kubeconform", "-strict", "-summary", "-schema-location", location, input=text, check=False)
            self.assertEqual(done.returncode, 0, f"Kubernetes {version}: {done.stdout}{done.stderr}")
            self.assertIn("Skipped: 0", done.stdout)


class Chart(Conforming):
    def test_lint_finds_nothing(self):
        for name in SETS:
            done = run(f"{TOOLS}/helm", "lint", "--strict", "--kube-version", "1.36.0", "--values", f"{HERE}/values/{name}.yaml", CHART)
            self.assertIn("0 chart(s) failed", done.stdout)

    def test_manifests_are_those_of_the_snapshots(self):
        for name in SETS:
            with self.subTest(name):
                self.assertEqual(manifest(name), read(f"{HERE}/snapshots/{name}.yaml"), "if this is meant: test/chart/run --update")

    def test_manifests_fit_the_schemas_of_kubernetes(self):
        for name in SETS:
            with self.subTest(name):
                self.conform(manifest(name))

    def test_schemas_refuse_what_the_api_server_would(self):
        broken = manifest("default").replace("readOnlyRootFilesystem", "readOnlyRootFileSystem")
        with self.assertRaises(AssertionError):
            self.conform(broken)

    def test_an_older_kubernetes_is_refused(self):
        done = run(f"{TOOLS}/helm", "template", "slipway", CHART, "--kube-version", "1.29.9", check=False)
        self.assertIn("chart requires kubeVersion", done.stderr)

    def test_version_is_that_of_the_programs(self):
        version = re.search(r'^\[workspace\.package\]\nversion = "(.*)"', read(f"{ROOT}/Cargo.toml"), re.MULTILINE).group(1)
        chart = yaml.safe_load(read(f"{CHART}/Chart.yaml"))
        self.assertEqual((chart["appVersion"], chart["version"]), (version, version))

    def test_notes_name_the_next_three_commands(self):
        # helm only shows them to who has a cluster: here they are a value of an object.
        with tempfile.TemporaryDirectory() as directory:
            chart = shutil.copytree(CHART, f"{directory}/slipway")
            with open(f"{chart}/templates/notes.yaml", "w") as file:
                file.write('{{- define "notes" -}}' + read(f"{CHART}/templates/NOTES.txt") + '{{- end -}}\nnotes: {{ include "notes" . | toJson }}')
            for name in SETS:
                done = run(f"{TOOLS}/helm", "template", "slipway", chart, "--namespace", NAMESPACE, "--kube-version", "1.36.0",
                           "--values", f"{HERE}/values/{name}.yaml", "--show-only", "templates/notes.yaml")
                notes = yaml.safe_load(done.stdout)["notes"]
                self.assertEqual(len(re.findall(r"^  (?:kubectl|helm) ", notes, re.MULTILINE)), 3, notes)
                self.assertNotIn("<no value>", notes)

    def test_selectors_survive_upgrades(self):
        # A DaemonSet's selector cannot be changed: what changes with the version must not be in it.
        for item in of(manifest("default"), "DaemonSet").values():
            self.assertEqual(item["spec"]["selector"]["matchLabels"], {
                "app.kubernetes.io/name": "slipway", "app.kubernetes.io/instance": "slipway",
                "app.kubernetes.io/component": "installer"})

    def test_readme_has_every_value(self):
        self.assertEqual(readme().split(START)[1].split(END)[0], values.table(read(f"{CHART}/values.yaml")),
                         "if this is meant: test/chart/run --update")

    def test_every_value_is_described(self):
        text = read(f"{CHART}/values.yaml")
        described = {path for path, _, _ in values.rows(text)}
        for leaf in values.leaves(yaml.safe_load(text)):
            above = {leaf.rsplit(".", n)[0] for n in range(leaf.count(".") + 1)}
            self.assertTrue(above & described, f"{leaf} has no comment `# --`")


class Schema(unittest.TestCase):
    """values.schema.json refuses what would otherwise be passed over."""

    def refused(self, settings, *words):
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump(settings, file)
            file.flush()
            done = template("--values", file.name, check=False)
        self.assertNotEqual(done.returncode, 0, f"{settings} was taken")
        for word in words:
            self.assertIn(word, done.stderr)

    def test_an_unknown_name_is_refused_at_every_level(self):
        def objects_of(schema, path=()):
            yield path
            for name, below in schema.get("properties", {}).items():
                if "properties" in below:
                    yield from objects_of(below, (*path, name))

        schema = json.loads(read(f"{CHART}/values.schema.json"))
        for path in objects_of(schema):
            settings = {"typo": 1}
            for name in reversed(path):
                settings = {name: settings}
            with self.subTest(path):
                self.refused(settings, "'typo' not allowed", "at '" + "".join(f"/{name}" for name in path) + "'")

    def test_lists_and_references_are_as_strict(self):
        self.refused({"installer": {"tolerations": [{"kye": "a"}]}}, "'kye' not allowed")
        self.refused({"runtimeClass": {"tolerations": [{"effect": "NoSchedul"}]}}, "/runtimeClass/tolerations/0/effect")
        self.refused({"runtimeClass": {"overhead": {"mem": "2Mi"}}}, "'mem' not allowed")
        self.refused({"image": {"pullSecrets": ["registry"]}}, "/image/pullSecrets/0")
        self.refused({"installer": {"resources": {"limits": {"memroy": "1Mi"}}}}, "'memroy' not allowed")

    def test_values_of_the_wrong_kind_are_refused(self):
        for settings, where in [
            ({"runtimeClass": {"create": "yes"}}, "/runtimeClass/create"),
            ({"metrics": {"port": "9464"}}, "/metrics/port"),
            ({"metrics": {"port": 80}}, "/metrics/port"),
            ({"runtimeClass": {"aliases": "wasmedge"}}, "/runtimeClass/aliases"),
            ({"runtimeClass": {"overhead": {"memory": "2 MB"}}}, "/runtimeClass/overhead/memory"),
            ({"commonLabels": {"a": 1}}, "/commonLabels/a"),
            ({"commonLabels": {"a": "not a label"}}, "/commonLabels/a"),
        ]:
            with self.subTest(settings):
                self.refused(settings, where)

    def test_values_that_nothing_knows_are_refused(self):
        for settings, where in [
            ({"installer": {"kind": "Deamonset"}}, "/installer/kind"),
            ({"image": {"pullPolicy": "Allways"}}, "/image/pullPolicy"),
            ({"image": {"digest": "sha256:abc"}}, "/image/digest"),
            ({"uninstall": {"policy": "delete"}}, "/uninstall/policy"),
            ({"uninstall": {"timeout": "300"}}, "/uninstall/timeout"),
            ({"uninstall": {"timeout": "1h30m"}}, "/uninstall/timeout"),
            ({"node": {"distribution": "k3d"}}, "/node/distribution"),
            ({"node": {"installDir": "opt/slipway"}}, "/node/installDir"),
            ({"node": {"installDir": "/"}}, "/node/installDir"),
            ({"node": {"containerd": {"unit": "containerd"}}}, "/node/containerd/unit"),
            ({"node": {"cacheSize": "10 GB"}}, "/node/cacheSize"),
            ({"runtimeClass": {"name": "Slipway"}}, "/runtimeClass/name"),
            ({"runtimeClass": {"aliases": ["runc"]}}, "/runtimeClass/aliases/0"),
            ({"runtimeClass": {"aliases": ["wasm", "wasm"]}}, "/runtimeClass/aliases"),
            ({"installer": {"updateStrategy": {"rollingUpdate": {"maxUnavailable": 0}}}}, "/maxUnavailable"),
        ]:
            with self.subTest(settings):
                self.refused(settings, where)

    def test_values_that_contradict_each_other_are_refused(self):
        self.refused({"installer": {"kind": "Job"}}, "/installer/nodes")
        self.refused({"installer": {"nodes": ["a"]}}, "/installer/nodes")


class Rights(unittest.TestCase):
    """Who may do what, in the cluster and on the node: all of it."""

    def test_rights_are_the_listed_ones(self):
        for name in SETS:
            text = manifest(name)
            roles = {
                (role["kind"], role["metadata"]["name"]): {
                    (group, resource, verb, *rule.get("resourceNames", []))
                    for rule in role["rules"] for group in rule["apiGroups"] for resource in rule["resources"] for verb in rule["verbs"]
                }
                for role in objects(text) if role["kind"] in ("Role", "ClusterRole")
            }
            granted = {}
            for binding in objects(text):
                if binding["kind"] in ("RoleBinding", "ClusterRoleBinding"):
                    for subject in binding["subjects"]:
                        self.assertEqual((subject["kind"], subject["namespace"]), ("ServiceAccount", NAMESPACE))
                        reference = binding["roleRef"]
                        self.assertEqual(reference["kind"] + "Binding", binding["kind"])
                        granted.setdefault(subject["name"], set()).update(roles[reference["kind"], reference["name"]])
            prefix = "wasm-runtime" if name == "full" else "slipway"
            installer, uninstaller, wish = (f"{prefix}-{of}" for of in ("installer", "uninstaller", "wish"))
            expected = {
                installer: {("", "nodes", "get"), ("", "nodes", "patch"), ("", "configmaps", "get", wish)},
                uninstaller: {("", "nodes", "list"), ("", "pods", "list"), ("node.k8s.io", "runtimeclasses", "list"),
                              ("", "configmaps", "patch", wish)},
            }
            if name == "keep":
                del expected[uninstaller]
            elif name == "none":
                expected = {}
            with self.subTest(name):
                self.assertEqual(granted, expected)
                self.assertEqual(set(of(text, "ServiceAccount")), set(expected))

    def test_tokens_are_only_where_they_are_used(self):
        for name in SETS:
            text = manifest(name)
            for account in of(text, "ServiceAccount").values():
                self.assertFalse(account["automountServiceAccountToken"])
            for (kind, pod), spec in pods(text).items():
                self.assertFalse(spec["automountServiceAccountToken"])
                tokens = [
                    source["serviceAccountToken"] for volume in spec.get("volumes", [])
                    for source in volume.get("projected", {}).get("sources", []) if "serviceAccountToken" in source
                ]
                self.assertEqual(tokens, [] if kind == "Pod" else [{"path": "token", "expirationSeconds": 3600}], pod)

    def test_the_installer_has_root_and_four_directories_and_nothing_else(self):
        for name in ("default", "job"):
            for (kind, pod), spec in pods(manifest(name)).items():
                # Of the uninstaller's two, the DaemonSet works on nodes.
                if kind == "Pod" or (kind, pod) == ("Job", "slipway-uninstaller"):
                    continue
                with self.subTest(f"{name}: {kind} {pod}"):
                    for namespace in ("hostPID", "hostIPC", "hostNetwork", "hostUsers", "securityContext", "initContainers"):
                        self.assertNotIn(namespace, spec)
                    [container] = spec["containers"]
                    self.assertEqual(container["securityContext"], {
                        "privileged": False, "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                        "runAsUser": 0, "runAsGroup": 0, "capabilities": {"drop": ["ALL"]},
                        "seccompProfile": {"type": "RuntimeDefault"}})
                    paths = {volume["name"]: volume["hostPath"]["path"] for volume in spec["volumes"] if "hostPath" in volume}
                    mounts = {
                        paths[mount["name"]]: (mount["mountPath"], mount.get("readOnly", False))
                        for mount in container["volumeMounts"] if mount["name"] in paths
                    }
                    expected = {"/opt/slipway": ("/host/opt/slipway", False), "/run/systemd": ("/host/run/systemd", True)}
                    if "--once" not in container["args"]:
                        expected |= {path: (path, True) for path in ("/var/lib/slipway", "/run/slipway")}
                    self.assertEqual(mounts, expected)

    def test_the_other_pods_are_of_the_restricted_kind(self):
        for (kind, pod), spec in pods(manifest("default")).items():
            if kind == "DaemonSet":
                continue
            with self.subTest(pod):
                self.assertEqual((spec["securityContext"]["runAsNonRoot"], spec["securityContext"]["seccompProfile"]["type"]),
                                 (True, "RuntimeDefault"))
                self.assertFalse([volume for volume in spec.get("volumes", []) if "hostPath" in volume])
                for container in spec["containers"]:
                    self.assertEqual(container["securityContext"]["capabilities"], {"drop": ["ALL"]})
                    self.assertFalse(container["securityContext"]["allowPrivilegeEscalation"])
                    self.assertTrue(container["securityContext"]["readOnlyRootFilesystem"])


class Meaning(unittest.TestCase):
    """What single values make of the objects, beyond what a snapshot shows."""

    def test_a_digest_wins_over_the_tag(self):
        images = {container["image"] for (kind, _), spec in pods(manifest("full")).items() if kind != "Pod" for container in spec["containers"]}
        self.assertEqual(images, {"registry.example.com/slipway/installer@sha256:" + "0123456789abcdef" * 4})

    def test_every_alias_is_a_handler_and_a_class(self):
        text = manifest("full")
        self.assertEqual({name: item["handler"] for name, item in of(text, "RuntimeClass").items()},
                         {"wasm": "slipway", "wasmedge": "wasmedge", "wasi": "wasi"})
        for item in of(text, "RuntimeClass").values():
            self.assertEqual(item["scheduling"]["nodeSelector"], {"slipway.dev/installed": "true", "pool": "wasm"})
        args = pods(text)["DaemonSet", "wasm-runtime-installer"]["containers"][0]["args"]
        self.assertEqual([arg for arg in args if "alias" in arg], ["--alias=wasmedge", "--alias=wasi"])
        # What the classes are called is no matter.
        job = pods(text)["Job", "wasm-runtime-uninstaller"]["containers"][0]["args"]
        self.assertEqual([arg for arg in job if "alias" in arg], ["--alias=wasmedge", "--alias=wasi"])

    def test_the_wish_is_one_object_that_all_read(self):
        for name in ("default", "full", "job", "keep"):
            text = manifest(name)
            [wish] = [item for item in of(text, "ConfigMap").values() if item["metadata"]["name"].endswith("-wish")]
            with self.subTest(name):
                # Helm puts it back: it is no hook, and has the one key that an uninstallation takes away.
                self.assertNotIn("annotations", wish["metadata"])
                self.assertEqual(wish["data"], {"install": ""})
                asked = {arg for (kind, _), spec in pods(text).items() if kind != "Pod" for arg in spec["containers"][0]["args"] if "--wish" in arg}
                self.assertEqual(asked, {f"--wish={wish['metadata']['namespace']}/{wish['metadata']['name']}"})
        self.assertEqual(of(manifest("none"), "ConfigMap"), {})

    def test_a_refusal_names_the_command_that_takes_it_back(self):
        args = pods(manifest("default"))["Job", "slipway-uninstaller"]["containers"][0]["args"]
        self.assertIn(f"--take-back=helm rollback slipway 1 --namespace {NAMESPACE}", args)

    def test_jobs_are_for_one_node_each_and_helm_waits_for_them(self):
        jobs = [job for job in of(manifest("job"), "Job").values() if "slipway.dev/node" in job["metadata"]["annotations"]]
        nodes = {}
        for job in jobs:
            annotations = job["metadata"]["annotations"]
            self.assertEqual(annotations["helm.sh/hook"], "post-install,post-upgrade,post-rollback")
            [term] = job["spec"]["template"]["spec"]["affinity"]["nodeAffinity"][
                "requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
            self.assertEqual(term["matchFields"][0]["values"], [annotations["slipway.dev/node"]])
            nodes[annotations["slipway.dev/node"]] = annotations["helm.sh/hook-weight"]
        self.assertEqual(nodes, {"worker-1.example.com": "0", "worker-2.example.com": "1"})

    def test_what_the_uninstaller_needs_outlives_it(self):
        # What is no hook goes after the pre-delete hooks: its account and rights have to be that, and the installer.
        for name in ("default", "job"):
            for item in objects(manifest(name)):
                hook = item["metadata"].get("annotations", {}).get("helm.sh/hook")
                if item["kind"] in ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "ValidatingAdmissionPolicy"):
                    self.assertIsNone(hook, item["metadata"]["name"])
        hooks = [(item["metadata"]["annotations"]["helm.sh/hook-weight"], item["kind"]) for item in objects(manifest("job"))
                 if item["metadata"].get("annotations", {}).get("helm.sh/hook") == "pre-delete"]
        self.assertEqual(sorted(hooks, key=lambda hook: int(hook[0])), [("-1", "DaemonSet"), ("0", "Job")])

    def test_uninstall_policies(self):
        def with_argument(argument, *values):
            """Who has it, the installer or the uninstaller."""
            found = pods(template(*(word for value in values for word in ("--set", f"uninstall.{value}"))).stdout)
            return [kind for (kind, _), spec in found.items() if kind != "Pod" and argument in spec["containers"][0]["args"]]

        self.assertEqual(with_argument("--force", "policy=refuse"), [])
        # The nodes hear of it by their label.
        self.assertEqual(with_argument("--force", "policy=force"), ["Job"])
        self.assertEqual(with_argument("installer", "policy=keep"), ["DaemonSet"])
        self.assertEqual(with_argument("--purge", "purge=true"), ["DaemonSet"])
        self.assertEqual(with_argument("--purge", "purge=false"), [])


class Plain(Conforming):
    """runtime-class/, for people without Helm."""

    def test_manifests_are_the_charts(self):
        done = run(f"{ROOT}/runtime-class/generate", "--check", check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_kustomizations_fit_the_schemas_of_kubernetes(self):
        for folder, count in ((".", 1), ("installer", 10), ("uninstaller", 6)):
            text = run(f"{TOOLS}/kustomize", "build", f"{ROOT}/runtime-class/{folder}").stdout
            self.assertEqual(len(objects(text)), count, folder)
            self.assertNotIn("helm", text.lower())
            self.conform(text)


class Dashboard(unittest.TestCase):
    def setUp(self):
        [config] = [item for item in objects(manifest("full")) if item["kind"] == "ConfigMap" and "slipway.json" in item["data"]]
        self.dashboard = json.loads(config["data"]["slipway.json"])

    def test_it_asks_for_all_metrics_that_are_served_and_no_others(self):
        served = prometheus.parse(run(f"{ROOT}/target/dist/opt/slipway/bin/slipway", "metrics").stdout)
        names = {name for family in served.values() for name, _ in family.samples}
        expressions = [target["expr"] for panel in self.dashboard["panels"] for target in panel["targets"]]
        asked = {metric for e in expressions for metric in re.findall(r"slipway_\w+", e)}
        self.assertLessEqual(asked, names)
        self.assertEqual({name for name, family in served.items() if not asked & {name for name, _ in family.samples}}, set())
        for expression in expressions:
            self.assertEqual([expression.count(c) for c in "({["], [expression.count(c) for c in ")}]"], expression)
            self.assertEqual(expression.count('node=~"$node"'), len(re.findall(r"slipway_\w+", expression)), expression)

    def test_it_tells_values_apart_by_labels_that_are_served(self):
        served = prometheus.parse(run(f"{ROOT}/target/dist/opt/slipway/bin/slipway", "metrics").stdout)
        labels = {(name, label) for family in served.values() for name, labels in family.samples for label, _ in labels}
        for panel in self.dashboard["panels"]:
            for target in panel["targets"]:
                of = re.findall(r"slipway_\w+", target["expr"])
                for label in re.findall(r"{{(\w+)}}", target.get("legendFormat", "")):
                    self.assertTrue(label == "node" or {(name, label) for name in of} <= labels, target)

    def test_the_documentation_has_all_metrics(self):
        served = prometheus.parse(run(f"{ROOT}/target/dist/opt/slipway/bin/slipway", "metrics").stdout)
        rows = dict(re.findall(r"^\| `(slipway_\w+)` \| (\w+)", read(f"{ROOT}/docs/metrics.md"), re.M))
        self.assertEqual(rows, {name: family.kind for name, family in served.items()})

    def test_panels_have_a_place_and_a_data_source(self):
        panels, taken = self.dashboard["panels"], set()
        self.assertEqual(len({panel["id"] for panel in panels}), len(panels))
        for panel in panels:
            place = panel["gridPos"]
            cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
            self.assertFalse(cells & taken, f"{panel['title']} covers another")
            self.assertLessEqual(place["x"] + place["w"], 24)
            self.assertEqual(panel["datasource"]["uid"], "${datasource}")
            taken |= cells
