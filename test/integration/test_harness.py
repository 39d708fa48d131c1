"""The harness itself: what it finds of what pods leave behind, and that it looks at nothing of anybody else's."""
import contextlib
import os
import tempfile

from harness import TREE, PodTest, run


class LeftBehind(PodTest):
    @contextlib.contextmanager
    def mounted(self, directory):
        """A mount of the host's."""
        run("mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", directory)
        try:
            yield
        finally:
            run("umount", directory)

    def sleeping(self, name):
        """A process in the bed that goes on by itself."""
        self.bed.run("sh", "-c", f"ln -sf /bin/sleep {self.bed.root}/{name} && {self.bed.root}/{name} 1000 >/dev/null 2>&1 &")

    def test_mounts_that_others_make_and_remove_are_not_left_behind(self):
        # A bed copies the host's mounts. Who removes a mount point takes the mount away from every copy.
        with tempfile.TemporaryDirectory(dir="/tmp") as d, self.mounted(d):
            self.leave_nothing()

    def test_what_a_pod_leaves_is_named(self):
        root, parent = self.bed.root, self.bed.cgroup_parent
        hierarchy = "/sys/fs/cgroup" if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else "/sys/fs/cgroup/pids"
        inside = f"{root}/inside"
        os.mkdir(inside)
        self.addCleanup(os.rmdir, inside)
        for name, make, remove in [
            (f"tmpfs on {inside}", lambda: self.bed.run("mount", "-t", "tmpfs", "tmpfs", inside), lambda: self.bed.run("umount", inside)),
            (f"tmpfs on {TREE}/lib/skeleton", lambda: run("mount", "-t", "tmpfs", "tmpfs", f"{TREE}/lib/skeleton"), lambda: run("umount", f"{TREE}/lib/skeleton")),
            (f"tmpfs on {inside}", lambda: run("mount", "-t", "tmpfs", "tmpfs", inside), lambda: run("umount", inside)),
            ("/run/containerd/s/left", lambda: self.bed.run("mkdir", "-p", "/run/containerd/s/left"), lambda: self.bed.run("rmdir", "/run/containerd/s/left")),
            (f"{hierarchy}{parent}/left", lambda: os.mkdir(f"{hierarchy}{parent}/left"), lambda: os.rmdir(f"{hierarchy}{parent}/left")),
            ("slipway-left", lambda: self.sleeping("slipway-left"), lambda: self.bed.run("pkill", "-KILL", "-x", "slipway-left")),
            ("left.txt", lambda: open(f"{self.bed.temporary}/left.txt", "w").close(), lambda: os.remove(f"{self.bed.temporary}/left.txt")),
        ]:
            with self.subTest(name):
                make()
                try:
                    with self.assertRaisesRegex(AssertionError, name):
                        self.leave_nothing(patience=0)
                finally:
                    remove()
                self.leave_nothing()
