"""Linux's table of mounts, as it reads in and outside of containers."""

from __future__ import annotations

import pytest

from slimbrain_app.cluster.mounts import find_mount, tell_mounts

MOUNTS = r"""
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
23 22 0:40 / {0} rw shared:1 - tmpfs tmpfs rw
24 22 0:41 / {0}/a\040b ro,nosuid - nfs4 server:/x rw,local_lock=all
26 23 0:43 / {0} rw - xfs /dev/vdc rw
27 22 0:44 / {0}/deep rw - ext4 /dev/vdd ro
"""


@pytest.mark.parametrize(
    ("below", "kind", "option"),
    [
        ("a b/new", "nfs4", "local_lock=all"),
        ("a b", "nfs4", "ro"),
        ("", "xfs", "rw"),
        ("a", "xfs", "rw"),
        ("deep/er", "ext4", "ro"),
    ],
)
def test_the_innermost_and_last_mount_counts(tmp_path, below, kind, option):
    folder = tmp_path / below
    for name in ("a b", "a", "deep/er"):
        (tmp_path / name).mkdir(parents=True)
    table = tmp_path / "mountinfo"
    table.write_text(MOUNTS.strip().format(tmp_path.resolve()))
    mount = find_mount(folder, table)
    assert mount.kind == kind
    assert option in mount.options


def test_without_a_table_of_mounts_the_file_system_is_unknown(tmp_path):
    assert str(find_mount(tmp_path, tmp_path / "none")) == "file system unknown"


# With the lines of /proc, /sys and /dev cut short: docker, podman, Apptainer with --containall.
DOCKER = r"""
1015 844 0:71 / / ro,relatime master:279 - overlay overlay rw,lowerdir=/var/lib/docker/l/A,workdir=w
1016 1015 0:75 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw
1017 1015 0:76 / /dev rw,nosuid - tmpfs tmpfs rw,size=65536k,mode=755
1022 1017 0:77 / /dev/shm rw,nosuid,nodev,noexec,relatime - tmpfs shm rw,size=8388608k
1023 1015 259:2 /home/me/fmriprep /data ro,relatime - ext4 /dev/nvme0n1p2 rw,errors=remount-ro
1024 1015 259:2 /home/me/out /out rw,relatime - ext4 /dev/nvme0n1p2 rw,errors=remount-ro
1025 1015 259:2 /var/lib/docker/5a/resolv.conf /etc/resolv.conf rw - ext4 /dev/nvme0n1p2 rw
1026 1016 0:75 /sys /proc/sys ro,nosuid,nodev,noexec,relatime - proc proc rw
"""
PODMAN = r"""
118 93 0:41 / / ro,relatime - overlay overlay rw,lowerdir=/var/lib/containers/l/K,workdir=w
120 118 0:44 / /run rw,nosuid,nodev,relatime - tmpfs tmpfs rw
119 118 254:0 /me/my\040data /home/me/my\040data ro,relatime - ext4 /dev/vda rw,discard
121 118 0:52 / /scratch rw,relatime - nfs4 nas:/scratch rw,vers=4.2
122 118 0:45 / /sys ro,nosuid,nodev,noexec,relatime - sysfs sysfs rw
128 118 0:49 / /var/tmp rw,nosuid,nodev,relatime - tmpfs tmpfs rw
127 118 254:0 /run/containers/b2/userdata/hosts /etc/hosts ro,nosuid - ext4 /dev/vda rw,discard
131 122 0:50 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime - tmpfs tmpfs rw,mode=755
"""
APPTAINER = r"""
138 109 0:42 / / rw,nodev,relatime unbindable - overlay overlay ro,lowerdir=/var/lib/apptainer/o
148 138 0:41 /dev /dev rw,nosuid,relatime master:21 - tmpfs tmpfs rw
157 138 0:41 /etc/hosts /etc/hosts rw,nosuid,nodev,relatime master:21 - tmpfs tmpfs rw
158 138 254:0 /usr/share/zoneinfo/UTC /etc/localtime rw,nosuid master:1 - ext4 /dev/vda rw,discard
161 138 0:41 /tmp /tmp rw,nosuid,nodev,relatime master:21 - tmpfs tmpfs rw
162 138 0:41 /var/tmp /var/tmp rw,nosuid,nodev,relatime master:21 - tmpfs tmpfs rw
168 138 254:0 /usr/bin/nvidia-smi /usr/bin/nvidia-smi ro,nosuid master:1 - ext4 /dev/vda rw
169 138 254:0 /usr/lib/libcuda.so.1 /.singularity.d/libs/libcuda.so.1 ro master:1 - ext4 /dev/vda rw
166 161 254:0 /tmp /tmp rw,nosuid,nodev,relatime master:1 - ext4 /dev/vda rw,discard
167 138 254:0 /data/fmriprep /data/x ro,nosuid,nodev,relatime master:1 - ext4 /dev/vda rw,discard
"""
EMPTY = r"""
118 93 0:41 / / ro,relatime - overlay overlay rw,lowerdir=/var/lib/containers/l/K,workdir=w
"""
HOSTILE = r"""
119 118 254:0 /a\012\033[2J /data ro,relatime - ext4 /dev/vda rw,discard
"""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (DOCKER, "/data from /home/me/fmriprep (read-only), /out from /home/me/out"),
        (
            PODMAN,
            "/home/me/my data from /me/my data (read-only), /scratch from nas:/scratch",
        ),
        (APPTAINER, "/tmp from /tmp, /data/x from /data/fmriprep (read-only)"),
        (EMPTY, "nothing of the host"),
        (HOSTILE, r"'/data from /a\n\x1b[2J' (read-only)"),
    ],
)
def test_what_a_container_sees_of_the_host_is_told_in_one_line(tmp_path, text, told):
    table = tmp_path / "mountinfo"
    table.write_text(text.lstrip())
    assert tell_mounts(table) == f"mounted here: {told}"


def test_a_name_that_is_no_text_is_told_all_the_same(tmp_path):
    table = tmp_path / "mountinfo"
    table.write_bytes(b"119 118 254:0 /a\xff /data rw - ext4 /dev/vda rw\n")
    assert tell_mounts(table).isprintable()
