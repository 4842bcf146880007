"""Options and environment become one checked Config."""

from pathlib import Path

import pytest
from twisted.python import usage

from k3dreg.config.options import Options
from k3dreg.config.refresh_rule import RefreshRule
from k3dreg.config.remote import Remote
from k3dreg.config.settings import Config
from k3dreg.config.values import endpoint_of_address, parse_size
from k3dreg.formats.basic_auth import Credentials
from tests.fakes.certificates import Authority


def parse(*arguments: str, **environment: str) -> Config:
    options = Options({"HOME": "/home/someone", **environment})
    options.parseOptions(list(arguments))
    return options.config


def test_defaults_are_the_documented_ones() -> None:
    config = parse()
    assert config.listen == ("tcp:5000",)
    assert str(config.docker) == "unix:///var/run/docker.sock"
    assert config.cache_size == 20 * 10**9
    assert config.log_level == "info"


def test_the_command_line_wins_over_the_environment() -> None:
    config = parse(
        "--cache-size", "1GB", "--docker", "unix:///a.sock", K3DREG_CACHE_SIZE="2GB", DOCKER_HOST="tcp://b:1"
    )
    assert config.cache_size == 10**9
    assert str(config.docker) == "unix:///a.sock"


def test_our_own_variable_wins_over_dockers() -> None:
    assert str(parse(K3DREG_DOCKER="unix:///a.sock", DOCKER_HOST="tcp://b:1").docker) == "unix:///a.sock"
    assert str(parse(DOCKER_HOST="tcp://b:2375").docker) == "tcp://b:2375"


def test_an_empty_variable_is_as_good_as_none() -> None:
    assert parse(K3DREG_LOG_LEVEL="", REGISTRY_HTTP_ADDR="").listen == ("tcp:5000",)


def test_listen_may_be_repeated() -> None:
    assert parse("--listen", "tcp:1", "--listen", "tcp:2").listen == ("tcp:1", "tcp:2")
    assert parse(K3DREG_LISTEN="tcp:1 tcp:2").listen == ("tcp:1", "tcp:2")
    assert parse("--listen", "tcp:3", K3DREG_LISTEN="tcp:1", REGISTRY_HTTP_ADDR=":7").listen == ("tcp:3",)


def test_registries_that_may_be_asked_may_be_repeated_and_are_patterns() -> None:
    assert parse().allow_registries == ()
    listed = parse("--allow-registry", "*.Example.com", "--allow-registry", "index.docker.io").allow_registries
    assert listed == ("*.example.com", "docker.io")
    assert parse(K3DREG_ALLOW_REGISTRY="* localhost:5001 [::1]:*").allow_registries == (
        "*",
        "localhost:5001",
        "[::1]:*",
    )
    for wrong in ("", "two words", "https://ghcr.io", "ghcr.io/team"):
        with pytest.raises(usage.UsageError, match="--allow-registry"):
            parse("--allow-registry", wrong)


def test_what_is_to_be_made_ready_may_be_repeated_and_is_a_pattern() -> None:
    assert parse().warm == ()
    assert parse("--warm", "my-app:*", "--warm", "team/*", "--warm", "my-app:*").warm == ("my-app:*", "team/*")
    assert parse(K3DREG_WARM="my-app:* team/*").warm == ("my-app:*", "team/*")
    for wrong in ("", "two words"):
        with pytest.raises(usage.UsageError, match="--warm"):
            parse("--warm", wrong)


def test_what_is_refreshed_is_a_pattern_with_an_age() -> None:
    assert parse().refresh == ()
    rules = (RefreshRule("nginx:*", 3600), RefreshRule("team/*", 900), RefreshRule("*", 7 * 86400))
    assert parse("--refresh", "nginx:*", "--refresh", "team/*=15m", "--refresh", "*=7d").refresh == rules
    assert parse(K3DREG_REFRESH="nginx:*=1h team/*=900s *=168h").refresh == rules
    for wrong in ("", "two words", "=1h", "nginx=", "nginx=1", "nginx=0s", "nginx=soon", "nginx=1.5h", "nginx=1h="):
        with pytest.raises(usage.UsageError, match="--refresh"):
            parse("--refresh", wrong)


@pytest.mark.parametrize(
    ("address", "endpoint"),
    [
        (":5000", "tcp:5000"),
        ("0.0.0.0:5000", "tcp:5000:interface=0.0.0.0"),
        ("localhost:5001", "tcp:5001:interface=localhost"),
        ("[::]:5000", r"tcp6:5000:interface=\:\:"),
    ],
)
def test_the_official_images_address_is_honoured(address: str, endpoint: str) -> None:
    assert endpoint_of_address(address) == endpoint
    assert parse(REGISTRY_HTTP_ADDR=address).listen == (endpoint,)


