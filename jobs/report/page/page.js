// The page: what is told above the pictures, what the reader asks, and the keys.

const SOON_MS = 250; // between two looks at an index that is being loaded

const loading = { done: false, lost: 0 };
let factsShown = "";
let asked = 0; // a frame that answers is on its way

// The reader asks something else: the answer is read from its beginning.
function changed() {
  asked ||= requestAnimationFrame(() => {
    asked = 0;
    answer();
    if (pageTop() > 0) scrollToPlace(-list.top);
    showTiles();
  });
}

function answer() {
  const counts = ask();
  showFilters(counts);
  showOrders();
  byId("summary").textContent = summary();
  byId("count").textContent = count();
  showStars();
  if (byId("viewer").open) showPosition();
  byId("nothing").hidden = found.length > 0 || !table.rows;
  const facts = `${factFields()} ${aspect()}`;
  if (facts === factsShown) {
    measure();
    showTiles();
  } else {
    factsShown = facts;
    redraw();
  }
}

function summary() {
  const words = [plural(page.total, "picture")];
  for (const field of ["model", "sampler", "steps", "guidance", "strength", "size"]) {
    const one = table.columns.get(field);
    if (one?.values.length === 1 && !one.varies) words.push(told(field, one.values[0]));
  }
  return words.join(" · ");
}

function count() {
  const shown = page.shards.reduce((sum, [, images]) => sum + images, 0);
  const words = [];
  if (found.length < table.rows) {
    words.push(`${counted(found.length)} of ${plural(table.rows, "picture")}.`);
  } else if (loading.done && shown < page.total) {
    words.push(`The first ${plural(shown, "picture")} of ${counted(page.total)}. All of them are `
      + "in the images folder.");
  }
  if (!loading.done) words.push(`Loading: ${counted(table.rows)} of ${counted(shown)} so far.`);
  if (loading.lost) {
    words.push(`${plural(loading.lost, "file")} of the index cannot be read; `
      + "its pictures are in the images folder.");
  }
  return words.join(" ");
}

function failures() {
  if (!page.failed) return;
  byId("failures").hidden = false;
  byId("failures").firstElementChild.textContent = `${plural(page.failed, "picture")} failed`;
  byId("failures").lastElementChild.append(...page.failures.map((failure) => {
    const item = make("li", "", `${failure.index} · ${failure.prompt}`);
    item.append(make("span", "", failure.reason));
    return item;
  }));
}

function sheets() {
  byId("sheets").hidden = !page.sheets.length;
  byId("sheets").append(...page.sheets.map((path, number) => {
    const link = make("a", "", String(number + 1));
    link.href = addressOf(path);
    return link;
  }));
}

// What the reader asks

function filter() {
  query.words = fold(byId("filter").value).split(/\s+/).filter(Boolean);
  changed();
}

function showPanel(shown) {
  document.body.classList.toggle("filtering", shown);
  byId("show-filters").ariaExpanded = String(shown);
  measure();
  showTiles();
}

const isWide = () => matchMedia("(min-width: 900px)").matches;

byId("filter").addEventListener("input", filter);
byId("order").addEventListener("change", (event) => {
  query.order = event.target.value;
  changed();
});
byId("reverse").addEventListener("click", () => {
  query.reverse = !query.reverse;
  byId("reverse").ariaPressed = String(query.reverse);
  changed();
});
byId("clear").addEventListener("click", clearFilters);
byId("show-filters").addEventListener("click", () =>
  showPanel(!document.body.classList.contains("filtering")));
byId("hide-filters").addEventListener("click", () => {
  showPanel(false);
  byId("show-filters").focus();
});
byId("zoom").addEventListener("input", (event) => {
  document.documentElement.style.setProperty("--tile", `${event.target.value}px`);
  measure();
  showTiles();
});

const isTyping = () => document.activeElement.matches("input, select, textarea");

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/" && document.activeElement !== byId("filter")) {
    event.preventDefault();
    byId("filter").focus();
  }
  if (event.key === "Escape") {
    if (marked >= 0) setMark(-1);
    else if (!isWide()) showPanel(false);
  }
  if (isTyping()) return;
  if (event.key === "s" && tileOf(active)) toggleStar(active);
  if (event.key === "a" && tileOf(active)) mark(active);
  if (STEP_KEYS.includes(event.key)) {
    event.preventDefault();
    moveBy(event.key);
  }
});

let drawing = 0;
window.addEventListener("scroll", () => {
  drawing ||= requestAnimationFrame(() => {
    drawing = 0;
    showTiles();
  });
}, { passive: true });
const resized = new ResizeObserver(() => {
  document.documentElement.style.setProperty("--header", `${byId("header").offsetHeight}px`);
  measure();
  showTiles();
});
for (const id of ["header", "main"]) resized.observe(byId(id));

function openLinked() {
  const index = /^#\d+$/.test(location.hash) ? Number(location.hash.slice(1)) : -1;
  const row = rowOfIndex(index);
  if (row >= 0 && row !== current) open(row);
  return row >= 0;
}
window.addEventListener("hashchange", openLinked);

// The beginning

let looked = -Infinity; // when, in milliseconds
let linked = false;

function progress(done, lost) {
  Object.assign(loading, { done, lost });
  linked ||= openLinked();
  if (!done && performance.now() - looked < SOON_MS) return;
  answer();
  looked = performance.now(); // an answer takes its time with a million pictures
}

document.body.classList.add("scripted");
failures();
sheets();
showPanel(isWide());
byId("zoom").value = parseFloat(getComputedStyle(byId("grid")).getPropertyValue("--tile"));
loadIndex(Number(/^#(\d+)$/.exec(location.hash)?.[1] ?? -1), progress);
