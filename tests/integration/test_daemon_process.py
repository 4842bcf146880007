"""The daemon as a process, without an engine: what it says, where it listens, how it ends."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO
from unittest.mock import ANY

import pytest

from tests.fakes.certificates import Authority

# Seconds.  A daemon starts in well under one; a loaded machine may need more.
MAX_WAIT = 30


# The process imports what this one does, and gets none of its settings.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("K3DREG_")}
ENVIRONMENT = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

K3DREG = (sys.executable, "-c", "from k3dreg.cli import main; main()", "--state-dir", "state")


class Process:
    """`k3dreg` with `arguments`, its state below the current directory, and an engine that is not there."""

    def __init__(
        self,
        *arguments: str,
        command: Sequence[str] = K3DREG,
        terminal: int | None = None,
        passing: Sequence[int] = (),
        **environment: str,
    ) -> None:
        """`terminal` is one that will be its own, as if it had been started there; `passing` are open files."""

        def take_terminal() -> None:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under `nohup` it the new process would ignore it, too
            if terminal is not None:
                os.setsid()
                fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [*command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**ENVIRONMENT, "DOCKER_HOST": f"unix://{Path.cwd()}/no.sock", **environment},
            preexec_fn=take_terminal,
            pass_fds=[*passing, *([] if terminal is None else [terminal])],
        )
        assert self.process.stdout is not None
        self.output: IO[str] = self.process.stdout
        self.lines: list[str] = []

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first line from here on that has `pattern`.  The process's end ends the waiting."""
        for line in self.output:
            self.lines.append(line)
            if match := re.search(pattern, line):
                return match
        raise AssertionError(f"{pattern!r} is not in:\n{''.join(self.lines)}")

    def port(self) -> int:
        return int(self.wait_for(r"listening on 127\.0\.0\.1:(\d+)")[1])

    def end(self) -> int:
        """The exit status of a process that ends by itself."""
        self.lines += self.output.readlines()
        return self.process.wait(MAX_WAIT)


@pytest.fixture
def started() -> Iterator[list[Process]]:
    processes: list[Process] = []
    yield processes
    for each in processes:
        each.process.kill()
        each.process.wait()
        each.output.close()


def start(
    started: list[Process],
    *arguments: str,
    command: Sequence[str] = K3DREG,
    terminal: int | None = None,
    passing: Sequence[int] = (),
    **environment: str,
) -> Process:
    started.append(Process(*arguments, command=command, terminal=terminal, passing=passing, **environment))
    return started[-1]


ANY_PORT = ("--listen", "tcp:0:interface=127.0.0.1")


def test_it_starts_without_docker_says_so_and_says_where_it_listens(started: list[Process]) -> None:
    daemon = start(started, *ANY_PORT)
    port = daemon.port()
    daemon.wait_for("no engine at unix://.*no.sock")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=MAX_WAIT)
    connection.request("GET", "/v2/")
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b"{}")
    connection.request("GET", "/v2/library/nginx/manifests/1?ns=docker.io")
    answer = connection.getresponse()
    assert answer.status == 503
    (error,) = json.loads(answer.read())["errors"]
    assert "socket" in error["message"]
    daemon.wait_for("GET docker.io/library/nginx:1 503")


def test_it_ends_soon_and_well_when_it_is_told_to(started: list[Process]) -> None:
    daemon = start(started, *ANY_PORT)
    daemon.port()
    began = time.monotonic()
    daemon.process.send_signal(signal.SIGTERM)
    # twistd closes everything, and then ends by the signal it was sent.
    assert daemon.end() in (0, -signal.SIGTERM)
    assert time.monotonic() - began < 10
    assert "Traceback" not in "".join(daemon.lines)


def test_what_cannot_be_closed_keeps_nothing_else_from_being_closed(started: list[Process]) -> None:
    script = (
        "from k3dreg.cli import main; from k3dreg.registry.push import Uploads; "
        "Uploads.shutdown = lambda self: 1 / 0; main()"
    )
    daemon = start(started, *ANY_PORT, command=(sys.executable, "-c", script, "--state-dir", "state"))
    daemon.port()
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.end() in (0, -signal.SIGTERM)
    assert "ZeroDivisionError" in "".join(daemon.lines)
    # The store is closed after the uploads are; then it records that.
    assert json.loads(Path("state", "session").read_text())["clean"] is True


def test_it_is_the_same_as_twistd_k3dreg() -> None:
    command = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "k3dreg", "--help"]
    told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=MAX_WAIT, env=ENVIRONMENT)
    assert "--cache-size" in told.stdout


