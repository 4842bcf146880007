"""The status page as a tree of tags.  `flatten` escapes all text in the tree."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.web.template import Tag, flattenString, tags

from k3dreg.formats.text import age, counted, size
from k3dreg.reporting.activity import Progress, RequestReport
from k3dreg.status.cluster_list import clusters
from k3dreg.status.cluster_snippets import Address, snippets
from k3dreg.status.nodes import OTHER
from k3dreg.status.overview import Listed, Live, NodeCounts, Overview, Running, Saved, SeenPull
from k3dreg.status.words import clock, layers_of, outcome
from k3dreg.store.interfaces import PushedUsage

# Characters of a digest, its algorithm included: as many as Docker's client shows.
_DIGEST = 19

_VERBS = {"pull": "Docker pulls", "export": "Docker exports", "transfer": "sending", "link": "linking"}


async def flatten(tag: Tag) -> bytes:
    """Return the HTML of the tag."""
    return await flattenString(None, tag)


def document(overview: Overview, live: Live, address: Address, now: float) -> Tag:
    """Return the whole page, without its doctype.  `now` is in seconds since the epoch."""
    head = tags.head(
        tags.meta(charset="utf-8"),
        tags.meta(name="viewport", content="width=device-width, initial-scale=1"),
        tags.title("k3dreg"),
        tags.link(rel="icon", href="/status.svg", type="image/svg+xml"),
        tags.link(rel="stylesheet", href="/status.css"),
        tags.script(src="/status.js", defer="defer"),
    )
    state = ("no engine", "bad") if overview.trouble else ("ready", "good")
    header = tags.header(
        tags.h1("k3dreg ", tags.span(state[0], class_=f"pill {state[1]}")),
        tags.p(
            f"version {overview.version}, an OCI registry of Docker's images. ",
            # assets/status.js writes here whether the page is kept up to date.
            tags.span(f"As of {clock(now)} UTC.", id="live"),
            class_="quiet",
        ),
    )
    body = tags.body(
        header,
        Tag("main")(
            _facts(overview, live.saved),
            _section("Under way", tags.div(under_way(live), id="running")),
            _section("Pulls", tags.div(pulls(live.pulls), id="pulls")),
            _section("Nodes", tags.div(nodes(live.nodes), id="nodes")),
            _section("Other requests", tags.div(others(live.others), id="others")),
            _section("Clusters", clusters(overview.clusters, now)),
            _section("Images Docker can give", _listed(overview.images, overview.image_count)),
            _section("Pushed here", _use(overview.pushed_use), _listed(overview.pushed, overview.pushed_count)),
            _section("Point a cluster here", *snippets(address)),
        ),
    )
    return tags.html(head, body, lang="en")


def under_way(live: Live) -> Tag:
    """Return the list of pulls and of other work under way, each with a progress bar."""
    if not live.pulling and not live.running:
        return tags.p("Nothing.", class_="quiet")
    return tags.ul(*map(_pulling, live.pulling), *map(_running, live.running))


def _pulling(pull: SeenPull) -> Tag:
    done = layers_of(pull)
    facts = [_amount(pull.progress), f"{pull.seconds:.0f} s", *([done] if done else [])]
    failed = [tags.p(f"{pull.status}: {pull.reason}", class_="bad")] if pull.status else []
    return tags.li(
        _unfolding(pull, [tags.span(f", {', '.join(facts)}", class_="quiet")]),
        *failed,
        _bar(f"{pull.image} to {pull.who}", pull.progress),
    )


def _running(activity: Running) -> Tag:
    said = f"{_amount(activity.progress)}, {activity.seconds:.0f} s"
    if activity.waiters:
        said += f", {activity.waiters} waiting"
    verb = _VERBS.get(activity.kind, activity.kind)
    return tags.li(
        f"{verb} ",
        tags.span(activity.subject, class_="name"),
        " ",
        tags.span(said, class_="quiet"),
        _bar(f"{verb} {activity.subject}", activity.progress),
    )


def _amount(progress: Progress) -> str:
    said = f"{progress.done / 1e6:.1f}"
    # The engine's size of an image is not exactly that of its export, so `done` may exceed `total`.
    return said + (f" of {progress.total / 1e6:.1f} MB" if progress.done <= progress.total else " MB")


def _bar(label: str, progress: Progress) -> Tag:
    bar = tags.progress(**{"aria-label": label})
    if progress.total and progress.done <= progress.total:
        bar(max=str(progress.total), value=str(progress.done))
    return bar


def pulls(ended: Sequence[SeenPull]) -> Tag:
    """Return the list of pulls that have ended, each with its outcome, and its requests below it."""
    if not ended:
        return tags.p("None yet.", class_="quiet")
    return tags.ul(*map(_pull, ended))


def _pull(pull: SeenPull) -> Tag:
    begun = tags.span(f"{clock(pull.at)} ", class_="quiet")
    if pull.status:
        return tags.li(_unfolding(pull, [": ", tags.span(outcome(pull), class_="bad")], begun))
    return tags.li(_unfolding(pull, [": ", tags.span(outcome(pull), class_="quiet")], begun))


def _unfolding(pull: SeenPull, facts: Sequence[Tag | str], *before: Tag) -> Tag:
    """Return a line about a pull, below which its requests can be unfolded."""
    requests = [*map(_report, pull.requests)]
    if pull.more_requests:
        requests.insert(0, tags.li(f"{pull.more_requests} requests before these", class_="quiet"))
    requests += [tags.li(tags.span(each, class_="name"), " under way", class_="quiet") for each in pull.waiting]
    return tags.details(
        tags.summary(
            *before,
            tags.span(pull.image, class_="name"),
            " to ",
            tags.span(pull.who, class_="name"),
            *facts,
        ),
        tags.ul(*requests),
        id=f"pull-{pull.number}",
    )


def nodes(counts: Sequence[NodeCounts]) -> Tag:
    """Return the list of nodes, each with what it got since the start, and what linking saved."""
    if not counts:
        return tags.p("None has pulled yet.", class_="quiet")
    return tags.ul(*map(_node, counts))


def _node(node: NodeCounts) -> Tag:
    count, failed = sum(node.pulls.values()), node.pulls.get("failed", 0)
    said = [counted(count, "pull"), *([f"{failed} failed"] if failed else [])]
    said.append(f"{size(node.sent_bytes)} sent")
    if node.linked:
        said.append(f"{counted(node.linked, 'layer')} linked, which saved {size(node.saved)}")
    name = "other clients" if node.name == OTHER else node.name
    return tags.li(tags.span(name, class_="name"), ": ", tags.span(", ".join(said), class_="quiet"))


def others(reports: Sequence[RequestReport]) -> Tag:
    """Return the list of requests that belong to no pull, each with its outcome and the reason of a failure."""
    if not reports:
        return tags.p("None yet.", class_="quiet")
    return tags.ul(*map(_report, reports))


def _report(report: RequestReport) -> Tag:
    failed = report.aborted or report.status >= 400
    outcome = f"{report.status}{' broken off' if report.aborted else ''}"
    steps = f", after: {', '.join(report.steps)}" if report.steps else ""
    source = f" from {report.source}" if report.source else ""
    sent = f", {size(report.sent)}" if report.sent else ""
    facts = f"{source}{steps}{sent} in {report.seconds:.2f} s, {report.client}"
    return tags.li(
        tags.span(f"{clock(report.at)} ", class_="quiet"),
        tags.span(outcome, class_="bad" if failed else "good"),
        f" {report.method} ",
        tags.span(report.subject, class_="name"),
        tags.span(facts, class_="quiet"),
        *([tags.p(report.reason), tags.p(f"request {report.id}", class_="quiet")] if report.reason else []),
    )


def saved(counts: Saved) -> Tag:
    """Return how many bytes k3dreg saved: those that clients got, less those that were downloaded for them."""
    return tags.div(
        tags.p(size(max(0, counts.bytes - counts.fetched)), class_="big"),
        tags.p(f"not downloaded again, {counted(counts.pulls, 'image')} served without a pull"),
        tags.p(f"{size(counts.bytes)} served, {size(counts.fetched)} fetched since the start", class_="quiet"),
    )


def _facts(overview: Overview, counts: Saved) -> Tag:
    engine = [tags.p(overview.engine or "unknown"), tags.p(overview.where, class_="quiet")]
    if overview.trouble:
        engine.append(tags.p(overview.trouble, class_="bad"))
    sources: list[Tag] = [
        tags.li(tags.span(f"{each.name}: "), each.says, *([tags.br(), tags.code(each.open_it)] if each.open_it else []))
        for each in overview.sources
    ]
    return tags.div(
        tags.div(tags.h2("Engine"), *engine),
        tags.div(
            tags.h2("Where images come from"),
            tags.ol(*sources) if sources else tags.p("Not known while the engine does not answer.", class_="quiet"),
        ),
        tags.div(tags.h2("Cache"), *_kept(overview)),
        tags.div(tags.h2("Saved"), tags.div(saved(counts), id="saved")),
        class_="facts",
    )


def _kept(overview: Overview) -> list[Tag]:
    """Return the use of the cache."""
    used, limit = overview.cache_bytes, overview.cache_limit
    bar = tags.progress(max=str(max(1, limit)), value=str(min(used, limit)), **{"aria-label": "use of the cache"})
    told = [
        tags.p(size(used), class_="big"),
        tags.p(f"of {size(limit)}, in {counted(overview.cache_blobs, 'blob')}"),
        bar,
    ]
    if overview.evicted_blobs:
        evicted = f"{overview.evicted_blobs} blobs, {size(overview.evicted_bytes)}, evicted since the start"
        told.append(tags.p(evicted, class_="quiet"))
    return told


def _listed(images: Sequence[Listed], count: int) -> Tag:
    if not images:
        return tags.p("None.", class_="quiet")
    head = tags.tr(*(tags.th(title, scope="col") for title in ("Name", "Size", "Age", "Digest")))
    rows = [
        tags.tr(
            tags.td(image.name, class_="name"),
            tags.td(size(image.size)),
            tags.td("" if image.age is None else age(image.age)),
            tags.td(image.digest[:_DIGEST], class_="name quiet"),
        )
        for image in images
    ]
    more = [tags.p(f"and {count - len(images)} more", class_="quiet")] if count > len(images) else []
    return tags.div(tags.table(tags.thead(head), tags.tbody(*rows)), *more)


def _use(use: PushedUsage) -> Tag:
    """Return how much disk space pushed content takes, and what rules would free."""
    said = f"{size(use.bytes)} on the disk."
    if use.expired:
        expired = counted(use.expired, "tag")
        said += f" The rules of --retain remove {expired} within an hour, which frees {size(use.freed)}."
    return tags.p(said, class_="quiet")


def _section(title: str, *contents: Tag) -> Tag:
    return tags.section(tags.h2(title), *contents)
