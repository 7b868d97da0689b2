// A job in a row: what it is, how far, how fast. Made once, then only its texts change.

import { count, duration, euros, make, pathOf, setText, speed } from "./dom.js";

export class JobRow {
  // link: whether it leads to the job's own page.
  constructor(job, { link }) {
    this.element = make(link ? "a" : "div", "row");
    if (link) this.element.href = pathOf(job.id);
    this.name = make("span", "name", job.id);
    this.state = make("span", "chip");
    this.model = make("span", "model");
    this.done = make("span", "part");
    this.failed = make("span", "part failed");
    this.bar = make("span", "progress");
    this.bar.setAttribute("role", "progressbar");
    this.bar.setAttribute("aria-valuemin", "0");
    this.bar.setAttribute("aria-label", `Images of ${job.id}`);
    this.bar.append(this.done, this.failed);
    this.counts = make("span", "counts");
    this.pace = make("span", "pace");
    this.cost = make("span", "cost");
    this.trouble = make("span", "trouble");
    const head = make("span", "head");
    head.append(this.name, this.state);
    const figures = make("span", "figures");
    figures.append(this.counts, this.pace, this.cost);
    this.element.append(head, this.model, this.bar, figures, this.trouble);
    this.show(job);
  }

  show(job) {
    this.job = job;
    setText(this.state, job.reason ? `${job.state}: ${job.reason}` : job.state);
    this.state.dataset.state = job.state;
    setText(this.model, job.model);
    const whole = Math.max(1, job.total);
    this.done.style.width = `${(100 * job.done) / whole}%`;
    this.failed.style.width = `${(100 * job.failed) / whole}%`;
    this.bar.setAttribute("aria-valuemax", String(job.total));
    this.bar.setAttribute("aria-valuenow", String(job.done));
    const failed = job.failed ? `, ${count(job.failed)} failed` : "";
    setText(this.counts, job.state === "unknown" ? ""
      : `${count(job.done)} of ${count(job.total)}${failed}`);
    setText(this.pace, paceOf(job));
    setText(this.cost, euros(job.cost));
    setText(this.trouble, job.error ?? "");
  }
}

function paceOf(job) {
  if (job.images_per_s === null) return job.state === "active" ? job.rests ?? "" : "";
  const left = job.remaining_s === null ? "" : ` · ${duration(job.remaining_s)} left`;
  return `${speed(job.images_per_s)}${left}`;
}
