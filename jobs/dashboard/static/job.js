// A job's own page: how it stands, what failed, its pictures as they land, and what may be done.

import { change, getBefore, getJob, mayChange } from "./api.js";
import { byId, count, duration, euros, make, setClock, setText } from "./dom.js";
import { FailureList } from "./failures.js";
import { JobRow } from "./row.js";
import { PictureGrid } from "./tiles.js";

const MOST_PICTURES = 600;
const MOST_FAILURES = 100;

let job = null; // its id
let row = null;
let before = null; // older pictures than these were not asked for; 0 if there are none
let loading = false;

const gallery = new PictureGrid(byId("gallery"), MOST_PICTURES, { named: false, changed: explain });
const failures = new FailureList(byId("job-failures"), { named: false, most: MOST_FAILURES });

const FACTS = {
  Model: (view) => view.model,
  Steps: (view) => `${count(view.evaluated)} of ${count(view.evaluations)}`,
  Shards: (view) => `${count(view.leased)} rendering, ${count(view.queued)} queued, `
    + `${count(view.waiting)} waiting`,
  "Worker time": (view) => (view.worker_s ? duration(view.worker_s) : ""),
  Cost: (view) => euros(view.cost),
  Priority: (view) => String(view.priority),
  Entered: (view) => new Date(view.created_s * 1000).toLocaleString(),
  Ended: (view) => (view.ended_s ? new Date(view.ended_s * 1000).toLocaleString() : ""),
  Folder: (view) => `${view.store.replace(/\/$/, "")}/${view.id}`,
};

function explain() {
  byId("gallery-error").hidden = !gallery.error;
  setText(byId("gallery-error"), gallery.error ? `Pictures cannot be read: ${gallery.error}` : "");
  byId("gallery-empty").hidden = !gallery.empty || Boolean(gallery.error);
}

function show(view) {
  byId("job-facts").hidden = byId("gallery-section").hidden = false;
  byId("job-missing").hidden = true;
  setText(byId("job-title"), view.name || view.id);
  document.title = `${view.total ? Math.floor((100 * view.done) / view.total) : 0} % · ${view.id}`;
  setText(byId("summary"), view.id);
  if (row === null) {
    row = new JobRow(view, { link: false });
    byId("job-row").replaceChildren(row.element);
  } else {
    row.show(view);
  }
  const known = view.state !== "unknown";
  byId("facts").replaceChildren(...Object.entries(FACTS)
    .map(([label, text]) => [label, known ? text(view) : ""])
    .filter(([, text]) => text)
    .flatMap(([label, text]) => {
      const name = label === "Folder" ? "wide" : "";
      return [make("dt", name, label), make("dd", name, text)];
    }));
  byId("failure-count").textContent = view.failed ? count(view.failed) : "";
  showActions(view);
}

function showActions(view) {
  const possible = {
    pause: view.state === "active",
    unpause: view.state === "paused",
    cancel: view.state === "active" || view.state === "paused",
    retry: view.failed > 0 && view.state !== "unknown",
  };
  for (const button of byId("actions").children) {
    button.hidden = !mayChange() || !possible[button.dataset.change];
  }
}

export async function beginJob(id) {
  if (id !== job) {
    job = id;
    row = before = null;
    gallery.clear();
    failures.clear();
    setText(byId("said"), mayChange() ? "" : "Read only: open the whole address that sdbatch "
      + "dashboard printed to pause, cancel or retry.");
    byId("job-facts").hidden = byId("gallery-section").hidden = true;
    byId("job-failures-section").hidden = true;
  }
  let answer;
  try {
    answer = await getJob(id);
  } catch (error) {
    if (error.status !== 404) throw error;
    missing(`There is no job ${id}, or it was forgotten.`);
    return;
  }
  if (id !== job) return;
  setClock(answer.now_s);
  show(answer.job);
  failures.clear();
  failures.add(answer.failures.reverse());
  byId("job-failures-section").hidden = !answer.failures.length;
  await gallery.land(answer.pictures);
  await loadOlder();
}

// A job that is not there, or not yet: it is shown once it is.
function missing(text) {
  byId("job-missing").hidden = false;
  setText(byId("job-missing"), text);
  byId("job-facts").hidden = byId("gallery-section").hidden = true;
}

// Pictures that no event is kept of, by their numbers.
async function loadOlder() {
  if (loading || job === null || before === 0) return;
  if (gallery.tiles.size >= MOST_PICTURES) return;
  const own = job;
  loading = true;
  try {
    const answer = await getBefore(job, before);
    if (own !== job) return;
    for (const picture of answer.pictures) gallery.putLast({ job, ...picture });
    before = answer.before;
    gallery.error = null;
  } catch (error) {
    if (error.status !== 404) gallery.error = error.message;
    return;
  } finally {
    loading = false;
    explain();
  }
  // Observed anew, or an end that is still in sight would not be noticed.
  nearEnd.unobserve(byId("gallery-end"));
  if (before !== 0) nearEnd.observe(byId("gallery-end"));
}

const nearEnd = new IntersectionObserver((entries) => {
  if (entries.some((entry) => entry.isIntersecting)) loadOlder();
}, { rootMargin: "800px" });

export function tellJob(name, values) {
  if (name === "jobs") {
    const own = values.find((view) => view.id === job);
    if (own) show(own);
  }
  if (name === "gone" && values.includes(job)) missing("The job was forgotten; its folder stays.");
  if (name === "failures") {
    const own = values.filter((failure) => failure.job === job);
    failures.add(own);
    if (own.length) byId("job-failures-section").hidden = false;
  }
  if (name === "pictures") {
    const own = values.filter((picture) => picture.job === job);
    if (own.length) gallery.land(own);
  }
}

// What may be done

async function apply(name) {
  const buttons = [...byId("actions").children];
  for (const button of buttons) button.disabled = true;
  try {
    const answer = await change(job, name);
    setText(byId("said"), `${answer.job.id}: ${answer.said}`);
    if (name === "retry") failures.clear();
    show(answer.job);
  } catch (error) {
    setText(byId("said"), `Not done: ${error.message}`);
  } finally {
    for (const button of buttons) button.disabled = false;
  }
}

byId("actions").addEventListener("click", (event) => {
  const name = event.target.dataset.change;
  if (!name) return;
  if (name !== "cancel") {
    apply(name);
    return;
  }
  setText(byId("confirm-text"), `Cancel ${job}? Finished pictures stay.`);
  byId("confirm").showModal();
});
byId("confirm-no").addEventListener("click", () => byId("confirm").close());
byId("confirm-yes").addEventListener("click", () => {
  byId("confirm").close();
  apply("cancel");
});