@pytest.mark.parametrize("address", ["5000", "host:", ":http", "::1:5000", ":70000"])
def test_an_address_that_is_none_is_a_usage_error(address: str) -> None:
    with pytest.raises(usage.UsageError, match="REGISTRY_HTTP_ADDR"):
        parse(REGISTRY_HTTP_ADDR=address)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1048576", 2**20), ("20GB", 20 * 10**9), ("1.5GiB", 3 * 2**29), ("500 m", 5 * 10**8), ("2T", 2 * 10**12)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "arguments",
    [
        ["--cache-size", "much"],
        ["--cache-size", "1MB"],
        ["--log-level", "chatty"],
        ["--reader", "maybe"],
        ["--docker", "ftp://somewhere"],
        ["--listen", "carrier-pigeon:5000"],
        ["--no-such-option"],
        ["an argument"],
    ],
)
def test_what_cannot_be_used_is_a_usage_error(arguments: list[str]) -> None:
    with pytest.raises(usage.UsageError):
        parse(*arguments)


def test_state_is_kept_where_the_user_may_write() -> None:
    assert str(parse("--state-dir", "/x").state_dir) == "/x"
    assert str(parse(K3DREG_STATE_DIR="/y").state_dir) == "/y"


def test_names_of_this_registry_are_given_and_repeated() -> None:
    assert parse().aliases == ()
    assert parse("--alias", "reg.localhost:5000", "--alias", "Other:1").aliases == ("reg.localhost:5000", "other:1")
    assert parse(K3DREG_ALIAS="a:1 b:2").aliases == ("a:1", "b:2")


@pytest.mark.parametrize("name", ["docker.io", "no-port", "a b:1", "x:y"])
def test_a_name_without_a_port_is_refused(name: str) -> None:
    with pytest.raises(usage.UsageError, match="--alias"):
        parse("--alias", name)


@pytest.mark.parametrize(
    ("value", "deleting"), [("", True), ("true", True), ("false", False), ("False", False), ("0", False)]
)
def test_deleting_is_turned_off_as_the_official_image_has_it(value: str, deleting: bool) -> None:
    assert parse(REGISTRY_STORAGE_DELETE_ENABLED=value).deleting is deleting


def test_deleting_is_on_or_off() -> None:
    with pytest.raises(usage.UsageError, match="REGISTRY_STORAGE_DELETE_ENABLED"):
        parse(REGISTRY_STORAGE_DELETE_ENABLED="maybe")


HASH = "$2y$05$guRC2rrCk5tNx1tymP1Cie4c1lwXMyt6DhXxitb5sHR1dUtmsLp42"


@pytest.fixture
def htpasswd(tmp_path: Path) -> str:
    path = tmp_path / "htpasswd"
    path.write_text(f"user:{HASH}\n")
    return str(path)


def test_pushes_are_checked_unless_the_official_images_variables_turn_that_off() -> None:
    assert (parse().sparse, parse().whole_indexes) == (False, True)
    assert parse(REGISTRY_VALIDATION_DISABLED="true").sparse
    assert not parse(REGISTRY_VALIDATION_MANIFESTS_INDEXES_PLATFORMS="none").whole_indexes
    for variable in ("REGISTRY_VALIDATION_DISABLED", "REGISTRY_VALIDATION_MANIFESTS_INDEXES_PLATFORMS"):
        with pytest.raises(usage.UsageError, match=variable):
            parse(**{variable: "list"})


def test_a_password_file_is_given_as_ours_or_as_the_official_images(htpasswd: str) -> None:
    assert parse().htpasswd is None
    for config in (
        parse("--htpasswd", htpasswd),
        parse(K3DREG_HTPASSWD=htpasswd),
        parse(REGISTRY_AUTH="htpasswd", REGISTRY_AUTH_HTPASSWD_PATH=htpasswd),
    ):
        assert (str(config.htpasswd), config.anonymous_pull) == (htpasswd, False)
    assert parse("--htpasswd", htpasswd, "--anonymous-pull").anonymous_pull
    assert parse("--htpasswd", htpasswd, K3DREG_ANONYMOUS_PULL="on").anonymous_pull


def test_a_broken_line_is_told_by_its_number_and_not_shown(htpasswd: str) -> None:
    Path(htpasswd).write_text(f"user:{HASH}\nother:in-plain-text\n")
    with pytest.raises(usage.UsageError, match="line 2") as raised:
        parse("--htpasswd", htpasswd)
    assert "plain-text" not in str(raised.value)


def test_a_door_that_would_be_left_open_is_a_usage_error(htpasswd: str) -> None:
    for environment, complaint in (
        ({"K3DREG_ANONYMOUS_PULL": "on"}, "--anonymous-pull needs --htpasswd"),
        ({"REGISTRY_AUTH": "htpasswd"}, "needs REGISTRY_AUTH_HTPASSWD_PATH"),
        ({"REGISTRY_AUTH": "token", "K3DREG_HTPASSWD": htpasswd}, "htpasswd only"),
        ({"K3DREG_HTPASSWD": htpasswd + ".gone"}, "cannot be read"),
    ):
        with pytest.raises(usage.UsageError, match=complaint):
            parse(**environment)


