# shellcheck shell=bash
# namespaces.sh: what test/cluster and test/kind have in common; sourced. A cluster is a directory ($root, which $state points to), a first
# process in namespaces of its own, whose end is the end of all, and cgroups below /<name of the directory>.

if [ -e /sys/fs/cgroup/cgroup.controllers ]; then hierarchies=(/sys/fs/cgroup); else hierarchies=(/sys/fs/cgroup/*/); fi

# begin PROGRAM: runs `PROGRAM init` as the first process of new namespaces, in new cgroups; notes its pid in $root/init.pid
# and that of its parent in $unshared.
begin() {
  local name hierarchy file
  name=$(basename "$root")
  # The named hierarchy of systemd may be shared with the host's own; below it there is another.
  for hierarchy in "${hierarchies[@]}"; do mkdir -p "$hierarchy/$name"; done
  for file in cpus mems; do
    [ ! -e "/sys/fs/cgroup/cpuset/cpuset.$file" ] || cat "/sys/fs/cgroup/cpuset/cpuset.$file" >"/sys/fs/cgroup/cpuset/$name/cpuset.$file"
  done
  # shellcheck disable=SC2016 # expanded by the shell that joins the cgroups
  setsid bash -c 'for hierarchy in "${@:3}"; do echo $$ >"$hierarchy/$2/cgroup.procs"; done
    exec unshare --mount --net --uts --ipc --cgroup --pid --fork --kill-child=KILL "$1" init' \
    - "$1" "$name" "${hierarchies[@]}" </dev/null >"$root/init.log" 2>&1 &
  unshared=$!
  until [ -s "$root/init.pid" ]; do
    kill -0 "$unshared" 2>/dev/null || { cat "$root/init.log" >&2; die "the namespaces did not come up"; }
    tr -d ' ' <"/proc/$unshared/task/$unshared/children" >"$root/init.pid" 2>/dev/null || true
    sleep 0.05
  done
  # The same seen from outside: on version 2 unshare may not stay in there, where the cgroups of others are made.
  [ "${#hierarchies[@]}" -gt 1 ] || echo "$unshared" >/sys/fs/cgroup/cgroup.procs
}

# prepare_root: this machine's files below, a tmpfs above, and file systems of its own where the kernel's are: what a privileged
# container gets. Goes there; enter_root makes it the root.
prepare_root() {
  local device hierarchy
  mount --make-rprivate /
  mount -t tmpfs -o size=80% tmpfs /mnt
  mkdir /mnt/upper /mnt/work /mnt/root
  mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work root /mnt/root
  cd /mnt/root
  mount -t proc proc proc
  mount -t sysfs sysfs sys
  if [ "${hierarchies[0]}" = /sys/fs/cgroup ]; then
    mount -t cgroup2 cgroup2 sys/fs/cgroup
  else
    mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
    for hierarchy in "${hierarchies[@]}"; do
      hierarchy=$(basename "$hierarchy")
      case $hierarchy in
        unified) continue ;; # crun refuses a hybrid hierarchy
        systemd) device=name=systemd,none ;;
        *) device=$hierarchy ;;
      esac
      mkdir "sys/fs/cgroup/$hierarchy"
      mount -t cgroup -o "$device" cgroup "sys/fs/cgroup/$hierarchy"
    done
  fi
  mount -t tmpfs -o mode=755 tmpfs dev
  mkdir dev/pts dev/shm dev/mqueue
  for device in null zero full random urandom tty kmsg fuse; do
    [ -e "/dev/$device" ] || continue
    touch "dev/$device"
    mount --bind "/dev/$device" "dev/$device"
  done
  ln -s /proc/self/fd dev/fd
  ln -s pts/ptmx dev/ptmx
  mount -t devpts -o ptmxmode=666,newinstance devpts dev/pts
  mount -t mqueue mqueue dev/mqueue
  mount -t tmpfs -o mode=1777 tmpfs dev/shm
  mount -t tmpfs -o mode=755 tmpfs run
  mount -t tmpfs -o mode=1777 tmpfs tmp
  # Read and written on the way, whatever file system it is on: what was built, and the cluster's own directory.
  mkdir -p "./$target" "./$root"
  mount --bind "$target" "./$target"
  mount --bind "$root" "./$root"
}

enter_root() {
  pivot_root . mnt
  cd /
  umount -l /mnt
  mount --make-rshared /
}

# end PREFIX: ends a cluster, whose directory has a name of this beginning, and removes all there is of it.
end() {
  [ -L "$state" ] || return 0
  root=$(readlink "$state")
  local pid hierarchy name patience=200
  name=$(basename "$root")
  case $name in "$1".*) ;; *) die "$root is no cluster" ;; esac
  pid=$(cat "$root/init.pid" 2>/dev/null || true)
  # What version 1 has frozen cannot end.
  [ ! -d "/sys/fs/cgroup/freezer/$name" ] || find "/sys/fs/cgroup/freezer/$name" -name freezer.state -exec sh -c 'echo THAWED >"$1"' - {} \;
  if [ -n "$pid" ]; then
    kill -KILL "$pid" 2>/dev/null || true
    while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
  fi
  # A cgroup is busy for a moment after its last process is gone.
  for hierarchy in "${hierarchies[@]}"; do
    while [ -d "$hierarchy/$name" ] && ! find "$hierarchy/$name" -depth -type d -exec rmdir {} + 2>/dev/null; do
      [ $((patience -= 1)) -gt 0 ] || die "cannot remove $hierarchy/$name: end what runs there, and run it again"
      sleep 0.1
    done
  done
  rm -rf "$root"
  rm -f "$state"
}
