"""Who is known by the password file, at which cost, and from when on."""

from __future__ import annotations

import os
from pathlib import Path

import bcrypt
import pytest
from twisted.internet.defer import CancelledError, Deferred

from k3dreg.formats.basic_auth import BasicAuth
from k3dreg.oci.errors import UsageError
from k3dreg.web.passwords import KEPT_FOR, LOOK_EVERY, Passwords
from tests.fakes.workers import InlineWorkers, ManualWorkers

ANNA = BasicAuth("anna", "secret")


def line(name: str, password: str, cost: int = 4) -> str:
    return f"{name}:{bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost)).decode()}\n"


class Counting(InlineWorkers):
    """Counts the hashes that are checked."""

    hashes = 0

    def run(self, function, /, *args, **kwargs):  # type: ignore[no-untyped-def]
        self.hashes += function.__name__ == "_fits"
        return super().run(function, *args, **kwargs)


def result(deferred: Deferred[bool]) -> bool:
    found: list[bool] = []
    deferred.addCallback(found.append)
    return found[0]


class Users:
    """A password file, and what knows it."""

    def __init__(self, path: Path, *lines: str) -> None:
        self.path = path
        path.write_text("".join(lines))
        self.workers = Counting()
        self.passwords = Passwords(path, self.workers)
        Deferred.fromCoroutine(self.passwords.start())

    def know(self, name: str, password: str) -> bool:
        return result(Deferred.fromCoroutine(self.passwords.knows(BasicAuth(name, password))))

    def change(self, *lines: str) -> None:
        before = self.path.stat()
        self.path.write_text("".join(lines))
        # The kernel's clock of files is a coarse one.
        os.utime(self.path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


@pytest.fixture
def users(tmp_path: Path) -> Users:
    return Users(tmp_path / "htpasswd", line("anna", "secret"), line("ben", "other"))


def test_a_user_is_known_by_their_own_password_alone(users: Users) -> None:
    assert users.know("anna", "secret")
    assert users.know("ben", "other")
    for name, password in (
        ("anna", "other"),
        ("anna", ""),
        ("Anna", "secret"),
        ("carl", "secret"),
        ("anna", "secret "),
    ):
        assert not users.know(name, password)


def test_that_a_password_is_wrong_is_kept_for_a_while_and_that_it_is_right_until_the_file_changes(users: Users) -> None:
    for _ in range(5):
        assert users.know("anna", "secret")
        assert not users.know("anna", "wrong")
    assert users.workers.hashes == 2
    users.workers.clock.advance(KEPT_FOR)
    assert users.know("anna", "secret")
    assert users.workers.hashes == 2
    assert not users.know("anna", "wrong")
    assert users.workers.hashes == 3


def test_wrong_passwords_do_not_push_a_right_one_out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("k3dreg.web.passwords._MOST_KEPT", 10)
    users = Users(tmp_path / "htpasswd", line("anna", "secret"))
    assert users.know("anna", "secret")
    for number in range(20):
        assert not users.know("anna", str(number))
    checked = users.workers.hashes
    assert users.know("anna", "secret")
    assert users.workers.hashes == checked
    assert len(users.passwords._wrong) == 10


def test_a_change_of_another_user_s_line_costs_no_new_check(users: Users) -> None:
    anna = users.path.read_text().splitlines(keepends=True)[0]
    assert users.know("anna", "secret")
    users.change(anna, line("ben", "new"))
    users.workers.clock.advance(LOOK_EVERY)
    assert users.know("anna", "secret")
    assert users.workers.hashes == 1
    # The same line under another name is another user's.
    users.change(anna.replace("anna", "carl"), line("ben", "new"))
    users.workers.clock.advance(LOOK_EVERY)
    assert not users.know("anna", "secret")


def test_a_name_that_is_nobodys_costs_as_much_as_one_that_is(users: Users) -> None:
    assert not users.know("nobody", "secret")
    assert users.workers.hashes == 1
    # Not even with the password of the user against whose hash it was checked.
    assert not users.know("nobody", "other")


def test_neither_passwords_nor_names_are_kept(users: Users) -> None:
    users.know("anna", "secret")
    users.know("anna", "wr0ng")
    kept = repr((users.passwords._right, users.passwords._wrong))
    assert "wr0ng" not in kept
    assert "secret" not in kept
    assert "anna" not in kept


def test_a_changed_file_counts_and_what_was_found_before_does_not(users: Users) -> None:
    assert users.know("anna", "secret")
    users.change(line("anna", "new"), line("carl", "x"))
    users.workers.clock.advance(LOOK_EVERY)
    assert not users.know("anna", "secret")
    assert users.know("anna", "new")
    assert users.know("carl", "x")
    assert not users.know("ben", "other")


@pytest.mark.parametrize("broken", ["anna:plain\n", "", "# nobody\n", None])
def test_a_file_that_breaks_counts_as_it_was_until_it_is_mended(users: Users, broken: str | None) -> None:
    if broken is None:
        users.path.rename(users.path.with_name("elsewhere"))
    else:
        users.change(broken)
    users.workers.clock.advance(LOOK_EVERY)
    assert users.know("anna", "secret")
    users.path.write_text(line("anna", "new"))
    users.workers.clock.advance(LOOK_EVERY)
    assert users.know("anna", "new")


def test_a_long_password_is_cut_where_htpasswd_cuts_it(tmp_path: Path) -> None:
    users = Users(tmp_path / "htpasswd", line("anna", "x" * 72))
    assert users.know("anna", "x" * 80)
    assert not users.know("anna", "x" * 71)


def test_a_user_who_was_added_a_moment_ago_is_known(users: Users) -> None:
    assert users.know("ben", "other")
    users.change(line("carl", "new"))
    assert users.know("carl", "new")


def test_the_names_of_all_users_since_the_start_are_kept(tmp_path: Path) -> None:
    names: set[str] = set()
    path = tmp_path / "htpasswd"
    path.write_text(line("anna", "secret"))
    workers = InlineWorkers()
    passwords = Passwords(path, workers, names)
    Deferred.fromCoroutine(passwords.start())
    path.write_text(line("ben", "other"))
    workers.clock.advance(LOOK_EVERY)
    Deferred.fromCoroutine(passwords.knows(ANNA))
    assert names == {"anna", "ben"}


def test_a_file_that_is_not_there_or_none_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("# nobody\n\n")
    for path, complaint in (
        (tmp_path / "gone", "No such file"),
        (tmp_path, "directory|regular file"),
        (tmp_path / "empty", "it has no users"),
    ):
        failed: list[object] = []
        Deferred.fromCoroutine(Passwords(path, InlineWorkers()).start()).addErrback(failed.append)
        with pytest.raises(UsageError, match=complaint):
            failed[0].raiseException()  # type: ignore[attr-defined]


def waiting_passwords(directory: Path) -> tuple[Passwords, ManualWorkers]:
    """Return anna's password, which is checked when the workers work."""
    path, workers = directory / "htpasswd", ManualWorkers()
    path.write_text(line("anna", "secret"))
    passwords = Passwords(path, workers)
    Deferred.fromCoroutine(passwords.start())
    workers.work()
    return passwords, workers


def test_a_shutdown_fails_what_waits(tmp_path: Path) -> None:
    passwords, _ = waiting_passwords(tmp_path)
    waiting = Deferred.fromCoroutine(passwords.knows(ANNA))
    passwords.shutdown()
    failed: list[object] = []
    waiting.addErrback(failed.append)
    [failure] = failed
    assert failure.check(CancelledError)  # type: ignore[attr-defined]


def test_many_who_show_the_same_wait_for_one_check(tmp_path: Path) -> None:
    passwords, workers = waiting_passwords(tmp_path)
    found: list[bool] = []
    for _ in range(20):
        Deferred.fromCoroutine(passwords.knows(ANNA)).addCallback(found.append)
    assert len(workers.waiting) == 1
    workers.work()
    assert found == [True] * 20
