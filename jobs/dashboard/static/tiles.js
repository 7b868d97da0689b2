// Pictures in a grid, the newest first, each in it once.

import { getFacts } from "./api.js";
import { make, pictureOf, thumbnailOf } from "./dom.js";
import { openViewer } from "./viewer.js";

const ASKED_AT_ONCE = 50;

const keyOf = ({ job, index }) => `${index}/${job}`;

export class PictureGrid {
  // most: tiles; the oldest go first. named: says of which job each is. changed: called when there
  // are others, or when why they cannot be read (`error`, or null) may be another.
  constructor(list, most, { named, changed }) {
    this.list = list;
    this.most = most;
    this.named = named;
    this.changed = changed;
    this.error = null;
    this.tiles = new Map();
    this.waiting = [];
    this.fetching = false;
    this.round = 0; // of answers, those to questions before a `clear` are too late
  }

  clear() {
    this.list.replaceChildren();
    this.tiles.clear();
    this.waiting = [];
    this.round += 1;
    this.error = null;
    this.changed();
  }

  get empty() {
    return this.tiles.size === 0;
  }

  // Pictures that landed, oldest first: those of them that there is room for.
  async land(pictures) {
    this.waiting = [...this.waiting, ...pictures].slice(-this.most);
    if (this.fetching) return;
    this.fetching = true;
    try {
      while (this.waiting.length) {
        const some = this.waiting.splice(0, ASKED_AT_ONCE);
        const { round } = this;
        const found = await this.factsOf(some);
        if (round !== this.round) continue;
        for (const picture of found) this.putFirst(picture);
        this.changed();
      }
    } finally {
      this.fetching = false;
    }
  }

  async factsOf(pictures) {
    const byJob = new Map();
    for (const { job, index } of pictures) byJob.set(job, [...(byJob.get(job) ?? []), index]);
    const facts = new Map();
    for (const [job, indices] of byJob) {
      try {
        const answer = await getFacts(job, indices);
        for (const one of answer.pictures) facts.set(keyOf({ job, index: one.index }), one);
        this.error = null;
      } catch (error) {
        if (error.status !== 404) this.error = error.message; // else the job was forgotten
      }
    }
    return pictures.map((picture) => ({ ...picture, ...facts.get(keyOf(picture)) }));
  }

  putFirst(picture) {
    const before = this.tiles.get(keyOf(picture));
    before?.remove();
    const item = before ?? tile(picture, this);
    this.tiles.set(keyOf(picture), item);
    this.list.prepend(item);
    while (this.tiles.size > this.most) {
      const last = this.list.lastElementChild;
      this.tiles.delete(keyOf(last.picture));
      last.remove();
    }
  }

  // Take out the pictures of jobs that were forgotten.
  drop(jobs) {
    for (const [key, item] of this.tiles) {
      if (!jobs.includes(item.picture.job)) continue;
      item.remove();
      this.tiles.delete(key);
    }
    this.changed();
  }

  putLast(picture) {
    if (this.tiles.has(keyOf(picture)) || this.tiles.size >= this.most) return;
    const item = tile(picture, this);
    this.tiles.set(keyOf(picture), item);
    this.list.append(item);
  }
}

function tile(picture, grid) {
  const item = make("li");
  item.picture = picture;
  const link = make("a", "tile");
  link.href = pictureOf(picture);
  const frame = make("span", "frame");
  const image = make("img");
  image.loading = "lazy";
  image.decoding = "async";
  image.alt = picture.prompt ?? `Picture ${picture.index}`;
  image.addEventListener("error", () => frame.classList.add("missing"));
  image.src = thumbnailOf(picture);
  frame.append(image);
  const words = make("div", "words");
  words.append(make("p", "line", picture.prompt ?? `Picture ${picture.index}`));
  const facts = [picture.seed === undefined ? "" : `seed ${picture.seed}`];
  facts.push(grid.named ? picture.job : picture.prompt === undefined ? "" : `no. ${picture.index}`);
  words.append(make("p", "facts", facts.filter(Boolean).join(" · ")));
  link.append(frame, words);
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return; // a new tab with the file
    event.preventDefault();
    openViewer(item);
  });
  item.append(link);
  return item;
}
