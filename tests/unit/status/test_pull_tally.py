"""What was saved counts images as clients pull them, however many requests that takes."""

from __future__ import annotations

from attrs import evolve

from k3dreg.oci import media_types
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.platform import Platform
from k3dreg.reporting.activity import Activity, RequestReport
from k3dreg.status.pull_tally import Tally

APP = "registry.example/team/app"
INDEX = Descriptor(media_types.OCI_INDEX, Digest.of(b"index"), 5)
IMAGE = Descriptor(media_types.OCI_MANIFEST, Digest.of(b"image"), 5, platform=Platform("linux", "amd64"))
OTHER = Descriptor(media_types.OCI_MANIFEST, Digest.of(b"other"), 5)


def asked(method: str, reference: str, manifest: Descriptor, *, client: str = "10.0.0.1") -> RequestReport:
    """A request for a manifest that was answered; `reference` is `:tag` or `@`."""
    subject = f"{APP}{reference}{manifest.digest}" if reference == "@" else f"{APP}{reference}"
    sent = manifest.size if method == "GET" else 0
    return RequestReport(
        "0" * 16, 1.0, client, method, "manifest", subject, 200, sent, 0.1, 0.1, source="content", manifest=manifest
    )


def as_containerd(tag: str, *manifests: Descriptor, client: str = "10.0.0.1") -> list[RequestReport]:
    """HEAD of the tag, then GET of what it is, and of the platform's manifest in it, by digest."""
    gets = [asked("GET", "@", each, client=client) for each in manifests]
    return [asked("HEAD", f":{tag}", manifests[0], client=client), *gets]


def pulls(*reports: RequestReport, tally: Tally | None = None) -> int:
    tally = tally or Tally()
    for report in reports:
        tally.answered(report)
    return tally.saved().pulls


def pull_of(tag: str) -> Activity:
    return Activity("pull", f"{APP}:{tag}", 0.0)


def test_an_image_of_one_platform_or_of_several_is_one_pull() -> None:
    assert pulls(*as_containerd("1", OTHER)) == 1
    assert pulls(*as_containerd("1", INDEX, IMAGE)) == 1
    # As skopeo and crane ask, and a node for a digest in a pod.
    assert pulls(asked("GET", ":1", INDEX), asked("GET", "@", IMAGE)) == 1
    assert pulls(asked("HEAD", "@", INDEX), asked("GET", "@", INDEX), asked("GET", "@", IMAGE)) == 1
    # Without a HEAD, and all platforms.
    assert pulls(asked("GET", "@", INDEX), asked("GET", "@", IMAGE), asked("GET", "@", OTHER)) == 1


def test_a_look_alone_is_no_pull() -> None:
    assert pulls(asked("HEAD", ":1", INDEX), asked("HEAD", ":1", INDEX)) == 0
    assert pulls(evolve(asked("GET", ":1", INDEX), status=304, sent=0)) == 0
    assert pulls(evolve(asked("GET", ":1", INDEX), aborted=True)) == 0


def test_nodes_behind_one_address_are_each_a_pull() -> None:
    both = [as_containerd("1", INDEX, IMAGE), as_containerd("1", INDEX, IMAGE)]
    assert pulls(*(report for pair in zip(*both, strict=True) for report in pair)) == 2


def test_another_image_of_the_repository_is_another_pull() -> None:
    assert pulls(*as_containerd("1", INDEX, IMAGE), *as_containerd("2", OTHER)) == 2


def test_an_image_that_docker_pulled_for_it_is_not_saved_and_the_next_ones_are() -> None:
    tally = Tally()
    tally.began(pull_of("1"))
    # The answer to HEAD may come before the end of Docker's pull.
    tally.answered(asked("HEAD", ":1", INDEX))
    tally.ended(pull_of("1"), "")
    assert pulls(asked("GET", "@", INDEX), asked("GET", "@", IMAGE), tally=tally) == 0
    assert pulls(*as_containerd("1", INDEX, IMAGE, client="10.0.0.2"), tally=tally) == 1


def test_of_nodes_that_wait_for_one_pull_of_dockers_all_but_one_are_saved() -> None:
    tally = Tally()
    tally.began(pull_of("1"))
    tally.ended(pull_of("1"), "")
    three = [as_containerd("1", INDEX, IMAGE, client=f"10.0.0.{number}") for number in range(3)]
    assert pulls(*(report for reports in three for report in reports), tally=tally) == 2


def test_a_pull_that_failed_and_one_of_another_repository_take_nothing_away() -> None:
    tally = Tally()
    tally.began(pull_of("1"))
    tally.ended(pull_of("1"), "PullFailed")
    tally.began(Activity("pull", "registry.example/other:1", 0.0))
    tally.began(Activity("export", f"{APP}:1", 0.0))
    assert pulls(*as_containerd("1", INDEX, IMAGE), tally=tally) == 1


def test_what_came_from_the_origin_was_not_saved() -> None:
    assert pulls(*(evolve(report, source="registry") for report in as_containerd("1", OTHER))) == 0


def test_what_it_remembers_is_bounded() -> None:
    tally = Tally(most=10)
    for number in range(100):
        tally.began(Activity("pull", f"registry.example/{number}:1", 0.0))
        reports = as_containerd(
            "1", Descriptor(media_types.OCI_INDEX, Digest.of(b"%d" % number), 5), client=str(number)
        )
        assert pulls(*reports, tally=tally) == number + 1
    # Of the pulls by Docker, the ten last ones are subtracted.
    for number, counts in ((89, 1), (90, 0), (99, 0)):
        report = evolve(asked("GET", ":1", OTHER), subject=f"registry.example/{number}:1")
        before = tally.saved().pulls
        assert pulls(report, tally=tally) - before == counts
