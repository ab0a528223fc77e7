"""Podman and Buildah as the container tests use them, also where root has fewer rights than usual."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.infra import dockerfile

ROOT = Path(__file__).parents[2]
STAND_INS = Path(__file__).parent / "stand_ins"
_CAP_SYS_RESOURCE = 1 << 24
_CGROUP2 = "mount -t cgroup2 none /sys/fs/cgroup"
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def missing() -> str | None:
    """Why no container can run here, or None."""
    programs = [name for name in ("podman", "buildah", "crun") if shutil.which(name) is None]
    if programs:
        return (
            f"{' and '.join(programs)} missing: apt-get install --no-install-recommends podman buildah crun "
            "debootstrap netavark aardvark-dns fuse-overlayfs iptables"
        )
    return None if os.geteuid() == 0 else "containers are built and run as root here"


class Engine:
    """Podman with its own configuration; images are kept between sessions in the machine's store.

    Root inside a virtual machine may lack CAP_SYS_RESOURCE; then limits of processes and memory are left out of every
    container, by a wrapper around crun. Where the machine mounts the first version of cgroups, podman gets a mount
    namespace with the second.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        status = Path("/proc/self/status").read_text()
        rights = int(re.findall(r"^CapEff:\s*(\w+)", status, re.MULTILINE)[0], 16)
        self.limits = bool(rights & _CAP_SYS_RESOURCE)
        runtime = Path(shutil.which("crun") or "crun") if self.limits else STAND_INS / "crun-without-limits"
        # k8s-file, as `podman logs` cannot follow the journal of a machine without systemd
        (folder / "containers.conf").write_text(
            '[containers]\nlog_driver = "k8s-file"\n[engine]\nruntime = "crun"\ncgroup_manager = "cgroupfs"\n'
            f'events_logger = "file"\n[engine.runtimes]\ncrun = ["{runtime}"]\n'
        )
        self.environment = {**os.environ, "CONTAINERS_CONF": str(folder / "containers.conf")}
        self._prefix: list[str] = []
        self._namespace: subprocess.Popen[str] | None = None
        if not Path("/sys/fs/cgroup/cgroup.controllers").exists():
            script = f"umount -R /sys/fs/cgroup && {_CGROUP2} && echo ready && exec cat"
            # one for all calls: networks of containers are mounts too
            self._namespace = subprocess.Popen(
                ["unshare", "--mount", "sh", "-ec", script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert self._namespace.stdout is not None
            assert self._namespace.stdout.readline() == "ready\n", "no second version of cgroups here"
            self._prefix = ["nsenter", f"--mount=/proc/{self._namespace.pid}/ns/mnt"]

    def close(self) -> None:
        """End the mount namespace, where there is one."""
        if self._namespace is not None:
            self._namespace.communicate(timeout=60)

    def command(self, *arguments: str | Path) -> list[str]:
        """The command line of ``podman ARGUMENTS`` on this machine."""
        return [*self._prefix, "podman", *map(str, arguments)]

    def podman(
        self, *arguments: str | Path, check: bool = True, timeout: float = 600
    ) -> subprocess.CompletedProcess[str]:
        """Run podman to its end.

        Raises:
            AssertionError: status other than 0, with the command and its output.
        """
        done = subprocess.run(
            self.command(*arguments), env=self.environment, capture_output=True, text=True, timeout=timeout
        )
        output = f"podman {shlex.join(map(str, arguments))}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        assert done.returncode == 0 or not check, output
        return done

    def build(self, tag: str, context: Path, file: Path, *options: str) -> str:
        """Build an image from a Dockerfile, with the layers of earlier builds; returns its tag."""
        command = ["buildah", "bud", "--isolation=chroot", "--layers", "--network=host"]
        done = subprocess.run(
            [*command, f"--tag={tag}", f"--file={file}", *options, str(context)],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-6000:]
        return tag

    def has(self, image: str) -> bool:
        """Whether the image is here or can be had from its registry."""
        return (
            self.podman("image", "exists", image, check=False).returncode == 0
            or self.podman("pull", "--quiet", image, check=False, timeout=900).returncode == 0
        )

    def size(self, image: str) -> float:
        """The size of an image in 10^9 bytes, all layers together."""
        return int(self.podman("image", "inspect", "--format={{.Size}}", image).stdout) / 1e9

    def python_image(self) -> str:
        """The base image of the Dockerfile, or Debian's Python 3.11 in its place where no registry can be reached."""
        wanted = f"docker.io/library/{dockerfile.arguments()['PYTHON_IMAGE']}"
        if self.has(wanted):
            return wanted
        stand_in = "localhost/agit-test-python:3.11-bookworm"
        if self.podman("image", "exists", stand_in, check=False).returncode:
            with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
                self._debian(Path(folder), stand_in)
        return stand_in

    def _debian(self, folder: Path, tag: str) -> None:
        sites = subprocess.run(
            ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", "Codename: bookworm"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        assert sites, "no registry of images, and apt knows no mirror of bookworm to make a base image from"
        packages = "--include=ca-certificates,python3,python3-venv,python3-pip"
        subprocess.run(
            ["debootstrap", "--variant=minbase", packages, "bookworm", str(folder), sites[0]],
            check=True,
            capture_output=True,
        )
        (folder / "usr/bin/python").symlink_to("python3")
        (folder / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        next((folder / "usr/lib").glob("python3*/EXTERNALLY-MANAGED")).unlink()
        # the machine's own, in case it reaches the package index through a proxy
        shutil.copyfile(_CERTIFICATES, folder / _CERTIFICATES.relative_to("/"))
        archive = subprocess.Popen(["tar", "-C", str(folder), "-c", "."], stdout=subprocess.PIPE)
        subprocess.run(
            self.command("import", "--quiet", "--change", f"ENV SSL_CERT_FILE={_CERTIFICATES}", "-", tag),
            stdin=archive.stdout,
            env=self.environment,
            check=True,
            capture_output=True,
        )
        assert archive.wait() == 0
