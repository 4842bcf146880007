"use strict";
// The parts that move.  The server has escaped what is in them; without this script the page is as of its loading.
const source = new EventSource("/events");
const live = document.getElementById("live");
source.onopen = () => { live.textContent = "Live."; };
source.onerror = () => { live.textContent = "The connection is lost; trying again."; };
for (const name of ["saved", "running", "recent"]) {
  source.addEventListener(name, (event) => {
    document.getElementById(name).innerHTML = event.data;
  });
}
