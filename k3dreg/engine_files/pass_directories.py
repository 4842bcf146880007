"""Open directories and hand them over to k3dreg: all that runs in the container that `directory_passing` starts.

It is run as a script, by a Python that has hardly any of its library, so that it takes some ten milliseconds.

Any user of the machine sees the name of the socket (`/proc/net/unix`), and may bind it once k3dreg is gone, or connect
to it before the container does.  So each side looks at the other's user (unix(7), SO_PEERCRED), and shows one half of a
secret that both were given.  The container shows its half first, and the directories last.
"""

import _socket  # all that `socket` would add is a dozen modules
import os
import sys

# The environment variable that holds the secret: only the process's own user and root can read it (proc(5)), while
# every user can read a command line.
SECRET = "K3DREG_HAND_OVER"  # noqa: S105  (its name)
# Characters of each half.
HALF = 32


def main(secret: str, name: str, user: str, *directories: str) -> None:
    """Send descriptors of the `directories` to the k3dreg that listens on the abstract UNIX socket `name` (unix(7)).

    They are of no use but as a place to start from (O_PATH, open(2)): who opens what is below needs the right to.
    Nothing is sent unless the listener is `user` or root, and knows the second half of the secret.
    Raises `OSError`, and `PermissionError` for such a listener.
    """
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    descriptors = []
    try:
        connection.connect(f"\0{name}")
        _check(connection, secret, int(user))
        for directory in directories:
            descriptors.append(os.open(directory, os.O_PATH | os.O_DIRECTORY))  # noqa: PERF401  (closed if one fails)
        data = b"".join(descriptor.to_bytes(4, sys.byteorder) for descriptor in descriptors)
        connection.sendmsg([b"."], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, data)])
    finally:
        connection.close()
        for descriptor in descriptors:
            os.close(descriptor)


def _check(connection: _socket.socket, secret: str, user: int) -> None:
    """Raise `PermissionError` unless the listener is the user, or root, and knows the secret."""
    # struct ucred: the process, the user and the group, as integers of four bytes.
    listener = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
    if int.from_bytes(listener[4:8], sys.byteorder) not in (0, user):
        raise PermissionError("another user's process listens there")
    connection.sendall(secret[:HALF].encode())
    shown = b""
    while len(shown) < HALF and (more := connection.recv(HALF - len(shown))):
        shown += more
    if shown != secret[HALF:].encode():
        raise PermissionError("what listens there does not know the secret")


if __name__ == "__main__":
    main(os.environ[SECRET], *sys.argv[1:])