def test_a_certificate_is_given_as_an_endpoint_string_or_as_the_official_images(tmp_path: Path) -> None:
    authority = Authority()
    pair = authority.sign("localhost")
    (tmp_path / "key.pem").write_bytes(pair.key)
    (tmp_path / "cert:1.pem").write_bytes(pair.certificate)
    (tmp_path / "chain.pem").write_bytes(pair.certificate + authority.certificate)
    key, cert, chain = (str(tmp_path / name).replace(":", "\\:") for name in ("key.pem", "cert:1.pem", "chain.pem"))
    files = f"privateKey={key}:certKey={cert}"
    assert parse("--listen", f"ssl:5443:{files}").listen == (f"ssl:5443:{files}",)
    official = {"REGISTRY_HTTP_TLS_KEY": key, "REGISTRY_HTTP_TLS_CERTIFICATE": str(tmp_path / "cert:1.pem")}
    assert parse(**official).listen == (f"ssl:5000:{files}",)
    assert parse(**official, REGISTRY_HTTP_ADDR="[::1]:443").listen == (rf"ssl:443:interface=\:\:1:{files}",)
    official["REGISTRY_HTTP_TLS_CERTIFICATE"] = chain
    assert parse(**official).listen == (f"ssl:5000:privateKey={key}:certKey={chain}:extraCertChain={chain}",)
    # What is said in k3dreg's own words counts alone.
    assert parse(**official, K3DREG_LISTEN="tcp:1").listen == ("tcp:1",)


def test_a_certificate_that_cannot_be_used_is_a_usage_error(tmp_path: Path) -> None:
    pair, other = Authority().sign("localhost"), Authority().sign("localhost")
    (tmp_path / "key.pem").write_bytes(pair.key)
    (tmp_path / "cert.pem").write_bytes(other.certificate)
    for files in (
        "key.pem:certKey=cert.pem",
        "key.pem:certKey=key.pem",
        "cert.pem:certKey=cert.pem",
        "key.pem:certKey=no",
    ):
        with pytest.raises(usage.UsageError, match=r"such as ssl:5443:privateKey=KEY.pem"):
            parse("--listen", f"ssl:5443:privateKey={tmp_path}/{files.replace('certKey=', f'certKey={tmp_path}/')}")
    with pytest.raises(usage.UsageError, match="set both or neither"):
        parse(REGISTRY_HTTP_TLS_KEY=str(tmp_path / "key.pem"))


@pytest.mark.parametrize(
    ("url", "registry"),
    [
        ("*", None),
        ("", None),
        ("https://registry-1.docker.io", "docker.io"),
        ("https://index.docker.io/", "docker.io"),
        ("https://ghcr.io", "ghcr.io"),
        ("https://GHCR.io:443/v2/", "ghcr.io"),
        ("http://127.0.0.1:5911", "127.0.0.1:5911"),
        ("http://registry.local:80", "registry.local"),
        ("quay.io", "quay.io"),
    ],
)
def test_k3ds_remote_url_is_the_one_registry_or_all(url: str, registry: str | None) -> None:
    assert parse(REGISTRY_PROXY_REMOTEURL=url).remote == Remote(registry)
    assert parse("--proxy-remote-url", url or "*").remote == Remote(registry)


@pytest.mark.parametrize("url", ["ftp://x.y", "https://", "https://a b", "https://x/path", "https://u:pass@x.y", "**"])
def test_a_remote_url_that_is_none_is_a_usage_error(url: str) -> None:
    with pytest.raises(usage.UsageError, match="--proxy-remote-url") as raised:
        parse(REGISTRY_PROXY_REMOTEURL=url)
    assert "pass@" not in str(raised.value)


def test_credentials_for_the_remote_are_for_docker_hub_where_it_is_every_registry() -> None:
    login = {"REGISTRY_PROXY_USERNAME": "me", "REGISTRY_PROXY_PASSWORD": "secret"}
    remote = parse(**login, REGISTRY_PROXY_REMOTEURL="*").remote
    assert (remote.only, remote.login_for, remote.login) == (None, "docker.io", Credentials("me", "secret"))
    assert parse(**login, REGISTRY_PROXY_REMOTEURL="https://ghcr.io").remote.login_for == "ghcr.io"
    assert "secret" not in repr(remote)
    assert "secret" not in repr(parse(**login))
    with pytest.raises(usage.UsageError, match="set both or neither"):
        parse(REGISTRY_PROXY_USERNAME="me")
    # As k3d sets them when nobody gave any.
    assert parse(REGISTRY_PROXY_USERNAME="", REGISTRY_PROXY_PASSWORD="").remote == Remote()


def test_a_password_is_not_taken_from_the_command_line() -> None:
    with pytest.raises(usage.UsageError):
        parse("--proxy-password", "secret")
