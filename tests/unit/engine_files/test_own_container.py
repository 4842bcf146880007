from __future__ import annotations

from k3dreg.docker.image import EngineInfo, ImageStore
from k3dreg.engine_files.own_container import OwnContainer, container_id, may_read_all

OWN = "a" * 64


def test_the_own_container_is_known_by_the_files_that_the_engine_makes_for_it() -> None:
    lines = [
        "1 0 0:28 / / rw,relatime - overlay overlay rw,lowerdir=/x",
        f"2 1 8:1 /var/lib/docker/volumes/{'c' * 64}/_data /var/lib/k3dreg rw - ext4 /dev/sda1 rw",
        f"3 1 8:1 /var/lib/docker/containers/{OWN}/resolv.conf /etc/resolv.conf rw - ext4 /dev/sda1 rw",
        f"4 1 8:1 /var/lib/docker/containers/{OWN}/hostname /etc/hostname rw - ext4 /dev/sda1 rw",
    ]
    assert container_id("\n".join(lines)) == OWN
    assert container_id("\n".join(lines[:2])) == ""
    # The engine's own machine has such files elsewhere.
    assert container_id(f"4 1 8:1 /d/containers/{OWN}/hostname /d/containers/{OWN}/hostname rw - ext4 x rw") == ""
    assert container_id("") == ""


def test_which_process_may_read_every_users_files() -> None:
    assert may_read_all("Name:\tk3dreg\nCapPrm:\t00\nCapEff:\t000001ffffffffff\n")
    assert may_read_all("CapEff:\t0000000000000004\n")
    assert not may_read_all("CapPrm:\tff\nCapEff:\t00000000a80425f9\n")
    assert not may_read_all("CapEff:\t0000000000000000\nCapBnd:\tff\n")
    assert not may_read_all("")


def test_of_the_classic_store_only_what_may_be_read_is_of_use() -> None:
    containerd = EngineInfo("", "", (1, 51), ImageStore.CONTAINERD, "overlayfs", "/var/lib/docker")
    classic = EngineInfo("", "", (1, 51), ImageStore.CLASSIC, "overlay2", "/var/lib/docker")
    assert len(OwnContainer(OWN, reads_all=False).useful_directories(containerd)) == 3
    assert OwnContainer(OWN, reads_all=False).useful_directories(classic) == ()
    assert len(OwnContainer(OWN, reads_all=True).useful_directories(classic)) == 1