def test_a_port_that_is_taken_ends_it_with_a_line_that_says_so(started: list[Process]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        daemon = start(started, "--listen", f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1")
        assert daemon.end() == 1
    (line,) = (line for line in daemon.lines if "cannot start" in line)
    assert "Address already in use" in line


def test_a_state_directory_in_use_ends_it_with_a_line_that_says_so(started: list[Process]) -> None:
    start(started, *ANY_PORT).port()
    second = start(started, *ANY_PORT)
    assert second.end() == 1
    (line,) = (line for line in second.lines if "cannot start" in line)
    assert "Traceback" not in "".join(second.lines)
    assert "another" in line


def test_a_wrong_option_is_a_usage_line_and_status_2(started: list[Process]) -> None:
    daemon = start(started, "--cache-size", "much")
    assert daemon.end() == 2
    assert "Usage: k3dreg" in "".join(daemon.lines)


def test_the_official_images_address_is_where_it_listens(started: list[Process]) -> None:
    daemon = start(started, REGISTRY_HTTP_ADDR="localhost:0")
    daemon.port()


def test_log_level_hides_what_is_less_important(started: list[Process]) -> None:
    daemon = start(started, *ANY_PORT, "--log-level", "warn")
    daemon.wait_for("no engine at")
    assert "listening on 127.0.0.1" not in "".join(daemon.lines)


OPEN_DOOR = "every client that reaches"
USER = "user:$2y$05$guRC2rrCk5tNx1tymP1Cie4c1lwXMyt6DhXxitb5sHR1dUtmsLp42\n"


def test_a_door_that_is_open_to_the_network_is_warned_of_once(started: list[Process]) -> None:
    daemon = start(started, "--listen", "tcp:0", "--listen", "tcp:0", *ANY_PORT, "--listen", "unix:socket")
    daemon.wait_for("no engine at")
    (line,) = (line for line in daemon.lines if OPEN_DOOR in line)
    exposed = re.findall(r"listening on (0\.0\.0\.0:\d+)", "".join(daemon.lines))
    assert f"{OPEN_DOOR} {' and '.join(exposed)} can" in line
    assert "--htpasswd" in line


def test_a_door_with_a_lock_or_to_this_machine_alone_is_not(started: list[Process]) -> None:
    Path("htpasswd").write_text(USER)
    locked = start(started, "--listen", "tcp:0", "--htpasswd", "htpasswd")
    here = start(started, *ANY_PORT, "--listen", "unix:socket", "--state-dir", "another")
    for daemon in (locked, here):
        daemon.wait_for("no engine at")
        assert OPEN_DOOR not in "".join(daemon.lines)


def test_a_password_file_that_cannot_be_used_is_a_usage_line_that_shows_nothing_of_it(started: list[Process]) -> None:
    Path("htpasswd").write_text(USER + "other:my-password\n")
    daemon = start(started, *ANY_PORT, "--htpasswd", "htpasswd")
    assert daemon.end() == 2
    assert "--htpasswd htpasswd: line 2" in "".join(daemon.lines)
    assert "my-password" not in "".join(daemon.lines)


def test_on_sighup_it_reads_its_settings_again(started: list[Process]) -> None:
    settings = Path("k3dreg.toml")
    settings.write_text("")
    daemon = start(started, *ANY_PORT, "--config", "k3dreg.toml")
    port = daemon.port()
    settings.write_text('log-level = "warn"\nlisten = ["tcp:1"]\nreader = false')
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for("settings read again: changed log-level")
    daemon.wait_for("to apply these changed settings: reader$")  # where it listens is said on the command line
    settings.write_text("no = 1")
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for("the settings were not changed: .* there is no option 'no'")
    settings.write_text("reader = false")
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for("to apply these changed settings: reader$")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=MAX_WAIT)
    connection.request("GET", "/v2/")
    assert connection.getresponse().status == 200


def test_on_sighup_it_lets_in_whom_its_settings_let_in(started: list[Process]) -> None:
    settings = Path("k3dreg.toml")
    settings.write_text("")
    Path("htpasswd").write_text(USER)
    daemon = start(started, "--listen", "tcp:0", "--config", "k3dreg.toml")
    port = int(daemon.wait_for(r"listening on .*:(\d+)$")[1])
    daemon.wait_for(OPEN_DOOR)
    for text, expected in (
        ('htpasswd = "htpasswd"', {"GET": 401, "POST": 401}),
        ('htpasswd = "htpasswd"\nanonymous-pull = true', {"GET": 404, "POST": 401}),
        ("", {"GET": 404, "POST": 202}),
    ):
        settings.write_text(text)
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("settings read again: changed")
        if not text:
            daemon.wait_for(OPEN_DOOR)
        for method, path in (("GET", "/v2/x/tags/list"), ("POST", "/v2/x/blobs/uploads/")):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=MAX_WAIT)
            connection.request(method, path)
            assert connection.getresponse().status == expected[method], (text, method)
            connection.close()


def test_so_does_twistd(started: list[Process]) -> None:
    Path("k3dreg.toml").write_text("")
    command = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "--nodaemon", "--pidfile="]
    daemon = start(started, *ANY_PORT, "--config", "k3dreg.toml", "--state-dir", "state", command=[*command, "k3dreg"])
    daemon.port()
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for("settings read again: nothing has changed")


