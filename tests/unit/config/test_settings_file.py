"""The settings file counts after the command line and the environment, and before the defaults."""

from __future__ import annotations

from pathlib import Path

import pytest
from twisted.python import usage

from k3dreg.config.options import Options


def parse(text: str, *arguments: str, **environment: str) -> Options:
    Path("k3dreg.toml").write_text(text)
    options = Options({"HOME": "/home/someone", **environment})
    options.parseOptions(["--config", "k3dreg.toml", *arguments])
    return options


def test_the_command_line_the_environment_and_the_file_count_in_this_order() -> None:
    text = 'cache-size = "3GB"'
    assert parse(text).config.cache_size == 3 * 10**9
    assert parse(text, K3DREG_CACHE_SIZE="2GB").config.cache_size == 2 * 10**9
    assert parse(text, "--cache-size", "1GB", K3DREG_CACHE_SIZE="2GB").config.cache_size == 10**9


def test_what_other_programs_call_it_is_the_environments_word_too() -> None:
    text = 'listen = ["tcp:1", "tcp:2"]\ndocker = "tcp://file:1"'
    assert parse(text).config.listen == ("tcp:1", "tcp:2")
    assert str(parse(text).config.docker) == "tcp://file:1"
    assert parse(text, REGISTRY_HTTP_ADDR=":7").config.listen == ("tcp:7",)
    assert str(parse(text, DOCKER_HOST="tcp://host:1").config.docker) == "tcp://host:1"


def test_switches_lists_and_numbers_are_written_as_toml_has_them() -> None:
    config = parse('reader = false\ncache-size = 100000000\nalias = ["a.example:1", "b.example:2"]').config
    assert parse('warm = ["my-app:*", "team/*"]').config.warm == ("my-app:*", "team/*")
    assert (config.reader, config.cache_size, config.aliases) == ("off", 10**8, ("a.example:1", "b.example:2"))


def test_the_environment_table_is_for_what_the_environment_does_not_say() -> None:
    text = '[environment]\nAWS_PROFILE = "work"\nAWS_REGION = "eu-central-1"'
    assert parse(text, AWS_REGION="us-east-1").settings_environment == {"AWS_PROFILE": "work"}


def test_an_option_in_the_file_counts_before_the_files_own_environment_table() -> None:
    table = '[environment]\nREGISTRY_HTTP_ADDR = ":7"\nK3DREG_CACHE_SIZE = "1GB"'
    assert (parse(table).config.listen, parse(table).config.cache_size) == (("tcp:7",), 10**9)
    both = parse(f'listen = "tcp:1"\ncache-size = "2GB"\n{table}')
    assert (both.config.listen, both.config.cache_size) == (("tcp:1",), 2 * 10**9)


def test_a_variable_of_another_programs_counts_before_the_file(tmp_path: Path) -> None:
    (tmp_path / "htpasswd").write_text("user:$2y$05$guRC2rrCk5tNx1tymP1Cie4c1lwXMyt6DhXxitb5sHR1dUtmsLp42\n")
    options = parse('htpasswd = "gone"', REGISTRY_AUTH_HTPASSWD_PATH=str(tmp_path / "htpasswd"))
    assert options.config.htpasswd == tmp_path / "htpasswd"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("cache-sise = 1", "there is no option 'cache-sise'"),
        ("cache-size", "settings file k3dreg.toml"),
        ("cache-size = 1.5", "must be a string"),
        ("environment = 1", "must be strings"),
        ("[environment]\nA = 1", "must be strings"),
        ("state-dir = {}", "must be a string"),
    ],
)
def test_a_file_that_cannot_be_used_is_a_usage_error_that_says_why(text: str, complaint: str) -> None:
    with pytest.raises(usage.UsageError, match=complaint):
        parse(text)


def test_a_file_that_is_asked_for_must_be_there() -> None:
    with pytest.raises(usage.UsageError, match="there is no settings file"):
        Options({"K3DREG_CONFIG": "gone.toml"}).parseOptions([])


def test_state_is_kept_where_the_service_manager_says() -> None:
    assert str(parse("", STATE_DIRECTORY="/var/lib/private/k3dreg").config.state_dir) == "/var/lib/private/k3dreg"
