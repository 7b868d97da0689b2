// The page from its start: which of its two views is shown, and who is told what happens.

import { beginSession, takeToken } from "./api.js";
import { byId, setText } from "./dom.js";
import { beginJob, tellJob } from "./job.js";
import { connect, rest } from "./live.js";
import { beginOverview, tellOverview } from "./overview.js";

function jobOfPath() {
  const match = location.pathname.match(/^\/jobs\/([^/]+)$/);
  return match ? decodeURIComponent(match[1]) : null;
}

async function begin() {
  const job = jobOfPath();
  byId("overview").hidden = job !== null;
  byId("job").hidden = job === null;
  if (job === null) document.title = "sdbatch";
  try {
    await (job === null ? beginOverview() : beginJob(job));
  } catch (error) {
    byId("alert").hidden = false;
    setText(byId("alert"), `This cannot be shown: ${error.message}`);
  }
}

function tell(name, values) {
  (jobOfPath() === null ? tellOverview : tellJob)(name, values);
}

// Links within the page do not load it again.
document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a");
  if (!link || link.target || event.defaultPrevented || event.button) return;
  if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  if (link.origin !== location.origin || !/^\/(jobs\/[^/]+)?$/.test(link.pathname)) return;
  event.preventDefault();
  if (link.pathname !== location.pathname) history.pushState(null, "", link.pathname);
  scrollTo(0, 0);
  begin();
});
addEventListener("popstate", begin);
addEventListener("hashchange", () => { takeToken(); start(); });
document.addEventListener("keydown", (event) => {
  const typing = document.activeElement === byId("search");
  if (event.key !== "/" || typing || byId("overview").hidden || byId("viewer").open) return;
  event.preventDefault();
  byId("search").focus();
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden) rest();
  else connect(begin, tell);
});

async function start() {
  takeToken();
  await beginSession().catch(() => {}); // what it is for says it, too
  connect(begin, tell);
}

start();
