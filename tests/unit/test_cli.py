"""The command line as a person meets it: help that fits a terminal, and a usage line for what is wrong."""

from __future__ import annotations

import re

import pytest

from k3dreg import __version__
from k3dreg.cli import main

COMMANDS = ("doctor", "why", "warm", "refresh", "link", "attach", "detach", "config", "ls", "rm", "gc")
# Options of their own, and one that another command has.
OPTIONS = {
    "doctor": ({"json"}, "server"),
    "why": (set(), "json"),
    "warm": ({"server"}, "json"),
    "refresh": (set(), "json"),
    "link": (set(), "json"),
    "attach": ({"all", "follow"}, "json"),
    "detach": ({"all"}, "follow"),
    "config": ({"mode", "name", "port", "host-port", "image", "socket", "ca", "offline", "auth", "configmap"}, "json"),
    "ls": ({"state-dir"}, "grace"),
    "rm": ({"state-dir", "server"}, "json"),
    "gc": ({"state-dir", "retain", "grace", "untagged", "dry-run"}, "json"),
}
TAKES_THE_DAEMONS = ("doctor", "why", "warm", "refresh", "link", "attach", "detach")


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    """Status, output and errors."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    said = capsys.readouterr()
    return end.value.code, said.out, said.err


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_tells_k3dregs_own_version(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, *filter(None, [command]), "--version")
    assert (status, out) == (0, f"k3dreg {__version__}\n")


def test_help_names_every_command_with_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "--help")
    assert (status, err) == (0, "")
    assert out.startswith("Usage: k3dreg ")
    listed = re.search(r"^Commands.*:\n((?:  .*\n)+)", out, re.MULTILINE)
    assert listed is not None
    lines = [line.split(maxsplit=1) for line in listed[1].splitlines()]
    assert [line[0] for line in lines] == list(COMMANDS)
    assert all(len(line) == 2 for line in lines)
    assert "--cache-size=" in out


@pytest.mark.parametrize("arguments", [("help",), ("-h",)])
def test_other_words_for_help(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, *arguments) == run(capsys, "--help")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_commands_help_is_about_it_alone(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, command, "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"Usage: k3dreg {command}")
    own, _ = OPTIONS[command]
    assert set(re.findall(r"^ .*--([a-z-]+)=?  ", out, re.MULTILINE)) == own | {"help", "version"}
    assert f"  k3dreg {command}" in out[out.index("\nExample") :]
    said = [line for line in out.splitlines() if "k3dreg --help" in line]
    assert len(said) == (command in TAKES_THE_DAEMONS)
    assert run(capsys, "help", command) == (0, out, "")
    assert run(capsys, command, "-h") == (0, out, "")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_eighty_columns(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, *filter(None, [command]), "--help")
    assert [line for line in out.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("width", ["", "0", "7", "wide", "5000"])
def test_help_is_readable_whatever_is_said_of_the_terminal(
    width: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    _, out, _ = run(capsys, "--help")
    assert max(map(len, out.splitlines())) in range(50, 121)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["doktor"], "no command 'doktor'; did you mean doctor?"),
        (["nginx:1"], "no command 'nginx:1'"),
        (["help", "doktor"], "no command 'doktor'"),
        (["--log-level", "info", "doctor"], "'doctor' follows options: a command comes first, as in k3dreg doctor"),
        (["--cache-size", "1GB", "x"], "'x' is not an option"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_what_is_no_command_or_option_is_a_usage_line_and_status_2(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert complaint in err.splitlines()[0]
    assert "Usage: k3dreg " in err
    assert "k3dreg --help" in err


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_of_another_command_is_a_usage_line_and_status_2(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, command, f"--{OPTIONS[command][1]}", "1", "x")
    assert (status, out) == (2, "")
    assert err.startswith("k3dreg: option --")
    assert f"Usage: k3dreg {command}" in err
    assert f"k3dreg {command} --help" in err


def test_options_behind_an_image_are_told_to_come_before_it(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "why", "nginx", "--docker", "unix:///x")
    assert status == 2
    assert "'--docker': options come before images" in err


@pytest.mark.parametrize(
    "url", ["tcp://u:s3cret@h:1", "ssh://u:s3cret@h", "tcp://u:s3cret@h:x", "u:s3cret@h", "s://:s3cret@[h"]
)
def test_a_password_in_an_address_is_not_repeated(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "doctor", "--docker", url)
    assert (status, out) == (2, "")
    assert "not the address of an engine" in err
    assert "s3cret" not in err
