// Workers as they report themselves, and the summary of what all of them do.

import { ago, byId, count, make, nowS, plural, setText, speed } from "./dom.js";

let workers = [];

export function tellWorkers(found) {
  workers = found;
  byId("worker-count").textContent = found.length ? count(found.length) : "";
  byId("no-workers").hidden = found.length > 0;
  byId("workers").replaceChildren(...found.map(card));
}

function card(worker) {
  const item = make("li", "worker");
  const head = make("span", "head");
  const chip = make("span", "chip", worker.state.split(":")[0]);
  chip.dataset.state = worker.state.split(":")[0];
  head.append(make("span", "name", worker.name), chip);
  const facts = [worker.model, worker.device];
  if (worker.rows) facts.push(`${worker.rows_used} of ${worker.rows} rows`);
  const done = [`${plural(worker.images, "image")}`];
  if (worker.images_per_s) done.push(speed(worker.images_per_s));
  item.append(head, make("span", "facts", facts.filter(Boolean).join(" · ")));
  item.append(make("span", "facts", done.join(" · ")));
  const seen = make("span", "facts seen");
  seen.dataset.seen = worker.seen_s ?? "";
  item.append(seen);
  if (worker.state.includes(":")) item.append(make("span", "trouble", worker.state));
  showSeen(seen);
  return item;
}

function showSeen(element) {
  const seenS = Number(element.dataset.seen);
  setText(element, seenS ? `last seen ${ago(nowS() - seenS)}` : "");
}

setInterval(() => document.querySelectorAll(".seen").forEach(showSeen), 1000);

export function summaryOf(jobs) {
  const active = jobs.filter((job) => job.state === "active").length;
  const perS = workers.reduce((sum, worker) => sum + (worker.images_per_s ?? 0), 0);
  return [plural(active, "active job"), plural(workers.length, "worker"), perS ? speed(perS) : ""]
    .filter(Boolean).join(" · ");
}
