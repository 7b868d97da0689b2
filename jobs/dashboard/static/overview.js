// All jobs, workers, the newest pictures and failures.

import { getNow } from "./api.js";
import { byId, setClock, setText } from "./dom.js";
import { FailureList } from "./failures.js";
import { jobsShown, loadJobs, tellGone, tellJobs } from "./jobs.js";
import { PictureGrid } from "./tiles.js";
import { summaryOf, tellWorkers } from "./workers.js";

const MOST_PICTURES = 12;

const newest = new PictureGrid(byId("newest"), MOST_PICTURES, { named: true, changed: explain });
const failures = new FailureList(byId("failures"), { named: true });

function explain() {
  byId("no-pictures").hidden = !newest.error && !newest.empty;
  setText(byId("no-pictures"), newest.error ? `Pictures cannot be read: ${newest.error}`
    : "None yet: pictures appear here as they land.");
}

function summarise() {
  setText(byId("summary"), summaryOf(jobsShown()));
  byId("failures-section").hidden = !byId("failures").children.length;
}

export async function beginOverview() {
  const [now] = await Promise.all([getNow(), loadJobs()]);
  setClock(now.now_s);
  tellWorkers(now.workers);
  failures.clear();
  failures.add(now.failures);
  summarise();
  explain();
  await newest.land(now.pictures.slice(-MOST_PICTURES));
}

export function tellOverview(name, values) {
  if (name === "jobs") tellJobs(values);
  if (name === "gone") {
    tellGone(values);
    newest.drop(values);
    failures.drop(values);
  }
  if (name === "workers") tellWorkers(values);
  if (name === "failures") failures.add(values);
  if (name === "pictures") newest.land(values);
  summarise();
}
