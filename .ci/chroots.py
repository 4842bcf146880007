"""A chroot for each Debian suite: bootstrapped once, with the packages that engines, nodes and clients come from."""

from __future__ import annotations

import contextlib
import subprocess
import time
from pathlib import Path

from common import RIG, Trouble, run, say
from go_programs import BUILT

# In the hosts file of every chroot.  No account has this number.
ECR_HOST = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
# Where `go_programs.BUILT` is seen in every chroot.
PROGRAMS_INSIDE = "/opt/k3dreg-test-programs"
# Where `go_programs.BUILT` is seen in every chroot.
PROGRAMS_INSIDE = "/opt/k3dreg-test-programs"
PACKAGES = {
    "bookworm": ["docker.io", "containerd", "runc", "ca-certificates", "iptables", "procps"],
    "trixie": ["docker.io", "containerd", "runc", "ca-certificates", "iptables", "procps"],
    "sid": [
        *["docker.io", "containerd", "runc", "ca-certificates", "iptables", "procps"],
        *["docker-cli", "docker-buildx", "docker-compose", "docker-registry", "apache2-utils", "busybox-static"],
        # AWS's own helper; older suites have one that does not know AWS_ENDPOINT_URL.
        "amazon-ecr-credential-helper",
        # Clients that push and copy.
        *["skopeo", "crane", "oras", "podman", "catatonit", "crun", "netavark"],
    ],
}


def mirror() -> str:
    """Where this machine's own Debian packages come from."""
    for name in ("/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"):
        with contextlib.suppress(FileNotFoundError):
            for line in Path(name).read_text().splitlines():
                words = line.split()
                if words[:1] == ["URIs:"]:
                    return words[1]
                if words[:1] == ["deb"]:
                    return next(word for word in words[1:] if ":/" in word)
    raise Trouble("no Debian mirror in this machine's apt sources")


def mounted(path: Path) -> bool:
    return str(path) in mount_points()


def mount_points() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4].encode().decode("unicode_escape") for line in lines]


def bootstrap(suite: str) -> Path:
    """The suite's chroot: made once, mounted every time."""
    root = RIG / suite
    ready = root / ".k3dreg-test-ready"
    wanted = " ".join(PACKAGES[suite])
    if not (root / ".debootstrap-done").exists():
        started = time.monotonic()
        unmount(root)
        run("rm", "-rf", "--one-file-system", root)
        log = RIG / f"{suite}.debootstrap.log"
        log.unlink(missing_ok=True)
        run("debootstrap", "--variant=minbase", suite, root, mirror(), log=log)
        (root / "etc/apt/sources.list").write_text(f"deb {mirror()} {suite} main\n")
        # The chroot reaches the mirror as this machine does, and starts no service when a package is installed.
        run(
            "sh",
            "-c",
            f"cp -r /etc/apt/apt.conf.d/. {root}/etc/apt/apt.conf.d/; cp /etc/resolv.conf /etc/hosts {root}/etc/",
        )
        policy = root / "usr/sbin/policy-rc.d"
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        (root / ".debootstrap-done").touch()
        say(f"{suite}: bootstrapped in {time.monotonic() - started:.0f} s")
    mount(root)
    if not ready.exists() or ready.read_text() != wanted:
        started = time.monotonic()
        log = RIG / f"{suite}.install.log"
        log.unlink(missing_ok=True)
        # The chroot is worth nothing after a power cut, so dpkg need not wait for the disk.
        apt: list[str | Path] = ["chroot", root, "apt-get", "-q", "-o", "Dpkg::Options::=--force-unsafe-io"]
        run(*apt, "update", log=log)
        run(*apt, "install", "-y", "--no-install-recommends", *PACKAGES[suite], log=log)
        run("chroot", root, "apt-get", "clean", log=log)
        # What podman and skopeo want to be told, and no package that is needed here brings.
        (root / "etc/containers").mkdir(exist_ok=True)
        (root / "etc/containers/policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        ready.write_text(wanted)
        say(f"{suite}: packages installed in {time.monotonic() - started:.0f} s")
    hosts = root / "etc/hosts"
    if ECR_HOST not in hosts.read_text():
        with hosts.open("a") as file:
            file.write(f"127.0.0.1 {ECR_HOST}\n")
    return root


def mount(root: Path) -> None:
    # The root must itself be a mount point: runc and the layer unpacker remount "/".  It is shared, so that a mount
    # made by one process of the chroot is seen by the others.
    if not mounted(root):
        run("mount", "--bind", root, root)
        run("mount", "--make-private", root)
        run("mount", "--make-shared", root)
    if not mounted(root / "proc"):
        run("mount", "-t", "proc", "proc", root / "proc")
    for name in ("sys", "dev"):
        if not mounted(root / name):
            run("mount", "--rbind", f"/{name}", root / name)
            # Without this, unmounting here would unmount the machine's own.
            run("mount", "--make-rslave", root / name)
    programs = root / PROGRAMS_INSIDE.lstrip("/")
    if not mounted(programs):
        BUILT.mkdir(parents=True, exist_ok=True)
        programs.mkdir(parents=True, exist_ok=True)
        run("mount", "--bind", BUILT, programs)
    programs = root / PROGRAMS_INSIDE.lstrip("/")
    if not mounted(programs):
        BUILT.mkdir(parents=True, exist_ok=True)
        programs.mkdir(parents=True, exist_ok=True)
        run("mount", "--bind", BUILT, programs)


def unmount(root: Path) -> None:
    inside = [point for point in mount_points() if point == str(root) or point.startswith(f"{root}/")]
    for point in sorted(inside, key=len, reverse=True):
        subprocess.run(["umount", "--lazy", point], check=False, stderr=subprocess.DEVNULL)
