"""Open directories and send them to k3dreg: the program that runs in the container of `helper_container`.

It is run as a script, without k3dreg's other modules: five steps, one after the other, that block and take some
milliseconds.  To import Twisted would take longer than all of them, so it uses `socket` alone.

Every user of the machine sees the name of k3dreg's socket (`/proc/net/unix`), and may bind it once k3dreg is gone, or
connect to it before this program does.  So each side checks the other's user (unix(7), SO_PEERCRED), and shows one half
of a secret that both were given.  This program shows its half first, and sends the directories last.
"""

import os
import socket
import struct
import sys
from contextlib import ExitStack

# The environment variable that holds the secret: only the process's own user and root can read it (proc(5)), while
# every user can read a command line.
SECRET = "K3DREG_HELPER_SECRET"  # noqa: S105  (its name)
# Characters of each half.
HALF = 32
# Seconds for which one step waits for the other side.
TIMEOUT = 10.0


def main(secret: str, name: str, user: str, *directories: str) -> None:
    """Send descriptors of the `directories` to the k3dreg that listens on the abstract UNIX socket `name` (unix(7)).

    A descriptor only says where a path begins (O_PATH, open(2)): a process that opens a file below needs the right to.
    Nothing is sent unless the listener is `user` or root, and knows the second half of the secret.
    Raises `OSError`, and `PermissionError` for such a listener.
    """
    with socket.socket(socket.AF_UNIX) as connection, ExitStack() as opened:
        connection.settimeout(TIMEOUT)
        connection.connect(f"\0{name}")
        _check_listener(connection, secret, int(user))
        descriptors = []
        for directory in directories:
            descriptors.append(os.open(directory, os.O_PATH | os.O_DIRECTORY))
            opened.callback(os.close, descriptors[-1])
        socket.send_fds(connection, [b"."], descriptors)


def peer_user(connection: socket.socket) -> int:
    """Return the user who connected, or who listened when this side connected (unix(7), SO_PEERCRED)."""
    # struct ucred: the process, the user and the group.
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


def _check_listener(connection: socket.socket, secret: str, user: int) -> None:
    """Raise `PermissionError` unless the listener is the user, or root, and knows the secret."""
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
