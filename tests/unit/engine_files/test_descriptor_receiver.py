"""Open directories on their way from the one process to the other: real sockets, descriptors and users."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock, skipUnless

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from k3dreg.engine_files import descriptor_receiver, directory_sender
from k3dreg.engine_files.descriptor_receiver import DescriptorReceiver
from k3dreg.engine_files.directory_sender import HALF
from k3dreg.oci.errors import FilesUnreachable

USER = str(os.geteuid())
FIRST, SECOND = "a" * HALF, "b" * HALF


class ReceiverTests(TestCase):
    def setUp(self) -> None:
        self.directories = [str(Path(self.mktemp()).absolute()) for _ in range(2)]
        for directory in self.directories:
            os.mkdir(directory)
        self.receiver = DescriptorReceiver(reactor)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.receiver.close()))
        # Of a descriptor that another process sends: the pipe ends when every copy of it is closed.
        self.reading, self.sent = os.pipe()
        os.set_blocking(self.reading, False)
        self.addCleanup(lambda: os.close(self.reading))
        self.addCleanup(self.let_go)

    def let_go(self) -> None:
        sent, self.sent = self.sent, -1
        if sent >= 0:
            os.close(sent)

    def send(self) -> Deferred[None]:
        """The sender's program, beside this test."""
        receiver = self.receiver
        return deferToThread(directory_sender.main, receiver.secret, receiver.name, USER, *self.directories)

    async def check_sender_is_heard(self) -> None:
        await self.send()
        self.assertEqual(await self.receiver.received(), 2)
        handles = self.receiver.take()
        for directory, handle in zip(self.directories, handles, strict=True):
            with handle.use() as descriptor:
                self.assertEqual(os.readlink(f"/proc/self/fd/{descriptor}"), directory)
                self.assertFalse(os.get_inheritable(descriptor))
                # It is a place to start from, and no more.
                with self.assertRaises(OSError):
                    os.fchmod(descriptor, 0o777)
            handle.close()

    async def check_what_was_sent_is_closed(self) -> None:
        self.let_go()
        for _ in range(500):
            with contextlib.suppress(BlockingIOError):
                self.assertEqual(os.read(self.reading, 1), b"")
                return
            await deferLater(reactor, 0.01)
        self.fail("a descriptor was kept")

    def stranger(self, *says: bytes, copies: int = 2) -> Deferred[bytes]:
        """Connect as a process that has found the name out; return what it is shown.

        Copies of a descriptor go with each piece that it says.
        """

        def run() -> bytes:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(10)
                connection.connect(f"\0{self.receiver.name}")
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    for data in says:
                        socket.send_fds(connection, [data], [self.sent] * copies)
                    return connection.recv(1000)
            return b""

        return deferToThread(run)

    async def test_the_directories_of_the_sender_come_in_order(self) -> None:
        await self.check_sender_is_heard()

    async def test_a_process_that_does_not_know_the_secret_is_shown_nothing_and_what_it_sends_is_closed(self) -> None:
        half = self.receiver.secret[:HALF].encode()
        for says in ((b".",), (b"0" * HALF,), (b"0" * 1000, b"."), (half[:5], half[5:]), (half,)):
            self.assertEqual(await self.stranger(*says), b"")
        await self.check_what_was_sent_is_closed()
        await self.check_sender_is_heard()

    async def test_a_process_that_shows_a_wrong_half_of_the_secret_is_shown_nothing(self) -> None:
        half = self.receiver.secret[:HALF].encode()
        for says in ((b"0" * HALF,), (b"0" * 5, half[5:]), (half + b"0",), (self.receiver.secret.encode(),)):
            self.assertEqual(await self.stranger(*says, copies=0), b"")
        await self.check_sender_is_heard()

    async def test_a_process_that_says_nothing_is_not_waited_for_for_long(self) -> None:
        with mock.patch.object(descriptor_receiver, "ANSWER_WITHIN", 0.05):
            self.assertEqual(await self.stranger(), b"")
        await self.check_sender_is_heard()

    async def test_another_user_is_not_listened_to_even_with_the_secret(self) -> None:
        with mock.patch.object(descriptor_receiver, "peer_user", lambda _: os.geteuid() + 1234):
            with self.assertRaises(OSError):
                await self.send()
        await self.check_sender_is_heard()

    async def test_a_sender_that_ends_before_the_directories_came_has_failed(self) -> None:
        with mock.patch("os.open", side_effect=FileNotFoundError), self.assertRaises(OSError):
            await self.send()
        with self.assertRaisesRegex(FilesUnreachable, "passed nothing"):
            await self.receiver.received()

    async def test_what_comes_twice_is_closed(self) -> None:
        await self.send()
        self.directories.reverse()
        await self.send()
        self.directories.reverse()
        self.assertEqual(await self.receiver.received(), 2)
        first, second = self.receiver.take()
        with first.use() as descriptor:
            self.assertEqual(os.readlink(f"/proc/self/fd/{descriptor}"), self.directories[0])
        first.close()
        second.close()

    async def test_a_close_ends_connections_and_closes_what_was_not_taken(self) -> None:
        await self.send()
        await self.receiver.received()
        while self.receiver.connections:  # the sender's
            await deferLater(reactor, 0.01)
        waiting = self.stranger()
        while not self.receiver.connections:
            await deferLater(reactor, 0.01)
        await self.receiver.close()
        self.assertEqual(await waiting, b"")
        with self.assertRaises(ConnectionRefusedError):
            await self.stranger()

    @skipUnless(os.geteuid() == 0, "only root can be somebody else")
    async def test_a_process_of_another_user_that_connects_first_is_shown_nothing(self) -> None:
        with as_nobody(CONNECT, self.receiver.name, self.receiver.secret[:HALF]) as process:
            told, _ = await deferToThread(process.communicate)
        self.assertEqual(told, "received b''\n")
        await self.check_sender_is_heard()


