"""Opens directories and hands them over to k3dreg: all that is run in the container that `handing` starts.

It is run as a script, by a Python without site-packages, so that it takes some ten milliseconds.
"""

import os
import socket
import sys


def main(name: str, *directories: str) -> None:
    """Send descriptors of the `directories` to whoever listens on the abstract UNIX socket `name` (unix(7)).

    They are of no use but as a place to start from (O_PATH, open(2)): who opens what is below needs the right to.
    Raises `OSError`.
    """
    descriptors = [os.open(directory, os.O_PATH | os.O_DIRECTORY) for directory in directories]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(f"\0{name}")
        socket.send_fds(connection, [b"."], descriptors)


if __name__ == "__main__":
    main(*sys.argv[1:])
