"use strict";
// Replaces the parts of the page that change.  The server escapes their text.  Without this script the page shows the
// state at its loading.
const AGAIN = 15; // seconds until a page that is not kept up to date is loaded again
const source = new EventSource("/events");
const live = document.getElementById("live");

// An EventSource that was refused neither connects again nor tells the reason, so this requests it.
async function sayWhyNot() {
  const request = new AbortController();
  let why = "k3dreg does not send changes";
  try {
    const answer = await fetch("/events", { signal: request.signal });
    if (answer.ok) {
      request.abort(); // the server accepts streams again: the reloaded page opens one
    } else {
      why = (await answer.json()).errors[0].message;
    }
  } catch { /* k3dreg does not answer, or not in the form of its errors */ }
  live.textContent = `Not live: ${why}. This page reloads every ${AGAIN} seconds.`;
  setTimeout(loadAgain, AGAIN * 1000);
}

async function loadAgain() {
  try {
    await fetch("/healthz");
    location.reload();
  } catch { // a reload now would show the browser's error page, which has no script to try again
    live.textContent = "The connection to k3dreg is lost; trying again.";
    setTimeout(loadAgain, AGAIN * 1000);
  }
}

source.onopen = () => { live.textContent = "Live."; };
source.onerror = () => {
  if (source.readyState === EventSource.CLOSED) {
    sayWhyNot();
  } else {
    live.textContent = "The connection to k3dreg is lost; trying again.";
  }
};

// Parts that are unfolded stay so when they are replaced, and the focus stays where it is.
const unfolded = new Set();
document.addEventListener("toggle", (event) => {
  if (event.target.open) {
    unfolded.add(event.target.id);
  } else {
    unfolded.delete(event.target.id);
  }
}, true);

function replace(name, html) {
  const focused = document.activeElement.closest("details[id]")?.id;
  document.getElementById(name).innerHTML = html;
  for (const id of unfolded) {
    document.getElementById(id)?.setAttribute("open", "");
  }
  if (focused && !document.activeElement.closest("details")) {
    document.getElementById(focused)?.querySelector("summary").focus();
  }
}

for (const name of ["saved", "running", "pulls", "nodes", "others"]) {
  source.addEventListener(name, (event) => replace(name, event.data));
}