def listen(says: str, main: Callable[[str], None]) -> tuple[tuple[bytes, list[int]], str]:
    """What a process gets that listens at a name and `says` something, and what `main` fails with."""
    name, failures = f"k3dreg-test-{os.urandom(8).hex()}", [""]

    def run() -> None:
        try:
            main(name)
        except OSError as error:
            failures.append(str(error))

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"\0{name}")
        listening.listen()
        thread = threading.Thread(target=run)
        thread.start()
        connection, _ = listening.accept()
        with connection:
            connection.settimeout(10)
            shown, found, _, _ = socket.recv_fds(connection, 1000, 9)
            connection.sendall(says.encode())
            connection.shutdown(socket.SHUT_WR)
            more, others, _, _ = socket.recv_fds(connection, 1000, 9)
        thread.join()
    return (shown + more, [*found, *others]), failures[-1]


def test_nothing_is_sent_to_a_process_that_has_bound_the_name() -> None:
    # The second says again what it was shown.
    for says in ("c" * HALF, FIRST, ""):
        shown, error = listen(says, lambda name: directory_sender.main(FIRST + SECOND, name, USER, "/"))
        assert (shown, error) == ((FIRST.encode(), []), "what listens there does not know the secret")


def test_it_is_sent_to_the_one_that_knows_the_secret() -> None:
    (data, descriptors), error = listen(SECOND, lambda name: directory_sender.main(FIRST + SECOND, name, USER, "/"))
    assert (data, len(descriptors), error) == (f"{FIRST}.".encode(), 1, "")
    os.close(descriptors[0])


def test_a_process_that_has_bound_the_name_and_says_nothing_does_not_hold_the_sender_up() -> None:
    name = f"k3dreg-test-{os.urandom(8).hex()}"
    with socket.socket(socket.AF_UNIX) as listening, mock.patch.object(directory_sender, "TIMEOUT", 0.05):
        listening.bind(f"\0{name}")
        listening.listen()
        with pytest.raises(TimeoutError):
            directory_sender.main(FIRST + SECOND, name, USER, "/")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_listener_of_another_user_is_shown_nothing() -> None:
    name = f"k3dreg-test-{os.urandom(8).hex()}"
    with as_nobody(LISTEN, name) as listener:
        with pytest.raises(PermissionError, match="another user's process"):
            directory_sender.main(FIRST + SECOND, name, "0", "/")
        assert listener.communicate()[0] == "received b''\n"


# What a process of another user's does with the name as its argument.
LISTEN = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
with socket.socket(socket.AF_UNIX) as listening:
    listening.bind("\\0" + sys.argv[1])
    listening.listen()
    print("ready", flush=True)
    connection, _ = listening.accept()
    print("received", connection.recv(1000))
"""
CONNECT = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect("\\0" + sys.argv[1])
    print("ready", flush=True)
    try:
        connection.sendall(sys.argv[2].encode())
        print("received", connection.recv(1000))
    except (BrokenPipeError, ConnectionResetError):
        print("received b''")
"""


@contextlib.contextmanager
def as_nobody(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has become another user's, once it is ready."""
    command = [sys.executable, "-c", script, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
