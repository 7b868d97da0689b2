"use strict";
// Text reaches the page through textContent and attributes only, never as HTML.

const CHUNK = 60; // tiles added at a time, as the reader scrolls

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const images = data.images.map((own) => ({ ...data.common, ...own }));
const order = Object.keys(data.labels);
const haystacks = images.map((image) => fold(`${image.prompt} ${image.seed}`));

let found = images.map((_, place) => place); // places in `images` that pass the filter
let shown = 0; // how many of them have a tile
let current = -1; // position in `found` of the picture in the viewer

function fold(text) {
  return text.normalize("NFKC").toLowerCase();
}

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

const addressOf = (path) => path.split("/").map(encodeURIComponent).join("/");
const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

// What is worth a word below a picture: the settings in which the pictures differ.
const settings = [...data.settings.filter((key) => !["width", "height"].includes(key)), "model"];
const varying = settings.filter((key) => !(key in data.common) && images.some((i) => key in i));
const sizesDiffer = !("width" in data.common && "height" in data.common);

function setting(image, key) {
  if (key === "karras") return image.karras ? "Karras" : "";
  return ["sampler", "model"].includes(key) ? String(image[key]) : `${key} ${image[key]}`;
}

function factsOf(image) {
  const facts = [`seed ${image.seed}`];
  for (const key of varying) if (image[key] !== undefined) facts.push(setting(image, key));
  if (sizesDiffer) facts.push(`${image.width}×${image.height}`);
  return facts.filter(Boolean).join(" · ");
}

function summary() {
  const words = [plural(data.total, "picture")];
  const common = data.common;
  if (common.model !== undefined) words.push(common.model);
  for (const key of ["sampler", "steps", "guidance", "strength"]) {
    if (common[key] !== undefined) words.push(setting(common, key));
  }
  if (images.length && !sizesDiffer) words.push(`${common.width}×${common.height}`);
  return words.join(" · ");
}

// The grid

function tile(position) {
  const image = images[found[position]];
  const item = make("li");
  const link = make("a", "tile");
  link.href = addressOf(image.path);
  const frame = make("span", "frame");
  // All alike, and in place before the pictures are: an even grid that does not jump.
  frame.style.aspectRatio = sizesDiffer ? "1" : `${image.width} / ${image.height}`;
  const picture = make("img");
  picture.loading = "lazy";
  picture.decoding = "async";
  picture.alt = image.prompt;
  picture.addEventListener("error", () => frame.classList.add("missing"));
  picture.src = link.href;
  frame.append(picture);
  const words = make("div", "words");
  words.append(make("p", "line", image.prompt), make("p", "facts", factsOf(image)));
  link.append(frame, words);
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return; // a new tab with the file
    event.preventDefault();
    open(position);
  });
  item.append(link);
  return item;
}

function showUntil(count) {
  const tiles = [];
  for (; shown < Math.min(count, found.length); shown++) tiles.push(tile(shown));
  byId("grid").append(...tiles);
  // Observed anew, or a screen that is still not full would not be noticed.
  nearEnd.unobserve(byId("more"));
  if (shown < found.length) nearEnd.observe(byId("more"));
}

const nearEnd = new IntersectionObserver((entries) => {
  if (entries.some((entry) => entry.isIntersecting)) showUntil(shown + CHUNK);
}, { rootMargin: "1200px" });

function count() {
  if (found.length < images.length) return `${found.length.toLocaleString("en")} of `
    + plural(images.length, "picture");
  if (images.length < data.total) return `The first ${plural(images.length, "picture")} of `
    + `${data.total.toLocaleString("en")}. All of them are in the images folder.`;
  return "";
}

function filter() {
  const words = fold(byId("filter").value).split(/\s+/).filter(Boolean);
  found = [...images.keys()].filter((place) => words.every((w) => haystacks[place].includes(w)));
  byId("grid").replaceChildren();
  shown = 0;
  showUntil(CHUNK);
  byId("count").textContent = count();
  byId("count").hidden = !count();
  byId("nothing").hidden = found.length > 0 || !images.length;
}

// The viewer

