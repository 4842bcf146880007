"""A state directory that 0.1.0 has left: what was pushed into it is served, listed and pushed to."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest

from tests.integration.support.daemon import program, running
from tests.integration.support.registry_client import RegistryClient, digest_of, manifest
from tests.integration.support.rig import EngineAddress

NOBODY = EngineAddress("nobody", "unix:///nonexistent/docker.sock")

CONFIG, LAYER = b'{"architecture": "amd64", "os": "linux"}', b"layer" * 1000
IMAGE = manifest(CONFIG, [LAYER])

SCHEMA = """
PRAGMA journal_mode=WAL;
CREATE TABLE blob (registry TEXT, path TEXT, digest TEXT, since REAL, size INTEGER DEFAULT 0,
                   PRIMARY KEY (registry, path, digest)) WITHOUT ROWID;
CREATE TABLE manifest (registry TEXT, path TEXT, digest TEXT, descriptor TEXT, parts TEXT, subject TEXT,
                       since REAL DEFAULT 0,
                       PRIMARY KEY (registry, path, digest)) WITHOUT ROWID;
CREATE TABLE tag (registry TEXT, path TEXT, name TEXT, digest TEXT, PRIMARY KEY (registry, path, name)) WITHOUT ROWID;
PRAGMA user_version=3;
"""


def make_state(state: Path, *, killed: bool) -> None:
    """Write what 0.1.0 has left there.  `killed`: what was pushed is still in the database's log."""
    for name in ("staging", "images", "blobs"):
        (state / name).mkdir(parents=True)
    (state / "staging" / "blob-7").write_bytes(b"part of an upload")
    (state / "images" / f"{'0' * 64}.json").write_bytes(b"{}")
    (state / "lock").touch()
    (state / "reserve").write_bytes(bytes(1 << 20))
    blobs = {digest_of(data): data for data in (CONFIG, LAYER, IMAGE)}
    for digest, data in blobs.items():
        algorithm, _, digits = digest.partition(":")
        file = state / "blobs" / algorithm / digits[:2] / digits
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    sizes = {digest: len(data) for digest, data in blobs.items()}
    session = {"boot": boot, "clean": not killed, "unverified": [], "sizes": sizes}
    (state / "session").write_text(json.dumps(session))
    work = state.with_name("work.db")
    with contextlib.closing(sqlite3.connect(work, isolation_level=None)) as database:
        database.executescript(SCHEMA)
        for data in (CONFIG, LAYER):
            values = ("", "team/app", digest_of(data), 1.7e9, len(data))
            database.execute("INSERT INTO blob VALUES (?, ?, ?, ?, ?)", values)
        descriptor = {"mediaType": json.loads(IMAGE)["mediaType"], "digest": digest_of(IMAGE), "size": len(IMAGE)}
        parts = json.dumps(sorted(map(digest_of, (CONFIG, LAYER))))
        database.execute(
            "INSERT INTO manifest VALUES (?, ?, ?, ?, ?, ?, ?)",
            ("", "team/app", digest_of(IMAGE), json.dumps(descriptor), parts, None, 1.7e9),
        )
        database.execute("INSERT INTO tag VALUES (?, ?, ?, ?)", ("", "team/app", "1", digest_of(IMAGE)))
        if killed:
            for suffix in ("", "-wal", "-shm"):
                shutil.copyfile(f"{work}{suffix}", state / f"pushed.db{suffix}")
    if not killed:
        work.rename(state / "pushed.db")


@pytest.mark.parametrize("killed", [False, True])
def test_what_was_pushed_into_0_1_0_is_there_before_and_after_a_kill(tmp_path: Path, killed: bool) -> None:
    state = tmp_path / "state"
    make_state(state, killed=killed)
    listing = [*program(), "ls", "--state-dir", str(state)]
    before = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
    assert f"team/app:1  {digest_of(IMAGE)}" in before
    with running(NOBODY, tmp_path) as daemon:
        for _ in range(2):
            client = RegistryClient(daemon.host)
            for reference in ("1", digest_of(IMAGE)):
                assert client.get(f"/v2/team/app/manifests/{reference}").body == IMAGE
            for data in (CONFIG, LAYER):
                assert client.get(f"/v2/team/app/blobs/{digest_of(data)}").body == data
            assert client.get("/v2/team/app/tags/list").json["tags"] == ["1"]
            assert client.get("/v2/_catalog").json["repositories"] == ["team/app"]
            daemon.kill()
            daemon.start()
        client = RegistryClient(daemon.host)
        pushed = client.push_image("team/app", "2", b"another layer")
        assert client.delete("/v2/team/app/manifests/1").status == 202
        daemon.kill()
        daemon.start()
        client = RegistryClient(daemon.host)
        assert client.get("/v2/team/app/manifests/2").body == pushed
        assert client.get("/v2/team/app/tags/list").json["tags"] == ["2"]
        assert client.get(f"/v2/team/app/manifests/{digest_of(IMAGE)}").body == IMAGE
        assert subprocess.run(listing, capture_output=True, text=True, check=True).stdout.count("team/app:") == 2
