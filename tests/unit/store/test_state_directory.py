"""Who may use a state directory, and what is believed of it after a stop of one kind or another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

from pytest import MonkeyPatch
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

import k3dreg
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import ContentGone, StoreError, UsageError
from k3dreg.store.blob_files import BlobFiles
from k3dreg.store.blob_store import open_store
from k3dreg.store.state_directory import Session, StateDirectory
from tests.fakes.consumers import Reader
from tests.fakes.stores import LIMIT, StoreTestCase
from tests.fakes.workers import InlineWorkers


class LockTests(StoreTestCase):
    def test_a_second_daemon_is_told_that_the_directory_is_in_use(self) -> None:
        second = Deferred.fromCoroutine(open_store(self.root, InlineWorkers(), LIMIT, Clock()))
        self.assertIn("used by another k3dreg", str(self.failureResultOf(second, UsageError).value))

    def test_another_process_is_told_so_too_and_a_closed_directory_is_free(self) -> None:
        code = (
            "import sys; from pathlib import Path; from k3dreg.store.state_directory import StateDirectory;"
            "StateDirectory(Path(sys.argv[1])).close()"
        )
        command = [sys.executable, "-c", code, str(self.root.resolve())]
        environment = {**os.environ, "PYTHONPATH": str(Path(k3dreg.__file__).parent.parent)}
        refused = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        self.assertIn("StateInUse", refused.stderr)
        self.result(self.store.close())
        self.assertEqual(subprocess.run(command, env=environment, check=False).returncode, 0)

    def test_a_directory_whose_blobs_cannot_be_read_is_free_again(self) -> None:
        self.result(self.store.close())

        def fail(files: BlobFiles) -> None:
            raise StoreError("the disk is broken")

        with MonkeyPatch.context() as patch:
            patch.setattr(BlobFiles, "start", fail)
            opening = Deferred.fromCoroutine(open_store(self.root, InlineWorkers(), LIMIT, Clock()))
            failure = self.failureResultOf(opening, StoreError)
        self.store = self.open()
        del failure  # until here: with it the directory's object would end, and its lock, too

    def test_a_directory_that_cannot_be_made_is_a_usage_error(self) -> None:
        file = Path(self.mktemp())
        file.touch()
        opening = Deferred.fromCoroutine(open_store(file / "state", InlineWorkers(), LIMIT, Clock()))
        self.failureResultOf(opening, UsageError)

    def test_the_records_of_images_of_an_earlier_version_are_removed(self) -> None:
        (self.root / "images").mkdir()
        (self.root / "images" / "record.json").touch()
        self.reopen()
        self.assertFalse((self.root / "images").exists())


class StopTests(StoreTestCase):
    """`session` in the state directory is what tells the stops apart."""

    def setUp(self) -> None:
        super().setUp()
        self.digest = self.put(b"content")

    def session(self) -> dict[str, Any]:
        return cast("dict[str, Any]", json.loads((self.root / "session").read_bytes()))

    def damage(self) -> None:
        """As a power failure may leave a file: the right size, and zeros."""
        self.path(self.digest).write_bytes(bytes(7))

    def kill(self, *, reboot: bool) -> None:
        """The daemon goes without a word, perhaps with the machine."""
        self.store._when_closed()
        if reboot:
            (self.root / "session").write_bytes(json.dumps({**self.session(), "boot": "another"}).encode())

    def is_believed_unseen(self) -> bool:
        """Whether damaged bytes would be sent."""
        self.damage()
        reader = Reader()
        sending = Deferred.fromCoroutine(cast(Any, self.blob(self.digest).send(reader, 0, 7)))
        if reader.received:
            self.successResultOf(sending)
            return True
        self.failureResultOf(sending, ContentGone)
        self.assertEqual((self.store.has(self.digest), self.path(self.digest).exists()), (False, False))
        return False

    def test_after_a_clean_stop_content_is_believed(self) -> None:
        self.reopen()
        self.assertTrue(self.is_believed_unseen())

    def test_after_a_kill_alone_content_is_believed_because_the_kernel_still_has_it(self) -> None:
        self.kill(reboot=False)
        self.store = self.open()
        self.assertTrue(self.is_believed_unseen())

    def test_after_a_stop_of_the_machine_not_a_byte_is_served_before_it_is_verified(self) -> None:
        self.kill(reboot=True)
        self.store = self.open()
        self.assertFalse(self.is_believed_unseen())

    def test_after_a_stop_of_the_machine_good_content_is_served(self) -> None:
        self.kill(reboot=True)
        self.store = self.open()
        self.assertEqual(self.result(self.blob(self.digest).read()), b"content")
        self.assertTrue(self.is_believed_unseen())  # verified once, not each time

    def test_a_clean_stop_and_then_a_reboot_is_clean(self) -> None:
        self.result(self.store.close())
        (self.root / "session").write_bytes(json.dumps({**self.session(), "boot": "another"}).encode())
        self.store = self.open()
        self.assertTrue(self.is_believed_unseen())

    def test_what_was_not_verified_is_still_doubted_after_clean_stops_and_kills(self) -> None:
        self.kill(reboot=True)
        self.store = self.open()
        self.reopen()
        self.kill(reboot=False)
        self.store = self.open()
        self.assertFalse(self.is_believed_unseen())

    def test_a_session_file_that_is_lost_or_damaged_counts_as_a_stop_of_the_machine(self) -> None:
        for damaged in (None, b"", b"{}", b'{"boot": "x", "clean": true, "unverified": [7]}'):
            self.store._when_closed()
            if damaged is None:
                (self.root / "session").unlink()
            else:
                (self.root / "session").write_bytes(damaged)
            self.store = self.open()
            self.assertFalse(self.is_believed_unseen())
            self.put(b"content")

    def test_a_commit_of_doubted_content_replaces_it(self) -> None:
        self.damage()
        self.kill(reboot=True)
        self.store = self.open()
        self.put(b"content")
        self.assertEqual(self.result(self.blob(self.digest).read()), b"content")

    def make_unsyncable(self) -> None:
        """Nobody can open it: a stop that tries to sync it finds that it cannot."""
        self.path(self.digest).unlink()
        self.path(self.digest).symlink_to(self.digest.hex)

    def test_a_stop_is_not_clean_when_what_this_session_wrote_cannot_be_synced(self) -> None:
        self.make_unsyncable()
        self.result(self.store.close())
        self.assertFalse(self.session()["clean"])

    def test_what_an_earlier_session_synced_is_not_synced_again(self) -> None:
        self.reopen()
        self.make_unsyncable()
        self.result(self.store.close())
        self.assertTrue(self.session()["clean"])

    def test_what_a_killed_session_wrote_is_synced_by_the_next_that_stops(self) -> None:
        self.kill(reboot=False)
        self.store = self.open()
        self.make_unsyncable()
        self.result(self.store.close())
        self.assertFalse(self.session()["clean"])

    def test_durable_content_is_synced_when_it_is_committed(self) -> None:
        writer = self.store.writer(durable=True)
        writer.write(b"content")  # cached already, but not durable yet
        writer.commit()
        self.make_unsyncable()
        self.result(self.store.close())
        self.assertTrue(self.session()["clean"])

    def test_sessions_are_recorded_as_they_are(self) -> None:
        session = Session("boot", clean=True, unverified=frozenset({Digest.of(b"x")}))
        self.assertEqual(Session.from_json(session.to_json()), session)
        # As 0.1.0 recorded it.
        older = json.dumps({**json.loads(session.to_json()), "sizes": {str(Digest.of(b"x")): 1}}).encode()
        self.assertEqual(Session.from_json(older), session)

    def test_without_a_boot_id_every_unclean_stop_counts_as_the_machines(self) -> None:
        self.kill(reboot=False)
        for held in ((), (self.digest,)):
            state = StateDirectory(self.root, boot_id_file=self.root / "none")
            self.assertEqual(state.begin(held), (frozenset(held), frozenset()))
            state.close()