function open(position) {
  current = position;
  const image = images[found[position]];
  const address = addressOf(image.path);
  byId("picture").src = address;
  byId("picture").alt = image.prompt;
  byId("full").href = address;
  byId("prompt").textContent = image.prompt;
  byId("negative").textContent = image.negative;
  byId("position").textContent = `${(position + 1).toLocaleString("en")} of `
    + found.length.toLocaleString("en");
  byId("previous").disabled = position === 0;
  byId("next").disabled = position === found.length - 1;
  const rows = [];
  for (const key of order) {
    if (key === "prompt" || key === "negative" || image[key] === undefined) continue;
    const value = typeof image[key] === "boolean" ? (image[key] ? "yes" : "no") : image[key];
    const long = String(value).length > 24 && !String(value).includes(" ");
    rows.push(make("dt", "", data.labels[key]), make("dd", long ? "long" : "", String(value)));
  }
  byId("parameters").replaceChildren(...rows);
  if (!byId("viewer").open) {
    byId("viewer").showModal();
    byId("viewer").focus(); // rather than its first button
  }
  history.replaceState(null, "", `#${image.index}`);
}

function step(by) {
  const position = current + by;
  if (position >= 0 && position < found.length) open(position);
}

byId("viewer").addEventListener("close", () => {
  history.replaceState(null, "", location.pathname + location.search);
  showUntil(current + 1);
  const link = byId("grid").children[current]?.querySelector("a");
  link?.focus({ preventScroll: true });
  link?.scrollIntoView({ block: "nearest" });
});
byId("viewer").addEventListener("click", (event) => {
  if (event.target === byId("viewer")) byId("viewer").close(); // the backdrop
});
byId("viewer").addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
byId("close").addEventListener("click", () => byId("viewer").close());
byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));

// A manifest's prompt entry: JSON is YAML, so it can be pasted after a dash. The seed goes in as
// digits, since it may be larger than a number here can hold.
function entryOf(image) {
  const values = { ...image };
  for (const key of ["init_image", "mask"]) { // as seen from the job's folder
    if (image[key] !== undefined) values[key] = `inputs/${image[key]}`;
  }
  const keys = ["prompt", "negative", "init_image", "mask", ...data.settings];
  const pairs = keys
    .filter((key) => image[key] !== undefined && image[key] !== false)
    .filter((key) => !(["negative", "eta"].includes(key) && !image[key]))
    .map((key) => `${JSON.stringify(key)}: ${JSON.stringify(values[key])}`);
  return `{${pairs.join(", ")}, "seeds": [${image.seed}]}`;
}

async function copy(button, text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
  } else { // a page served without TLS
    const area = make("textarea", "unseen");
    area.value = text;
    byId("viewer").append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  const label = button.textContent;
  button.textContent = "Copied";
  button.disabled = true;
  setTimeout(() => { button.textContent = label; button.disabled = false; }, 1200);
}

byId("copy-prompt").addEventListener("click", (event) =>
  copy(event.currentTarget, images[found[current]].prompt));
byId("copy-entry").addEventListener("click", (event) =>
  copy(event.currentTarget, entryOf(images[found[current]])));

// The page

function failures() {
  if (!data.failed) return;
  byId("failures").hidden = false;
  byId("failures").firstElementChild.textContent = `${plural(data.failed, "picture")} failed`;
  byId("failures").lastElementChild.append(...data.failures.map((failure) => {
    const item = make("li", "", `${failure.index} · ${failure.prompt}`);
    item.append(make("span", "", failure.reason));
    return item;
  }));
}

function sheets() {
  byId("sheets").hidden = !data.sheets.length;
  byId("sheets").append(...data.sheets.map((path, number) => {
    const link = make("a", "", String(number + 1));
    link.href = addressOf(path);
    return link;
  }));
}

byId("zoom").addEventListener("input", (event) =>
  document.documentElement.style.setProperty("--tile", `${event.target.value}px`));
byId("filter").addEventListener("input", filter);
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !byId("viewer").open && document.activeElement !== byId("filter")) {
    event.preventDefault();
    byId("filter").focus();
  }
});

byId("summary").textContent = summary();
failures();
sheets();
filter();
const linked = images.findIndex((image) => `#${image.index}` === location.hash);
if (linked >= 0) open(linked);
