"use strict";
// The parts that move.  The server has escaped what is in them; without this script the page is as of its loading.
const AGAIN = 15; // seconds until a page that is not kept up to date is loaded again
const source = new EventSource("/events");
const live = document.getElementById("live");

// An EventSource that was refused does not connect again, and does not tell why: a request of our own does.
async function sayWhyNot() {
  const request = new AbortController();
  let why = "k3dreg does not send changes";
  try {
    const answer = await fetch("/events", { signal: request.signal });
    if (answer.ok) {
      request.abort(); // there is a place now, for the page that is loaded next
    } else {
      why = (await answer.json()).errors[0].message;
    }
  } catch { /* it is gone, or said nothing that is understood here */ }
  live.textContent = `Not live: ${why}. This page reloads every ${AGAIN} seconds.`;
  setTimeout(loadAgain, AGAIN * 1000);
}

async function loadAgain() {
  try {
    await fetch("/healthz");
    location.reload();
  } catch { // the browser's own error page would never come back
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
for (const name of ["saved", "running", "recent"]) {
  source.addEventListener(name, (event) => {
    document.getElementById(name).innerHTML = event.data;
  });
}
