"""Opens directories and hands them over to k3dreg: all that is run in the container that `handing` starts.

It is run as a script, by a Python that has hardly any of its library, so that it takes some ten milliseconds.
"""

import _socket  # all that `socket` would add is a dozen modules
import os
import sys


def main(name: str, *directories: str) -> None:
    """Send descriptors of the `directories` to whoever listens on the abstract UNIX socket `name` (unix(7)).

    They are of no use but as a place to start from (O_PATH, open(2)): who opens what is below needs the right to.
    Raises `OSError`.
    """
    descriptors = [os.open(directory, os.O_PATH | os.O_DIRECTORY) for directory in directories]
    data = b"".join(descriptor.to_bytes(4, sys.byteorder) for descriptor in descriptors)
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    connection.connect(f"\0{name}")
    connection.sendmsg([b"."], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, data)])
    connection.close()
    for descriptor in descriptors:
        os.close(descriptor)


if __name__ == "__main__":
    main(*sys.argv[1:])
