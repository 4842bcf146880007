"""`k3dreg ls`, `k3dreg gc` and `k3dreg rm`, as processes, on what a daemon left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from attrs import evolve

from k3dreg import cli
from k3dreg.commands.housekeeping import listing
from k3dreg.oci import media_types
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.reference import Repository
from k3dreg.store import pushed_tables
from k3dreg.store.interfaces import PushedImage, PushedManifest
from k3dreg.store.state_directory import StateDirectory
from tests.fakes.databases import open_database

APP = Repository(None, "app")


def run(
    *arguments: str, stdout: int = subprocess.PIPE, environment: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    """Return the status, what was printed unless it went to the descriptor `stdout`, and the complaint."""
    done = subprocess.run(
        [sys.executable, "-c", "from k3dreg.cli import main; main()", *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
        env={
            **os.environ,
            "DOCKER_HOST": "unix:///nonexistent/docker.sock",
            **(environment or {}),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
    )
    return done.returncode, done.stdout or "", done.stderr


def manifest(data: bytes, *parts: bytes) -> PushedManifest:
    descriptor = Descriptor(media_types.OCI_MANIFEST, Digest.of(data), len(data))
    return PushedManifest(descriptor, frozenset(map(Digest.of, parts)))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Two tagged manifests, one without a tag, and a blob that none of them has."""
    kept = [b"layer", b"orphan", b"one", b"two", b"untagged"]
    for data in kept:
        path = tmp_path / "blobs" / "sha256" / Digest.of(data).hex[:2] / Digest.of(data).hex
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    database = open_database(tmp_path)
    database.transact(
        [
            *(pushed_tables.add_blob(APP, Digest.of(data), len(data), 0.0) for data in kept[:2]),
            *(pushed_tables.add_manifest(APP, manifest(data, b"layer"), 0.0) for data in kept[2:]),
            *(
                pushed_tables.add_tag(APP, tag, Digest.of(data), 0.0)
                for tag, data in (("b", b"one"), ("a", b"one"), ("c", b"two"))
            ),
        ]
    )
    database.close()
    return tmp_path


def held(state: Path) -> set[bytes]:
    return {path.read_bytes() for path in (state / "blobs").rglob("*") if path.is_file()}


def test_ls_lists_tags_and_what_has_none_also_while_a_daemon_runs(state: Path) -> None:
    directory = StateDirectory(state)
    status, output, _ = run("ls", "--state-dir", str(state))
    directory.close()
    names = [line.split()[0] for line in output.splitlines()]
    assert (status, names) == (0, ["NAME", "app:<none>", "app:a", "app:b", "app:c"])
    assert [line.split()[1] for line in output.splitlines()[1:2]] == [str(Digest.of(b"untagged"))]


def test_gc_removes_what_nobody_refers_to(state: Path) -> None:
    assert run("gc", "--state-dir", str(state))[:2] == (0, "removed 1 blob and 0 manifests: 1 file, 6 B\n")
    assert held(state) == {b"layer", b"one", b"two", b"untagged"}
    assert run("gc", "--state-dir", str(state), "--untagged")[:2] == (
        0,
        "removed 0 blobs and 1 manifest: 1 file, 8 B\n",
    )
    assert held(state) == {b"layer", b"one", b"two"}
    assert run("gc", "--state-dir", str(state), "--untagged")[:2] == (
        0,
        "removed 0 blobs and 0 manifests: 0 files, 0 B\n",
    )


@pytest.mark.parametrize("command", [["ls"], ["gc", "--grace", "0"], ["rm", "app:a", "app:c"]])
def test_a_reader_that_leaves_ends_nothing(state: Path, command: list[str]) -> None:
    """As with `k3dreg gc | true`."""
    leaving, output = os.pipe()
    os.close(leaving)
    try:
        status, _, complaint = run(command[0], "--state-dir", str(state), *command[1:], stdout=output)
    finally:
        os.close(output)
    assert (status, complaint) == (0, "")
    assert (b"orphan" in held(state)) == (command == ["ls"])


def test_gc_leaves_a_directory_alone_that_a_daemon_uses(state: Path) -> None:
    directory = StateDirectory(state)
    status, _, complaint = run("gc", "--state-dir", str(state))
    directory.close()
    assert status == 1
    assert "a running daemon collects by itself" in complaint
    assert b"orphan" in held(state)


