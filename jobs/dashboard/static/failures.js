// Images that failed, with reasons.

import { make, pathOf } from "./dom.js";

const MOST = 20;

export class FailureList {
  constructor(list, { named, most = MOST }) {
    this.list = list;
    this.named = named;
    this.most = most;
  }

  clear() {
    this.list.replaceChildren();
  }

  // The newest last; it comes to be the first.
  add(failures) {
    for (const failure of failures) this.list.prepend(this.item(failure));
    while (this.list.children.length > this.most) this.list.lastElementChild.remove();
  }

  // Take out those of jobs that were forgotten.
  drop(jobs) {
    for (const item of [...this.list.children]) if (jobs.includes(item.dataset.job)) item.remove();
  }

  item({ job, index, reason }) {
    const item = make("li");
    item.dataset.job = job;
    const head = make("span", "head");
    if (this.named) {
      const link = make("a", "", job);
      link.href = pathOf(job);
      head.append(link);
    }
    head.append(make("span", "number", `Picture ${index}`));
    item.append(head, make("span", "reason", reason));
    return item;
  }
}
