"""Open directories and send them to k3dreg: the program that runs in the container of `helper_container`.

It runs as a script, without k3dreg's other modules.  Its calls block and take some milliseconds in all.  It uses
`socket` alone, because importing Twisted would take longer than that.

Every user of the machine can read the name of k3dreg's socket (`/proc/net/unix`).  Such a user may bind the name once
k3dreg has ended, or connect to it before this program does.  So each side checks the user of the peer (unix(7),
SO_PEERCRED), and shows one half of a secret that k3dreg has given to this program.  This program shows its half first,
and sends the directories last.
"""

import os
import socket
import struct
import sys
from contextlib import ExitStack

# The environment variable with the secret.  Only root and the process's own user can read a process's environment,
# while every user can read its command line (proc(5)).
SECRET = "K3DREG_HELPER_SECRET"  # noqa: S105  (its name)
# Characters of each half.
HALF = 32
# Seconds for which each call on the socket waits for k3dreg.
TIMEOUT = 10.0


def main(secret: str, name: str, user: str, *directories: str) -> None:
    """Send descriptors of the `directories` to the k3dreg that listens at `name`, see `connect`.

    The descriptors are opened with O_PATH (open(2)): they name a directory and give no right to read its files.
    Raises `OSError` for a directory that cannot be opened.
    """
    with connect(secret, name, int(user)) as connection, ExitStack() as opened:
        descriptors = []
        for directory in directories:
            descriptors.append(os.open(directory, os.O_PATH | os.O_DIRECTORY))
            opened.callback(os.close, descriptors[-1])
        socket.send_fds(connection, [b"."], descriptors)


def connect(secret: str, name: str, user: int) -> socket.socket:
    """Connect to the k3dreg that listens on the abstract UNIX socket `name` (unix(7)), to send it descriptors.

    The caller must close the connection.  Raises `PermissionError` unless the listener is a process of `user` or root
    that knows the second half of the secret.
    """
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(TIMEOUT)
        connection.connect(f"\0{name}")
        _check_listener(connection, secret, user)
    except BaseException:
        connection.close()
        raise
    return connection


def peer_user(connection: socket.socket) -> int:
    """Return the user ID that the peer had when it called `connect` or `listen` (unix(7), SO_PEERCRED)."""
    # struct ucred: the process, the user and the group.
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


def _check_listener(connection: socket.socket, secret: str, user: int) -> None:
    """Raise `PermissionError` unless the listener is a process of `user` or root that knows the secret."""
    if peer_user(connection) not in (0, user):
        raise PermissionError("another user's process listens there")
    connection.sendall(secret[:HALF].encode())
    shown = b""
    while len(shown) < HALF and (more := connection.recv(HALF - len(shown))):
        shown += more
    if shown != secret[HALF:].encode():
        raise PermissionError("what listens there does not know the secret")


if __name__ == "__main__":
    main(os.environ[SECRET], *sys.argv[1:])
