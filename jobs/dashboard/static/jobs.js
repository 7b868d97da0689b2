// The list of jobs: a part of it, the latest first, by name where somebody searches.

import { getJobs } from "./api.js";
import { byId, count, make } from "./dom.js";
import { JobRow } from "./row.js";

const TYPING_MS = 150;

const rows = new Map(); // id -> JobRow
let total = 0;
let next = null; // where the list goes on
let asked = 0; // answers to earlier questions are too late

const words = () => byId("search").value.trim();

function put(job, place) {
  const known = rows.get(job.id);
  if (known) {
    known.show(job);
    return;
  }
  const row = new JobRow(job, { link: true });
  const item = make("li");
  item.append(row.element);
  rows.set(job.id, row);
  byId("jobs")[place](item);
}

function say() {
  byId("job-count").textContent = total ? count(total) : "";
  byId("more-jobs").hidden = next === null;
  byId("no-jobs").hidden = rows.size > 0;
  byId("no-jobs").textContent = words()
    ? "No job has this in its name." : "There are none yet: sdbatch submit enters one.";
}

export async function loadJobs() {
  const own = ++asked;
  const answer = await getJobs(words(), 0);
  if (own !== asked) return;
  const listed = new Set(answer.jobs.map((job) => job.id));
  for (const [id, row] of rows) if (!listed.has(id)) remove(id, row);
  for (const job of answer.jobs) put(job, "append");
  // Rows that were there stay the same elements, in the order of now.
  byId("jobs").append(...answer.jobs.map((job) => rows.get(job.id).element.parentElement));
  ({ total, next } = answer);
  say();
}

async function loadMore() {
  const own = ++asked;
  const answer = await getJobs(words(), next);
  if (own !== asked) return;
  for (const job of answer.jobs) put(job, "append");
  ({ total, next } = answer);
  say();
}

function remove(id, row) {
  row.element.parentElement.remove();
  rows.delete(id);
}

export function tellJobs(jobs) {
  let latest = Math.max(0, ...[...rows.values()].map((row) => row.job.created_s));
  for (const job of [...jobs].sort((one, other) => one.created_s - other.created_s)) {
    if (rows.has(job.id)) {
      rows.get(job.id).show(job);
    } else if (job.created_s > latest && matches(job)) {
      put(job, "prepend");
      total += 1;
      if (next !== null) next += 1;
      latest = job.created_s;
    }
  }
  say();
}

const matches = (job) => job.id.toLowerCase().includes(words().toLowerCase());

export function tellGone(ids) {
  for (const id of ids) {
    if (!rows.has(id)) continue;
    remove(id, rows.get(id));
    total -= 1;
  }
  say();
}

export function jobsShown() {
  return [...rows.values()].map((row) => row.job);
}

let typing = 0;
byId("search").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => loadJobs().catch(() => {}), TYPING_MS);
});
byId("more-jobs").addEventListener("click", () => loadMore().catch(() => {}));