def test_it_ends_with_the_terminal_it_was_started_from(started: list[Process]) -> None:
    master, slave = os.openpty()
    daemon = start(started, *ANY_PORT, terminal=slave)
    os.close(slave)
    daemon.port()
    os.kill(daemon.process.pid, signal.SIGHUP)  # as ever: the terminal is there
    daemon.wait_for("settings read again")
    os.close(master)
    daemon.wait_for("Main loop terminated")
    daemon.end()


def ask(connection: http.client.HTTPConnection, path: str = "/v2/") -> tuple[int, bytes]:
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_it_listens_on_ipv6_and_takes_ipv4_there_too(started: list[Process]) -> None:
    try:
        socket.create_server(("::", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    daemon = start(started, REGISTRY_HTTP_ADDR="[::]:0")
    port = int(daemon.wait_for(r"listening on \[::\]:(\d+)")[1])
    assert ask(http.client.HTTPConnection("::1", port, timeout=MAX_WAIT), "/v2/nothing") == (404, ANY)
    daemon.wait_for("::1 GET '/v2/nothing' 404")
    assert ask(http.client.HTTPConnection("127.0.0.1", port, timeout=MAX_WAIT), "/v2/nothing") == (404, ANY)
    daemon.wait_for(" 127.0.0.1 GET '/v2/nothing' 404")


def test_it_serves_https_with_a_certificate_that_a_client_verifies(started: list[Process]) -> None:
    authority = Authority()
    pair = authority.sign("localhost", "127.0.0.1")
    for name, text in (("ca", authority.certificate), ("cert", pair.certificate), ("key", pair.key)):
        Path(f"{name}.pem").write_bytes(text)
    daemon = start(started, "--listen", "ssl:0:interface=127.0.0.1:privateKey=key.pem:certKey=cert.pem")
    port = int(daemon.wait_for(r"listening on 127\.0\.0\.1:(\d+) \(TLS\)")[1])
    context = ssl.create_default_context(cafile="ca.pem")
    assert ask(http.client.HTTPSConnection("127.0.0.1", port, timeout=MAX_WAIT, context=context)) == (200, b"{}")
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(http.client.HTTPSConnection("127.0.0.1", port, timeout=MAX_WAIT, context=ssl.create_default_context()))
    assert ask(http.client.HTTPConnection("127.0.0.1", port, timeout=MAX_WAIT))[0] == 400
    daemon.process.send_signal(signal.SIGTERM)
    daemon.end()
    # A client that hangs up is no defect.
    assert "Traceback" not in "".join(daemon.lines)


def inheriting(number: int) -> tuple[str, ...]:
    """A command with this file as the socket that its service manager opened (sd_listen_fds(3))."""
    script = f"import os, sys; os.dup2({number}, 3)"
    script += "; os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', LISTEN_FDNAMES='door')"
    script += "; os.execv(sys.argv[1], sys.argv[1:])"
    return (sys.executable, "-c", script, *K3DREG)


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_it_listens_on_what_its_service_manager_has_opened(
    started: list[Process], family: socket.AddressFamily, host: str
) -> None:
    with socket.create_server((host, 0), family=family) as opened:
        daemon = start(started, command=inheriting(opened.fileno()), passing=[opened.fileno()])
        port = int(daemon.wait_for(r"listening on .*:(\d+)$")[1])
        assert port == opened.getsockname()[1]
        daemon.process.send_signal(signal.SIGHUP)  # it is in use now, and not looked at again
        daemon.wait_for("settings read again: nothing has changed")
    connection = http.client.HTTPConnection(host, port, timeout=MAX_WAIT)
    connection.request("GET", "/v2/")
    assert connection.getresponse().status == 200


def test_a_socket_that_it_was_given_for_nothing_is_spoken_of(started: list[Process]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        daemon = start(started, *ANY_PORT, command=inheriting(opened.fileno()), passing=[opened.fileno()])
        daemon.wait_for("k3dreg does not use 1 of the sockets of the service manager's socket unit")
        assert daemon.port() != opened.getsockname()[1]


def test_a_socket_of_a_kind_that_cannot_be_listened_on_is_a_usage_line(started: list[Process]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        daemon = start(started, command=inheriting(opened.fileno()), passing=[opened.fileno()])
        assert daemon.end() == 2
    assert "ListenStream=" in "".join(daemon.lines)


def test_a_socket_that_was_not_given_is_a_usage_line(started: list[Process]) -> None:
    daemon = start(started, "--listen", "systemd:domain=INET:name=door")
    assert daemon.end() == 2
    assert "the service manager gave this process no such socket" in "".join(daemon.lines)


def test_it_loads_none_of_twisteds_plugins() -> None:
    """They would bring Twisted's test runner with them, and that unittest."""
    script = (
        "import sys; from k3dreg.cli import _ServerOptions; _ServerOptions().parseOptions(['k3dreg']); "
        "print('k3dreg.daemon.service' in sys.modules, 'unittest' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert told.stdout == "True False\n"
