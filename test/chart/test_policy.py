"""The admission policies, as the API server's own code judges by them."""
import copy
import json
import tempfile
import unittest

from test_chart import NAMESPACE, TOOLS, manifest, run

INSTALLER = f"system:serviceaccount:{NAMESPACE}:slipway-installer"
NODE = {
    "metadata": {
        "name": "worker-1",
        "labels": {"kubernetes.io/hostname": "worker-1", "slipway.dev/installed": "false"},
        "annotations": {"owner": "platform"},
    },
    "spec": {"podCIDR": "10.244.1.0/24"},
}


def node(**changes):
    """NODE with a change: labels (None takes one away), annotations, or fields of the spec."""
    changed = copy.deepcopy(NODE)
    for key, value in changes.pop("labels", {}).items():
        changed["metadata"]["labels"][key] = value
        if value is None:
            del changed["metadata"]["labels"][key]
    changed["metadata"]["annotations"].update(changes.pop("annotations", {}))
    changed["metadata"].update(changes.pop("metadata", {}))
    changed["spec"].update(changes)
    return changed


class Policy(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        file = cls.enterClassContext(tempfile.NamedTemporaryFile("w", suffix=".yaml"))
        file.write(manifest("default"))
        file.flush()
        cls.manifest = file.name

    def ask(self, user, after, on="worker-1", before=NODE, **request):
        """What the policies answer to an update by a user whose token is of a pod on a node."""
        extra = {"authentication.kubernetes.io/node-name": [on]} if on else {}
        request = {"user": user, "extra": extra, "before": before, "after": after, **request}
        [answer] = json.loads(run(f"{TOOLS}/policy", self.manifest, input=json.dumps([request])).stdout)
        return answer

    def allowed(self, *request, **more):
        self.assertEqual(self.ask(*request, **more), {"judged": 1, "refused": []})

    def refused(self, words, *request, **more):
        answer = self.ask(*request, **more)
        self.assertEqual(answer["judged"], 1)
        self.assertIn(words, "; ".join(answer["refused"]))

    def test_an_installer_may_label_its_node(self):
        self.allowed(INSTALLER, node(labels={"slipway.dev/installed": "true", "slipway.dev/version": "0.1.0"}))
        self.allowed(INSTALLER, node(labels={"slipway.dev/installed": None}))
        bare = {"metadata": {"name": "worker-1"}}
        self.allowed(INSTALLER, {"metadata": {"name": "worker-1", "labels": {"slipway.dev/installed": "true"}}}, before=bare)

    def test_an_installer_may_not_label_another_node(self):
        labelled = node(labels={"slipway.dev/installed": "true"})
        self.refused("on node 'worker-2' may not change node 'worker-1'", INSTALLER, labelled, on="worker-2")
        self.refused("may not change node 'worker-1'", INSTALLER, labelled, on=None)

    def test_an_installer_may_not_change_labels_of_others(self):
        for labels in ({"node-role.kubernetes.io/control-plane": ""}, {"kubernetes.io/hostname": "other"}, {"kubernetes.io/hostname": None},
                       {"slipway.development/installed": "true"}):
            [name] = labels
            self.refused(f"not Slipway's to change: {name}", INSTALLER, node(labels={**labels, "slipway.dev/installed": "true"}))

    def test_an_installer_may_not_change_anything_else_of_its_node(self):
        for changed in (node(unschedulable=True), node(taints=[{"key": "a", "effect": "NoSchedule"}]), node(podCIDR="10.0.0.0/8"),
                        node(annotations={"owner": "other"}), node(annotations={"slipway.dev/installed": "true"}),
                        node(metadata={"finalizers": ["example.com/a"]}),
                        node(metadata={"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "a", "uid": "b"}]})):
            self.refused("nothing of a node but its labels", INSTALLER, changed)

    def test_an_installer_may_not_make_or_remove_nodes_or_write_their_status(self):
        self.refused("", INSTALLER, NODE, before=None)
        self.refused("", INSTALLER, None)
        self.refused("may only change labels", INSTALLER, NODE, subresource="status")

    def test_others_are_none_of_the_policies_business(self):
        for user in ("system:node:worker-1", "system:serviceaccount:default:slipway-installer", INSTALLER + "x"):
            self.assertEqual(self.ask(user, node(unschedulable=True)), {"judged": 0, "refused": []})

    def test_a_node_of_many_labels_is_within_the_budget(self):
        many = {f"example.com/label-{i}": "v" * 60 for i in range(500)}
        self.allowed(INSTALLER, node(labels={**many, "slipway.dev/installed": "true"}), before=node(labels=many))
        self.refused("not Slipway's to change", INSTALLER, node(labels={"a": "b"}), before=node(labels=many))
