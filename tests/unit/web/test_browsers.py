"""Which requests of browsers are answered."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from twisted.web.http_headers import Headers

from k3dreg.oci.errors import BrowserRefused
from k3dreg.registry.own_names import OwnNames
from k3dreg.web.browsers import check_browser

OWN = OwnNames(["registry.example:5005"])
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0"
MANIFEST = "/v2/library/nginx/manifests/1"
# What a page that is open in a browser may look like, with each of the headers that tell one.
BROWSERS: Mapping[str, Mapping[str, str]] = {
    "user agent": {"User-Agent": FIREFOX},
    "language": {"Accept-Language": "en"},
    "empty language": {"Accept-Language": ""},
    "referer": {"Referer": "http://{host}/"},
    "origin": {"Origin": "http://{host}"},
    "fetch metadata": {"Sec-Fetch-Site": "same-origin"},
    "another of its kind": {"Sec-GPC": "1", "User-Agent": "curl/8"},
}
# Clients of registries, health checks and scrapers, as they were seen (and as their sources have it).
TOOLS = [
    {"User-Agent": "containerd/2.1.4", "Accept": "application/vnd.oci.image.index.v1+json, */*"},
    {"User-Agent": "docker/28.5.2 go/go1.25 os/linux UpstreamClient(Docker-Client/28.5.2 (windows))"},
    {
        "User-Agent": "containers/5.36 (github.com/containers/image)",
        "Docker-Distribution-Api-Version": "registry/2.0",
    },
    {"User-Agent": "crane/0.20 go-containerregistry/0.20", "Accept-Encoding": "gzip"},
    {"User-Agent": "oras/1.3.0"},
    {"User-Agent": "regclient/regctl (v0.9.0)"},
    {"User-Agent": "curl/8.5.0", "Accept": "*/*"},
    {"User-Agent": "Prometheus/3.5.0", "X-Prometheus-Scrape-Timeout-Seconds": "10"},
    {"User-Agent": "Grafana/12.1.0", "X-Forwarded-For": "10.0.0.1"},
    {"User-Agent": "kube-probe/1.34", "Connection": "close"},
    {},
]


def check(host: str, headers: Mapping[str, str], method: str = "GET", path: str = MANIFEST) -> None:
    sent = {name: [value.format(host=host)] for name, value in headers.items()}
    check_browser(Headers({"Host": [host], **sent}), method.encode(), path.encode(), OWN.is_own_host)


def refused(host: str, headers: Mapping[str, str], method: str = "GET", path: str = MANIFEST) -> BrowserRefused:
    with pytest.raises(BrowserRefused) as caught:
        check(host, headers, method, path)
    return caught.value


@pytest.mark.parametrize("headers", TOOLS, ids=lambda headers: headers.get("User-Agent", "none").partition("/")[0])
def test_tools_may_call_k3dreg_what_they_like(headers: Mapping[str, str]) -> None:
    for host in ("attacker.example:5000", "k3d-registry:5000", "", "_/"):
        check(host, headers)
        check(host, headers, "POST", "/v2/x/blobs/uploads/")


@pytest.mark.parametrize("headers", BROWSERS.values(), ids=BROWSERS)
def test_a_name_that_is_rebound_gets_nothing(headers: Mapping[str, str]) -> None:
    for path in ("/", "/healthz", "/v2/", MANIFEST, "/nothing"):
        error = refused("attacker.example:5005", headers, path=path)
        assert "attacker.example:5005" in str(error)
        assert "--alias attacker.example:5005 " in error.advice
    assert "--alias attacker.example:5000 " in refused("attacker.example", headers).advice
    refused("localhost.attacker.example", headers)
    refused("127.0.0.1.attacker.example", headers)


@pytest.mark.parametrize("host", ["", "a b", "a@b", "<script>", "[::1", "x" * 300, "registry.example:5005,localhost"])
def test_nor_does_what_is_no_host(host: str) -> None:
    assert "cannot be a registry's" in str(refused(host, {"User-Agent": FIREFOX}))


def test_two_hosts_are_none() -> None:
    headers = Headers({"Host": ["localhost", "localhost"], "User-Agent": [FIREFOX]})
    with pytest.raises(BrowserRefused):
        check_browser(headers, b"GET", b"/", OWN.is_own_host)


OUR_HOSTS = [
    *("localhost:5005", "LOCALHOST", "localhost.:5005", "k3d-registry.localhost:5005", "127.0.0.1:5000", "127.1.2.3"),
    *("[::1]:5000", "192.0.2.7:5000", "[2001:db8::1]", "[::ffff:192.0.2.7]:80"),
    *("registry.example:5005", "Registry.Example:8443", "registry.example"),
]


@pytest.mark.parametrize("host", OUR_HOSTS)
def test_this_registrys_own_page_and_the_user_get_everything(host: str) -> None:
    site = "http://{host}"
    for told in (
        {"Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": site},
        {"Referer": f"{site}/"},
    ):
        for method in ("GET", "PUT", "DELETE"):
            check(host.lower(), {"User-Agent": FIREFOX, **told}, method)
            check(host, {"User-Agent": FIREFOX, "Sec-Fetch-Site": "same-origin"}, method)


@pytest.mark.parametrize("host", OUR_HOSTS)
@pytest.mark.parametrize(
    "told",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "what comes next"},
        {"Origin": "http://attacker.example"},
        {"Origin": "null"},
        {"Origin": "http://{host}.attacker.example"},
        {"Origin": "http://[attacker"},
        {"Referer": "http://attacker.example/{host}/"},
        {"Referer": "http://attacker.example/", "Sec-Fetch-Site": "cross-site"},
    ],
    ids=str,
)
def test_another_sites_page_gets_nothing(host: str, told: Mapping[str, str]) -> None:
    refused(host, {"User-Agent": FIREFOX, **told})
    refused(host, {"User-Agent": FIREFOX, **told}, "POST", "/v2/x/blobs/uploads/")
    for path in ("/healthz", "/metrics", "/events", "/v2/", "/v2/_catalog", "/x"):
        refused(host, {"User-Agent": FIREFOX, **told}, path=path)


def test_a_link_of_another_site_leads_to_the_page() -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    check("localhost:5005", link, path="/")
    check("registry.example:5005", {"User-Agent": FIREFOX, "Referer": "http://wiki.example/"}, path="/")
    refused("localhost:5005", link, "POST", "/")
    refused("localhost:5005", {**link, "Sec-Fetch-Dest": "iframe"}, path="/")
    refused("localhost:5005", {**link, "Sec-Fetch-Dest": "image"}, path="/")
    refused("attacker.example:5005", link, path="/")
    # Only to the page: a pull is work.
    refused("localhost:5005", link)


@pytest.mark.parametrize("host", ["192.0.2.7:5000", "registry.example:5005", "[2001:db8::1]:5000"])
def test_where_a_browser_does_not_say_which_site_asks_it_may_look_and_no_more(host: str) -> None:
    for path in ("/", "/status.js", "/events", "/metrics", "/v2/", "/v2/_catalog", "/v2/team/app/tags/list"):
        check(host, {"User-Agent": FIREFOX}, path=path)
        refused(host, {"User-Agent": FIREFOX}, "POST", "/x" if path == "/" else path)
    blob = f"/v2/x/blobs/sha256:{'0' * 64}"
    for path in (MANIFEST, blob, "/%762/x/manifests/1", "/v2/x/%6danifests/1", "/v2/x/manifests/tags%2flist", "/v2//"):
        refused(host, {"User-Agent": FIREFOX}, path=path)
    # On this machine browsers do say it (Fetch Metadata, "potentially trustworthy"): one that does not is a tool.
    check("localhost:5005", {"User-Agent": f"{FIREFOX} WindowsPowerShell/5.1"})
