"""An engine that has bridge networks, in a network namespace and a mount namespace of its own.

So it changes no firewall rule and no interface of this machine but one: a veth pair leads out of the namespace, and
one rule masquerades what comes from there, so that a build reaches package registries as this machine does.
"""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from common import run

# The pair's two ends, in a network that is for private use.
OUTER, INNER, NETWORK = "192.168.253.1", "192.168.253.2", "192.168.253.0/30"
INTERFACE = "k3dreg-test"


def apart(chroot: Path, command: list[str]) -> list[str]:
    """Return the words that run `command` in the chroot's file system, and in namespaces of its own.

    `pivot_root` and not `chroot`: what an engine executes in a container begins at the root of the engine's mount
    namespace, so below a plain chroot k3d would write this machine's /etc/hosts.  The engine has its own /run.
    """
    inside = f"umount -l /oldroot; mount -t tmpfs tmpfs /run; exec {shlex.join(command)}"
    there = f"cd {shlex.quote(str(chroot))} && mkdir -p oldroot && pivot_root . oldroot && exec chroot . sh -c"
    return ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", f"{there} {shlex.quote(inside)}"]


def connect(chroot: Path, pid: int) -> None:
    """Connect the network namespace of process `pid` with the world."""
    subprocess.run(["ip", "link", "del", INTERFACE], stderr=subprocess.DEVNULL, check=False)
    enter = ["nsenter", "--target", str(pid), "--net"]
    # Until `unshare` has made the namespace, the process is in this machine's.
    run("sh", "-c", f"until [ $(readlink /proc/{pid}/ns/net) != $(readlink /proc/self/ns/net) ]; do sleep 0.05; done")
    run("ip", "link", "add", INTERFACE, "type", "veth", "peer", "name", "outside", "netns", str(pid))
    run("ip", "address", "add", f"{OUTER}/30", "dev", INTERFACE)
    run("ip", "link", "set", INTERFACE, "up")
    run(*enter, "ip", "link", "set", "lo", "up")
    run(*enter, "ip", "address", "add", f"{INNER}/30", "dev", "outside")
    run(*enter, "ip", "link", "set", "outside", "up")
    run(*enter, "ip", "route", "add", "default", "via", OUTER)
    run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    rule = ["POSTROUTING", "-s", NETWORK, "-j", "MASQUERADE"]
    iptables = ["chroot", str(chroot), "iptables", "-t", "nat"]
    if subprocess.run([*iptables, "-C", *rule], stderr=subprocess.DEVNULL, check=False).returncode:
        run(*iptables, "-A", *rule)


def disconnect(chroot: Path) -> None:
    """Undo what `connect` changed outside the namespace.  The veth pair ends with the namespace."""
    rule = ["-D", "POSTROUTING", "-s", NETWORK, "-j", "MASQUERADE"]
    subprocess.run(["chroot", str(chroot), "iptables", "-t", "nat", *rule], stderr=subprocess.DEVNULL, check=False)