def test_gc_applies_rules_and_tells_before_what_it_would_do_also_while_a_daemon_runs(state: Path) -> None:
    dry = ["gc", "--state-dir", str(state), "--retain", "c=1", "--retain", "app=1", "--dry-run"]
    directory = StateDirectory(state)
    status, output, complaint = run(*dry)
    directory.close()
    assert complaint == "k3dreg: Docker does not answer: what nodes held when they were asked last counts\n"
    lines = [
        "would remove app:a: --retain app=1",
        "would remove 1 tag, 1 blob and 0 manifests: 1 file, 6 B",
    ]
    assert (status, output.splitlines()) == (0, lines)
    assert held(state) == {b"layer", b"orphan", b"one", b"two", b"untagged"}
    assert run(*dry[:-1]) == (0, output.replace("would remove", "removed"), complaint)
    assert held(state) == {b"layer", b"one", b"two", b"untagged"}
    # The daemon's rules, from the environment.
    rules = {"K3DREG_RETAIN": "nothing=1 ?=1"}
    assert run("gc", "--state-dir", str(state), environment=rules)[1].splitlines() == [
        "removed app:b: --retain ?=1",
        "removed 1 tag, 0 blobs and 1 manifest: 1 file, 3 B",
    ]
    assert held(state) == {b"layer", b"two", b"untagged"}


def test_rm_removes_tags_with_what_only_they_lead_to_and_manifests_with_their_tags(state: Path) -> None:
    status, output, _ = run("rm", "--state-dir", str(state), "app:a", "localhost:5005/app:c", "app:nothing")
    assert status == 1
    assert output.splitlines() == [
        "removed app:a",
        "removed localhost:5005/app:c",
        "app:nothing was not pushed",
        "removed 1 blob and 0 manifests: 2 files, 9 B",
    ]
    assert held(state) == {b"layer", b"one", b"untagged"}
    assert run("rm", "--state-dir", str(state), f"app@{Digest.of(b'one')}")[0] == 0
    assert [line.split()[0] for line in run("ls", "--state-dir", str(state))[1].splitlines()] == ["NAME", "app:<none>"]


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["rm"], 2),
        (["rm", "app"], 2),
        (["rm", "APP:1"], 2),
        (["rm", "--state-dir", "/nonexistent", "app:1"], 1),
        (["gc", "--retain", "app"], 2),
        (["gc", "--nonsense"], 2),
        (["gc", "--grace", "soon"], 2),
        (["gc", "--grace", "-1"], 2),
        (["gc", "--grace", "nan"], 2),
        (["ls", "--state-dir", "/nonexistent"], 1),
        (["ls", "--state-dir", "/proc/version"], 1),
    ],
)
def test_what_cannot_be_done_is_said(
    arguments: list[str], status: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process: none of these needs the reactor, and a new process costs a second of imports."""
    monkeypatch.setattr(sys, "argv", ["k3dreg", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == status
    assert capsys.readouterr().err.startswith("k3dreg: ")


def test_rm_says_that_no_server_answers() -> None:
    status, _, complaint = run("rm", "--server", "http://127.0.0.1:1", "app:1")
    assert status == 1
    assert complaint.startswith("k3dreg: ")
    assert "Traceback" not in complaint


def test_a_size_is_that_of_all_parts_and_a_time_is_told_where_it_is_known() -> None:
    sizes = {Digest.of(b"layer"): 1_500_000, Digest.of(b"image"): 400_000, Digest.of(b"index"): 100_000}
    image = frozenset([Digest.of(b"image"), Digest.of(b"layer")])
    images = [
        PushedImage(APP, "one", Digest.of(b"image"), 1_700_000_000.0, image, 1_700_100_000.0),
        PushedImage(APP, "all", Digest.of(b"index"), 0.0, image | {Digest.of(b"index")}),
    ]
    titles, everything, one = listing(images, lambda digest: sizes[digest])
    assert titles.split() == ["NAME", "DIGEST", "SIZE", "PUSHED", "PULLED"]
    assert everything.split() == ["app:all", str(Digest.of(b"index")), "2.0", "MB", "-", "-"]
    days = [time.strftime("%Y-%m-%d", time.localtime(at)) for at in (1_700_000_000.0, 1_700_100_000.0)]
    assert (one.split()[2:4], one.split()[4::2]) == (["1.9", "MB"], days)
    _, _, one = listing(images, lambda digest: sizes[digest], 80, 1_700_200_000.0)
    assert one.split("MB")[1].split() == ["2", "d", "1", "d"]
    assert listing([], lambda digest: 0) == ["nothing was pushed"]


def images_of(*repositories: str) -> list[PushedImage]:
    """An image in each, tagged `1`."""
    digest = Digest.of(b"image")
    return [PushedImage(Repository(None, each), "1", digest, 0.0, frozenset([digest])) for each in repositories]


def test_one_long_name_moves_no_other_line() -> None:
    long = "team/" + "x" * 150
    _, app, moved = listing(images_of("app", long), lambda digest: 5)
    assert moved.startswith(f"{long}:1  {Digest.of(b'image')}  ")
    assert app.index(" sha256:") < 50


@pytest.mark.parametrize("width", [80, 60])
def test_a_line_fits_a_terminal_unless_its_name_is_long(width: int) -> None:
    images = [evolve(image, since=1.0, pulled=1.0) for image in images_of("app", "team/" + "x" * 150, "group/prj")]
    lines = listing(images, lambda digest: 10**9, width, 59 * 60.0)
    assert [len(line) <= width for line in lines] == [True, True, True, False]
    assert lines[1].split()[1] == str(Digest.of(b"image"))[:19]
